"""Answers become text as they come, and know why they ended."""

import contextlib

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import vocab
from dsx.inference import continuation
from dsx.inference import request as request_lib
from dsx.inference import sampling
from tests.inference import fake_engine

_BYTE = vocab.ByteVocabulary()
_EOS = _BYTE.special["eos"]


def _engine(text, **more):
  tokens = list(text if isinstance(text, list) else text.encode())
  return fake_engine.FakeEngine(lambda _: [*tokens, _EOS], eos=_EOS, **more)


def _requests(*prompts, **how):
  return [
    request_lib.Request(prompt=tuple(prompt), sampling=sampling.Sampling(**how))
    for prompt in prompts
  ]


def _run(engine, requests, **more):
  return list(continuation.run(engine, _BYTE, requests, **more))


class ContinuationTest(parameterized.TestCase):
  def one(self, engine, *, prompt=b"a", chat=False, opened=False, **how):
    news = _run(engine, _requests(prompt, **how), chat=chat, opened=opened)
    done = news[-1].done
    self.assertEqual("".join(item.part.answer for item in news), done.text)
    self.assertEqual(
      "".join(item.part.reasoning for item in news), done.reasoning
    )
    self.assertEqual(sum(item.drawn for item in news), len(done.tokens))
    self.assertTrue(all(item.done is None for item in news[:-1]))
    return done

  def test_until_the_model_ends(self):
    done = self.one(_engine("né"))
    self.assertEqual(done.text, "né")
    self.assertEqual(done.tokens, [*"né".encode(), _EOS])
    self.assertEqual(done.logprobs, [-token / 10 for token in done.tokens])
    self.assertEqual((done.end, done.finish_reason), ("model", "stop"))

  def test_a_stop_token(self):
    done = self.one(_engine("abc"), stop_tokens=(98,))
    self.assertEqual((done.text, done.end), ("ab", "model"))

  def test_until_there_are_enough(self):
    done = self.one(_engine("abcdef"), max_new_tokens=3)
    self.assertEqual((done.text, done.end), ("abc", "max_new_tokens"))
    self.assertEqual(done.finish_reason, "length")

  def test_until_the_context_is_full(self):
    done = self.one(_engine("abcdef", context=6), prompt=b"xy")
    self.assertEqual((done.text, done.end), ("abcd", "context"))
    self.assertEqual(done.finish_reason, "length")

  def test_half_a_character_at_the_end(self):
    done = self.one(_engine("aé"), max_new_tokens=2)
    self.assertEqual(done.text, "a\ufffd")

  @parameterized.parameters(1, 2, 3, 16)
  def test_a_stop_string(self, chunk):
    engine = _engine("one END two", chunk=chunk)
    done = self.one(engine, stop=("END",))
    self.assertEqual(done.text, "one ")
    self.assertEqual(done.tokens, list(b"one END"))
    self.assertLen(done.logprobs, 7)
    self.assertEqual((done.end, done.finish_reason), ("stop_string", "stop"))
    self.assertFalse(engine.busy)
    self.assertEqual(engine.cancelled, [0] if chunk < 12 else [])

  def test_reasoning(self):
    done = self.one(_engine("why\n</think>\n\nso"), chat=True, opened=True)
    self.assertEqual((done.reasoning, done.text), ("why", "so"))
    done = self.one(_engine("<think>why</think>so"))
    self.assertEqual(done.text, "<think>why</think>so")

  def test_many_side_by_side(self):
    answers = {97: "first", 98: "2", 99: "third"}
    engine = fake_engine.FakeEngine(
      lambda prompt: [*answers[prompt[0]].encode(), _EOS], eos=_EOS
    )
    news = _run(engine, _requests(b"a", b"b", b"c"))
    done = {item.index: item.done.text for item in news if item.done}
    self.assertEqual(done, {0: "first", 1: "2", 2: "third"})
    self.assertEqual([i.index for i in news if i.done], [1, 0, 2])

  def test_very_many_do_not_all_wait_in_the_engine(self):
    engine = _engine("abc")
    news = continuation.run(engine, _BYTE, _requests(*[b"a"] * 1000))
    with contextlib.closing(news):
      next(news)
      self.assertLess(len(engine.requests), 300)
      self.assertEqual(sum(bool(item.done) for item in news), 1000)

  def test_who_stops_early_takes_the_rest_back(self):
    engine = _engine("abcdef")
    news = continuation.run(engine, _BYTE, _requests(b"a", b"b", b"c"))
    with contextlib.closing(news):
      next(news)
      self.assertTrue(engine.busy)
    self.assertFalse(engine.busy)
    self.assertEqual(engine.cancelled, [0, 1, 2])


if __name__ == "__main__":
  absltest.main()
