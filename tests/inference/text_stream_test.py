"""Text comes in whole characters, and never a part of a stop string."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st

from dsx.data import vocab
from dsx.inference import text_stream
from tests.inference import pieces

_BYTE = vocab.ByteVocabulary()
_EOS = _BYTE.special["eos"]


def _streamed(vocabulary, tokens, stop=(), **more):
  """The pieces that a stream hands on, its end included."""
  stream = text_stream.TextStream(vocabulary, stop, **more)
  given = [stream.push(token) for token in tokens]
  given.append(stream.finish())
  return given, stream


def _cut(text: str, stop) -> str:
  """Brute force: the shortest beginning that ends with a stop string."""
  for end in range(1, len(text) + 1):
    ends = [len(s) for s in stop if text[:end].endswith(s)]
    if ends:
      return text[: end - max(ends)]
  return text


class TextStreamTest(parameterized.TestCase):
  def test_a_character_comes_when_it_is_whole(self):
    given, _ = _streamed(_BYTE, "né€".encode())
    self.assertEqual(given, ["n", "", "é", "", "", "€", ""])

  def test_broken_bytes_are_replaced_as_soon_as_they_are_certain(self):
    given, _ = _streamed(_BYTE, [0xE2, 0x82, 97, 0xFF, 0xC3])
    self.assertEqual(given, ["", "", "\ufffda", "\ufffd", "", "\ufffd"])

  def test_special_tokens_leave_no_trace_or_show(self):
    tokens = [97, _EOS, 98, 319]
    self.assertEqual(_streamed(_BYTE, tokens)[1].text, "ab")
    shown = _streamed(_BYTE, tokens, specials=True)[1].text
    self.assertEqual(shown, "a<｜end▁of▁sentence｜>b")

  @hypothesis.given(st.lists(st.integers(0, 319)), st.booleans())
  def test_joined_is_decode_of_the_whole(self, tokens, specials):
    given, stream = _streamed(_BYTE, tokens, specials=specials)
    self.assertEqual("".join(given), _BYTE.decode(tokens, specials=specials))
    self.assertEqual(stream.text, "".join(given))
    self.assertFalse(stream.stopped)

  @hypothesis.given(st.lists(st.binary(max_size=5), max_size=12))
  def test_joined_is_decode_of_the_whole_for_any_pieces(self, cut):
    vocabulary, tokens = pieces.vocabulary(cut)
    given, _ = _streamed(vocabulary, tokens)
    self.assertEqual("".join(given), vocabulary.decode(tokens))

  def test_a_stop_string_over_tokens_is_left_out(self):
    given, stream = _streamed(_BYTE, b"one\nEND two", ["\nEND"])
    self.assertEqual("".join(given), "one")
    # Nothing waits that cannot become a stop string.
    self.assertEqual(given[:3], ["o", "n", "e"])
    self.assertTrue(stream.stopped)

  def test_what_was_held_back_for_nothing_comes(self):
    given, stream = _streamed(_BYTE, b"\nEN-\nE", ["\nEND"])
    self.assertEqual(given, ["", "", "", "\nEN-", "", "", "\nE"])
    self.assertFalse(stream.stopped)

  @parameterized.parameters(
    ("aaab", ["aab"], "a"),  # overlaps itself
    ("ababac", ["abac"], "ab"),
    ("xab c", ["b", "ab c"], "xa"),  # the first to be complete
    ("xabc", ["bc", "abc", "c"], "x"),  # of those, the longest
    ("stop", ["stop"], ""),
    ("né.", ["é"], "n"),
    ("abc", [], "abc"),
  )
  def test_which_match_wins(self, text, stop, expected):
    for cut in ([text.encode()], [bytes([b]) for b in text.encode()]):
      vocabulary, tokens = pieces.vocabulary(cut)
      given, stream = _streamed(vocabulary, tokens, stop)
      self.assertEqual("".join(given), expected)
      self.assertEqual(stream.stopped, expected != text)

  @hypothesis.given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
  )
  def test_stop_strings_by_brute_force(self, cut, stop):
    vocabulary, tokens = pieces.vocabulary([part.encode() for part in cut])
    given, stream = _streamed(vocabulary, tokens, stop)
    text = "".join(cut)
    self.assertEqual("".join(given), _cut(text, stop))
    self.assertEqual(stream.stopped, any(s in text for s in stop))
    # No more is held back than may yet become a stop string.
    for i in range(len(given) - 1):
      seen, certain = "".join(cut[: i + 1]), "".join(given[: i + 1])
      if not any(s in seen for s in stop):
        held = seen[len(certain) :]
        self.assertTrue(not held or any(s.startswith(held) for s in stop))

  def test_nothing_comes_after_a_stop(self):
    stream = text_stream.TextStream(_BYTE, ["b"])
    self.assertEqual([stream.push(t) for t in b"abcb"], ["a", "", "", ""])
    self.assertEqual(stream.finish(), "")
    self.assertEqual(stream.text, "a")

  def test_tokens_of_a_trained_tokenizer(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    vocabulary = vocab.load(pieces.tokenizer(folder, "think", "the end"))
    text = "the end, é日本 think"
    tokens = vocabulary.encode(text)
    self.assertLess(len(tokens), len(text))
    self.assertEqual("".join(_streamed(vocabulary, tokens)[0]), text)

  @parameterized.parameters(-1, 320)
  def test_ids_outside_the_vocabulary_are_refused(self, token):
    stream = text_stream.TextStream(_BYTE)
    with self.assertRaisesRegex(ValueError, f"token {token}: expected ids in"):
      stream.push(token)

  @parameterized.parameters(("",), ("end",), (("a", ""),))
  def test_bad_stop_strings(self, stop):
    with self.assertRaisesRegex(ValueError, "stop=.*at least one character"):
      text_stream.TextStream(_BYTE, stop or [""])


if __name__ == "__main__":
  absltest.main()
