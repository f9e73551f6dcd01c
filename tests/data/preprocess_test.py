"""Fill-in-the-middle, splitting of tokens, and what they are seeded by."""

import pathlib

from absl.testing import parameterized
import numpy as np

from dsx.data import preprocess
from dsx.data import tokenizer_training
from dsx.data import vocab

_TEXT = "def f(x):\n  return x + 1\n\nprint(f(2))\n"


def _bpe(folder: pathlib.Path) -> vocab.Vocabulary:
  """A vocabulary with tokens such as '):\\n' and ')\\n'."""
  trained = tokenizer_training.train([_TEXT] * 50, vocab_size=320)
  return vocab.load(tokenizer_training.save(trained, folder))


class UniformTest(parameterized.TestCase):
  def test_numbers_never_change(self):
    # Every prepared data set depends on these.
    found = preprocess.uniform(preprocess.draws(0, "text", "fim"), 3)
    np.testing.assert_allclose(
      found,
      [0.7893746517586416, 0.35639312497949993, 0.8549549647188472],
      rtol=0,
      atol=1e-15,
    )

  def test_are_uniform(self):
    found = preprocess.uniform(preprocess.draws(1, "text", "x"), 100_000)
    self.assertBetween(found.min(), 0, 1e-3)
    self.assertBetween(found.max(), 1 - 1e-3, 1)
    self.assertAlmostEqual(found.mean(), 0.5, delta=0.005)

  def test_seed_text_and_purpose_count(self):
    keys = [(0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y")]
    found = {preprocess.uniform(preprocess.draws(*key), 1)[0] for key in keys}
    self.assertLen(found, 4)


class FillInMiddleTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.vocabulary = vocab.ByteVocabulary()

  def test_order_is_prefix_suffix_middle(self):
    special = self.vocabulary.special
    parts = preprocess.fill_in_middle(_TEXT, self.vocabulary, rate=1.0, seed=0)
    begin, prefix, hole, suffix, end, middle = parts
    self.assertEqual(
      (begin, hole, end),
      (special["fim_begin"], special["fim_hole"], special["fim_end"]),
    )
    self.assertEqual(prefix + middle + suffix, _TEXT)

  def test_literal_tokens_of_the_report(self):
    encode = preprocess.Preprocessor(
      self.vocabulary, fim_rate=1.0, split_rate=0, seed=0
    )
    shown = self.vocabulary.decode(encode(_TEXT), specials=True)
    self.assertRegex(
      shown,
      r"(?s)^<｜begin▁of▁sentence｜><｜fim▁begin｜>.*<｜fim▁hole｜>.*"
      r"<｜fim▁end｜>.*<｜end▁of▁sentence｜>$",
    )

  def test_rate(self):
    texts = [f"document {i}" for i in range(5000)]
    count = sum(
      len(preprocess.fill_in_middle(t, self.vocabulary, rate=0.1, seed=0)) > 1
      for t in texts
    )
    self.assertBetween(count, 400, 600)

  def test_cuts_reach_everywhere_and_never_inside_a_character(self):
    lengths = set()
    for seed in range(300):
      parts = preprocess.fill_in_middle(
        "日本語", self.vocabulary, rate=1.0, seed=seed
      )
      for part in parts[1::2]:
        part.encode("utf-8")
      lengths.add(tuple(len(part) for part in parts[1::2]))
    # (prefix, suffix, middle) with lengths that sum to 3, empty parts too.
    self.assertLen(lengths, 10)

  def test_depends_on_the_document_alone(self):
    texts = [f"document {i}" for i in range(200)]
    one = preprocess.Preprocessor(
      self.vocabulary, fim_rate=0.5, split_rate=0, seed=3
    )
    other = preprocess.Preprocessor(
      self.vocabulary, fim_rate=0.5, split_rate=0, seed=3
    )
    forwards = {text: one(text).tolist() for text in texts}
    backwards = {text: other(text).tolist() for text in reversed(texts)}
    self.assertEqual(forwards, backwards)

  def test_needs_its_tokens(self):
    self.vocabulary.special.pop("fim_hole")
    with self.assertRaisesRegex(
      ValueError, r"Data.fim_rate: got 0.1, .* lacks \['fim_hole'\]"
    ):
      preprocess.Preprocessor(
        self.vocabulary, fim_rate=0.1, split_rate=0, seed=0
      )


class SplitLineBreaksTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.vocabulary = _bpe(pathlib.Path(self.create_tempdir().full_path))

  @parameterized.parameters(
    (b".\n", True),
    (b");\n\n", True),
    (b" }\r\n", True),
    ("。\n".encode(), True),
    (b"\n", False),
    (b"a\n", False),
    (b" \n", False),
    (b".", False),
    (b"\n.", False),
    (b"", False),
    (b"\x80.\n", False),
  )
  def test_which_tokens_are_split(self, piece, expected):
    self.assertEqual(preprocess.joins_line_break(piece), expected)

  def test_parts_are_the_same_bytes(self):
    parts = preprocess.line_break_parts(self.vocabulary)
    self.assertNotEmpty(parts)
    for token, ids in parts.items():
      self.assertGreater(len(ids), 1)
      pieces = [self.vocabulary.piece(i) for i in ids]
      self.assertEqual(b"".join(pieces), self.vocabulary.piece(token))
      self.assertFalse(any(map(preprocess.joins_line_break, pieces)))

  @parameterized.parameters(0.0, 0.3, 1.0)
  def test_rate(self, rate):
    encode = preprocess.Preprocessor(
      self.vocabulary, fim_rate=0, split_rate=rate, seed=0
    )
    text = _TEXT * 500
    tokens = encode(text)
    parts = preprocess.line_break_parts(self.vocabulary)
    whole = np.array(self.vocabulary.encode(text))
    joined = np.isin(whole, list(parts)).sum()
    left = np.isin(tokens, list(parts)).sum()
    self.assertGreater(joined, 500)
    self.assertAlmostEqual(left / joined, 1 - rate, delta=0.05)
    self.assertEqual(self.vocabulary.decode(tokens), text)
    self.assertEqual(tokens.dtype, np.int32)

  def test_bytes_have_nothing_to_split(self):
    self.assertEmpty(preprocess.line_break_parts(vocab.ByteVocabulary()))
