"""How text is cut before merging, and the tokenizer that comes of it."""

import json
import pathlib
import re

from absl.testing import parameterized

from dsx.data import pipeline
from dsx.data import special_tokens
from dsx.data import tokenizer_training
from dsx.data import vocab

_TEXT = "def f(x):\n  return x + 123456\n\nprint(f(2), '日本語');\n"


class PretokenizerTest(parameterized.TestCase):
  @parameterized.parameters(
    ("1234567", ["123", "456", "7"]),
    ("x=3.14159", ["x", "=", "3", ".", "141", "59"]),
    ("日本語ですbon", ["日本語です", "bon"]),
    ("a.append(b)\n", ["a", ".append", "(b", ")\n"]),
    ("f(x);\r\n\n", ["f", "(x", ");\r\n\n"]),
    ("if x:\n    y\n", ["if", " x", ":\n", "   ", " y", "\n"]),
    ("  \n\n x", ["  \n\n", " x"]),
    ("don't stop", ["don", "'t", " stop"]),
    ("été à\tla", ["été", " à", "\tla"]),
    ("a  -- b", ["a", " ", " --", " b"]),
  )
  def test_cuts(self, text, expected):
    pieces = tokenizer_training.pretokenizer().pre_tokenize_str(text)
    found = [text[start:end] for _, (start, end) in pieces]
    self.assertEqual(found, expected)


class TrainTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def _trained(self, size: int = 512) -> vocab.Vocabulary:
    trained = tokenizer_training.train([_TEXT] * 20, vocab_size=size)
    return vocab.load(tokenizer_training.save(trained, self.folder))

  def test_size_is_exactly_what_was_asked_for(self):
    # The text runs out of pairs long before 2048: placeholders fill the rest.
    for size in (320, 512, 2048):
      vocabulary = self._trained(size)
      self.assertEqual(vocabulary.size, size)

  def test_special_tokens_are_where_they_should_be(self):
    vocabulary = self._trained()
    self.assertEqual(
      [vocabulary.special[name] for name in ("bos", "eos", "pad")], [0, 1, 2]
    )
    self.assertContainsSubset(special_tokens.STRINGS, vocabulary.special)

  def test_round_trip_and_merges(self):
    vocabulary = self._trained()
    ids = vocabulary.encode(_TEXT)
    self.assertEqual(vocabulary.decode(ids), _TEXT)
    self.assertLess(len(ids), len(_TEXT) / 2)
    self.assertIn(b"):\n", [vocabulary.piece(token) for token in ids])
    other = "\u0000 never seen: Ω\n"
    self.assertEqual(vocabulary.decode(vocabulary.encode(other)), other)

  def test_special_strings_in_the_text_are_learnt_as_text(self):
    string = special_tokens.STRINGS["eos"]
    trained = tokenizer_training.train([string * 50] * 20, vocab_size=384)
    vocabulary = vocab.load(tokenizer_training.save(trained, self.folder))
    ids = vocabulary.encode(string)
    self.assertNoCommonElements(ids, vocabulary.special.values())
    self.assertEqual(vocabulary.decode(ids), string)


class RunTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    lines = [json.dumps({"text": _TEXT + f"# {i}\n"}) for i in range(200)]
    (self.root / "a.jsonl").write_text("\n".join(lines))
    self.data = pipeline.Data(
      task="jsonl", sequence_length=8, files=(str(self.root / "*.jsonl"),)
    )

  def test_trains_on_a_corpus(self):
    training = tokenizer_training.TokenizerTraining(
      data=self.data, vocab_size=448
    )
    lines = []
    path = training.run(self.root / "out", report=lines.append)
    self.assertEqual(path, self.root / "out" / "tokenizer.json")
    self.assertEqual(vocab.load(path).size, 448)
    match = re.search(r"validation: ([\d.]+) bytes a token", "\n".join(lines))
    self.assertGreater(float(match[1]), 2)

  @parameterized.parameters(300, 256, 0)
  def test_refuses_sizes(self, size):
    with self.assertRaisesRegex(
      ValueError, f"vocab_size: got {size}, expected a multiple of 64"
    ):
      tokenizer_training.TokenizerTraining(data=self.data, vocab_size=size)
