"""From updates to pieces of an answer."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.inference import request as request_lib
from dsx.serving import answer
from tests.serving import fake_engine

_VOCABULARY = fake_engine.VOCABULARY
_EOS = fake_engine.EOS


def _update(tokens, finish=None):
  if isinstance(tokens, str):
    tokens = _VOCABULARY.encode(tokens)
  drawn = [fake_engine.drawn(token, 0) for token in tokens]
  return request_lib.Update(request=0, drawn=drawn, finish=finish)


class AnswerTest(parameterized.TestCase):
  def test_a_stop_string_over_two_updates(self):
    growing = answer.Answer(_VOCABULARY, ("END",), chat=False)
    first = growing.take(_update("abE"))
    self.assertEqual((first.text, first.finish), ("ab", None))
    # Tokens after the stop string were drawn, but are none of the answer's.
    last = growing.take(_update("NDxy"))
    self.assertEqual((last.text, last.finish), ("", "stop"))
    self.assertLen(last.drawn, 2)

  @parameterized.parameters("length", "stop")
  def test_what_was_held_back_comes_at_the_end(self, finish):
    growing = answer.Answer(_VOCABULARY, ("END",), chat=False)
    self.assertEqual(growing.take(_update("abEN")).text, "ab")
    last = growing.take(_update([], finish))
    self.assertEqual((last.text, last.finish), ("EN", finish))

  def test_special_tokens(self):
    hidden = answer.Answer(_VOCABULARY, (), chat=False)
    self.assertEqual(hidden.take(_update([97, _EOS], "stop")).text, "a")
    shown = answer.Answer(_VOCABULARY, (), chat=False, specials=True)
    self.assertEqual(
      shown.take(_update([97, _EOS], "stop")).text, "a<｜end▁of▁sentence｜>"
    )

  def test_reasoning(self):
    close = _VOCABULARY.special["/think"]
    growing = answer.Answer(_VOCABULARY, (), chat=True, opened=True)
    tokens = [
      *_VOCABULARY.encode("why\n"),
      close,
      *_VOCABULARY.encode("\n\nso"),
    ]
    pieces = [growing.take(_update([token])) for token in tokens]
    pieces.append(growing.take(_update([_EOS], "stop")))
    whole = answer.join(pieces)
    self.assertEqual(whole.reasoning, "why")
    self.assertEqual(whole.text, "so")
    # The tag is one of them.
    self.assertEqual(whole.reasoned, 5)
    self.assertLen(whole.drawn, len(tokens) + 1)
    self.assertEqual(whole.finish, "stop")


if __name__ == "__main__":
  absltest.main()
