"""Conversations become the published templates, token by token."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st

from dsx.data import chat
from dsx.data import special_tokens
from dsx.data import vocab
from tests.inference import pieces

_BYTE = vocab.ByteVocabulary()
_ALL = special_tokens.STRINGS
_TALK = (
  ("system", "Be brief."),
  ("user", "Hi"),
  ("assistant", "<think>\nA greeting.\n</think>\n\nHello."),
  ("user", "2+2?"),
)


def _messages(*said):
  return [{"role": role, "content": content} for role, content in said]


def _text(vocabulary, *said, **more):
  tokens = chat.encode(vocabulary, _messages(*said), **more)
  return vocabulary.decode(tokens, specials=True)


class ChatTest(parameterized.TestCase):
  def bpe(self, without=()):
    folder = pathlib.Path(self.create_tempdir().full_path)
    return vocab.load(pieces.tokenizer(folder, "user", without=without))

  def test_r1(self):
    for vocabulary in (_BYTE, self.bpe()):
      self.assertEqual(
        _text(vocabulary, *_TALK),
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>\n\nHello."
        "<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜><think>\n",
      )

  def test_without_reasoning(self):
    self.assertEqual(
      _text(_BYTE, *_TALK, think=False),
      "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>"
      "\n\nHello.<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜></think>",
    )

  def test_a_vocabulary_without_tags(self):
    vocabulary = self.bpe(without=("think", "/think"))
    plain = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>"
    question = ("user", "Hi")
    self.assertEqual(_text(vocabulary, question, think=False), plain)
    self.assertEqual(_text(vocabulary, question), plain + "<think>\n")

  def test_the_tags_are_tokens(self):
    special = _BYTE.special
    tokens = chat.encode(_BYTE, _messages(("user", "a")))
    self.assertEqual(
      tokens,
      [
        special["bos"],
        special["user"],
        97,
        special["assistant"],
        special["think"],
        10,
      ],
    )

  def test_system_messages_come_first_wherever_they_stand(self):
    self.assertEqual(
      _text(_BYTE, ("user", "a"), ("system", "b"), ("system", "c")),
      "<｜begin▁of▁sentence｜>b\n\nc<｜User｜>a<｜Assistant｜><think>\n",
    )

  def test_a_user_may_speak_twice(self):
    self.assertEqual(
      _text(_BYTE, ("user", "a"), ("user", "b")),
      "<｜begin▁of▁sentence｜><｜User｜>a<｜User｜>b<｜Assistant｜><think>\n",
    )

  def test_of_earlier_answers_only_what_follows_the_last_tag_is_kept(self):
    for said, kept in (
      ("a</think>b</think>c", "c"),
      ("<think>never closed", "<think>never closed"),
      ("thought</think>", ""),
      ("", ""),
    ):
      text = _text(_BYTE, ("user", "x"), ("assistant", said), ("user", "y"))
      between = text.split("<｜Assistant｜>")[1]
      self.assertEqual(between, kept + "<｜end▁of▁sentence｜><｜User｜>y")

  @hypothesis.settings(deadline=None)
  @hypothesis.given(
    st.lists(
      st.lists(
        st.sampled_from([*_ALL.values(), "<", "｜", "think>", "a", " "]),
        min_size=1,
        max_size=6,
      ),
      min_size=3,
      max_size=3,
    ),
    st.booleans(),
  )
  def test_no_text_makes_a_special_token(self, words, think):
    system, first, second = map("".join, words)
    said = _messages(
      ("system", system), ("user", first), ("assistant", second), ("user", "z")
    )
    vocabulary = _tokenizer()
    special = vocabulary.special
    found = chat.encode(vocabulary, said, think=think)
    ids = [token for token in found if token in set(special.values())]
    tag = [special["think" if think else "/think"]]
    between = [] if think else tag
    expected = ["bos", "user", "assistant", "eos", "user", "assistant"]
    expected = [special[name] for name in expected]
    self.assertEqual(ids, expected[:3] + between + expected[3:] + tag)
    text = vocabulary.decode(found)
    self.assertStartsWith(text, system + first)

  @parameterized.parameters(
    ([], "messages=[]: expected at least one user's; ask something"),
    (
      [("system", "a")],
      "messages=['system']: expected at least one user's; ask something",
    ),
    (
      [("tool", "a")],
      "messages[0].role='tool': expected one of system, user, assistant; "
      "change it",
    ),
    (
      [("user", "")],
      "messages[0].content='': expected text; ask something",
    ),
    (
      [("user", None)],
      "messages[0].content=None: expected text; give a string",
    ),
    (
      [("user", "a"), ("user", "b\ud800")],
      "messages[1].content: text: character 1 is a lone surrogate "
      "('\\ud800'), expected Unicode text that UTF-8 can hold; replace or drop "
      "that character",
    ),
    (
      [("assistant", "a"), ("user", "b")],
      "messages[0].role='assistant': expected a user's message before an "
      "answer; add it, or join the two answers",
    ),
    (
      [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")],
      "messages[2].role='assistant': expected a user's message before an "
      "answer; add it, or join the two answers",
    ),
    (
      [("user", "a"), ("assistant", "b")],
      "messages[1].role='assistant': expected a user's message as the last; "
      "ask something",
    ),
  )
  def test_bad_conversations(self, said, message):
    with self.assertRaises(ValueError) as caught:
      chat.encode(_BYTE, _messages(*said))
    self.assertEqual(str(caught.exception), message)

  def test_what_is_no_message(self):
    with self.assertRaisesRegex(ValueError, r"messages\[0\]='hi': expected a"):
      chat.encode(_BYTE, ["hi"])

  @parameterized.parameters("bos", "user", "assistant")
  def test_a_vocabulary_of_no_chat_model(self, name):
    vocabulary = self.bpe(without=(name,))
    with self.assertRaises(ValueError) as caught:
      chat.encode(vocabulary, _messages(("user", "a")))
    self.assertEqual(
      str(caught.exception),
      f"vocabulary {vocabulary.name!r} has no token {_ALL[name]!r}: expected "
      "that of a chat model; continue a plain prompt instead",
    )


_cached = []


def _tokenizer():
  """One tokenizer for all examples of a property."""
  if not _cached:
    folder = pathlib.Path(absltest.TEST_TMPDIR.value) / "chat_test"
    _cached.append(vocab.load(pieces.tokenizer(folder, "<think>", "user")))
  return _cached[0]


if __name__ == "__main__":
  absltest.main()
