"""Reasoning and answer are told apart, however a reply is cut into tokens."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st

from dsx.data import vocab
from dsx.inference import thinking
from tests.inference import pieces

_BYTE = vocab.ByteVocabulary()
_THINK, _END = "<think>", "</think>"


def _tokens(text: str) -> list[int]:
  """The bytes of `text`; [ and ] stand for the tags that are tokens."""
  ids = {91: _BYTE.special["think"], 93: _BYTE.special["/think"]}
  return [ids.get(byte, byte) for byte in text.encode()]


def _whole(text: str, opened: bool) -> thinking.Part:
  """Reasoning and answer of a whole text with plain tags."""
  begun = text.lstrip()
  while begun.startswith(_THINK):
    opened, text = True, begun[len(_THINK) :]
    begun = text.lstrip()
  if not opened and begun.startswith(_END):
    return thinking.Part("", begun[len(_END) :].lstrip("\r\n"))
  if not opened:
    return thinking.Part("", text)
  reasoning, found, answer = text.partition(_END)
  if found and not reasoning.strip():
    reasoning = ""
  if not found:
    return thinking.Part(reasoning.lstrip("\r\n"), "")
  return thinking.Part(reasoning.strip("\r\n"), answer.lstrip("\r\n"))


class ThinkingTest(parameterized.TestCase):
  @parameterized.product(
    case=[
      ("[\nwhy\n]\n\nso", False, ("why", "so")),
      ("why\n]\n\nso", True, ("why", "so")),
      ("[\nwhy]so", True, ("why", "so")),  # opened twice
      ("[a\n\nb", False, ("a\n\nb", "")),  # never closes
      ("[a\n", False, ("a\n", "")),
      ("a\n", True, ("a\n", "")),
      ("no tags\n", False, ("", "no tags\n")),
      ("\n  \n", False, ("", "\n  \n")),
      ("  [why]so", False, ("why", "so")),
      ("[]\n\nso", False, ("", "so")),
      ("[\n\n]\n\nso", True, ("", "so")),
      ("]so", False, ("", "so")),
      ("[why]\n    code\n", False, ("why", "    code\n")),
      ("", False, ("", "")),
      ("", True, ("", "")),
    ],
    plain=[False, True],
  )
  def test_tags(self, case, plain):
    text, opened, expected = case
    if plain:
      text = text.replace("[", _THINK).replace("]", _END)
    found = thinking.split(_BYTE, _tokens(text), opened=opened)
    self.assertEqual(found, expected)

  @parameterized.parameters(
    # In an answer, and within the reasoning, tags are text or leave no trace.
    ("say <think>", False, ("", "say <think>")),
    ("a [b] c", False, ("", "a b c")),
    ("[a]b</think>c]d", False, ("a", "b</think>cd")),
    ("[a <think> b]c", False, ("a <think> b", "c")),
    ("a\n[b]c", True, ("a\nb", "c")),
    # Halves of tags.
    ("<thin", False, ("", "<thin")),
    ("[<thin</thin", False, ("<thin</thin", "")),
    ("<thi[b", False, ("", "<thib")),
    ("<thi]b", True, ("<thi", "b")),
    ("<thi[b]c", True, ("<thib", "c")),
    ("a\n</thi\n]b", True, ("a\n</thi", "b")),
  )
  def test_what_is_no_tag(self, text, opened, expected):
    found = thinking.split(_BYTE, _tokens(text), opened=opened)
    self.assertEqual(found, expected)

  @hypothesis.given(
    st.lists(
      st.sampled_from(
        [_THINK, _END, "<", "think", ">", "</", "\n", " ", "é", "ab"]
      ),
      max_size=14,
    ),
    st.booleans(),
    st.data(),
  )
  def test_plain_tags_over_tokens(self, words, opened, data):
    raw = "".join(words).encode()
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=8))
    cuts = [0, *sorted(cuts), len(raw)]
    parts = [raw[i:j] for i, j in zip(cuts, cuts[1:], strict=False)]
    vocabulary, tokens = pieces.vocabulary(parts)
    found = thinking.split(vocabulary, tokens, opened=opened)
    self.assertEqual(found, _whole(raw.decode(), opened))

  def test_it_streams(self):
    reply = thinking.Reply(_BYTE, opened=True)
    seen = []
    for token in _tokens("\nhm\n\nok\n]\n\nyes"):
      part = reply.push(token)
      seen.append((part.reasoning, part.answer, reply.thinking))
    self.assertEqual(
      seen,
      [
        ("", "", True),
        ("h", "", True),
        ("m", "", True),
        ("", "", True),
        ("", "", True),
        ("\n\no", "", True),
        ("k", "", True),
        ("", "", True),
        ("", "", False),
        ("", "", False),
        ("", "", False),
        ("", "y", False),
        ("", "e", False),
        ("", "s", False),
      ],
    )
    self.assertEqual(reply.finish(), ("", ""))
    self.assertEqual((reply.reasoning, reply.answer), ("hm\n\nok", "yes"))

  @parameterized.parameters(
    ("[wait]one END two", ("wait", "one ")),
    ("[wait END more]one", ("wait ", "")),
    ("[wait EN]D one", ("wait EN", "D one")),  # a tag that is a token parts
    ("EN END", ("", "EN ")),
  )
  def test_stop_strings(self, text, expected):
    reply = thinking.Reply(_BYTE, ["END"])
    for token in _tokens(text):
      reply.push(token)
    reply.finish()
    self.assertEqual((reply.reasoning, reply.answer), expected)
    self.assertEqual(reply.stopped, text != "[wait EN]D one")

  def test_a_vocabulary_without_tags(self):
    folder = self.create_tempdir().full_path
    vocabulary = vocab.load(
      pieces.tokenizer(
        pathlib.Path(folder), "hink>", without=("think", "/think")
      )
    )
    tokens = vocabulary.encode("<think>\nwhy</think>so")
    self.assertEqual(thinking.split(vocabulary, tokens), ("why", "so"))

  def test_broken_characters_before_a_tag(self):
    tokens = [_BYTE.special["think"], 0xC3, _BYTE.special["/think"], 97]
    self.assertEqual(thinking.split(_BYTE, tokens), ("\ufffd", "a"))

  def test_ids_outside_the_vocabulary_are_refused(self):
    with self.assertRaisesRegex(ValueError, "token 320: expected ids in"):
      thinking.split(_BYTE, [320])


if __name__ == "__main__":
  absltest.main()
