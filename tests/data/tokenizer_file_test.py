"""What a tokenizer.json may be, and what is said when it is something else."""

import copy
import json
import pathlib

from absl.testing import parameterized

from dsx.data import special_tokens
from dsx.data import tokenizer_file

_GOOD = {
  "added_tokens": [
    {"id": 256, "content": special_tokens.STRINGS["eos"], "special": True}
  ],
  "model": {
    "type": "BPE",
    "vocab": {s: i for i, s in enumerate(tokenizer_file.byte_symbols())},
    "merges": [],
  },
}


def _changed(*path, value) -> dict:
  """The good description with one place changed."""
  spec = copy.deepcopy(_GOOD)
  place = spec
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  return spec


class TokenizerFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = folder / "tokenizer.json"

  def test_byte_symbols_are_the_published_ones(self):
    symbols = tokenizer_file.byte_symbols()
    self.assertEqual(sorted(symbols.values()), list(range(256)))
    self.assertEqual(symbols["Ġ"], 0x20)  # as every such file writes a space
    self.assertEqual(symbols["Ċ"], 0x0A)
    self.assertEqual(symbols["a"], 0x61)

  def test_reads_pieces_by_id(self):
    self.path.write_text(json.dumps(_GOOD))
    parsed = tokenizer_file.read(self.path)
    self.assertLen(parsed.pieces, 257)
    self.assertEqual(set(parsed.pieces[:256]), {bytes([v]) for v in range(256)})
    self.assertEqual(parsed.pieces[256], b"")
    self.assertEqual(parsed.special, {"eos": 256, "pad": 256})

  @parameterized.named_parameters(
    (
      "model_type",
      _changed("model", "type", value="WordPiece"),
      "a model of type 'WordPiece', expected a byte-level BPE",
    ),
    (
      "byte_missing",
      _changed("model", "vocab", value={"a": 0}),
      "lacks 255 of the 256 byte symbols",
    ),
    (
      "byte_taken_by_a_special",
      _changed(
        "added_tokens",
        value=[{"id": 65, "content": "a", "special": True}],
      ),
      "lacks 2 of the 256 byte symbols",
    ),
    (
      "no_end",
      _changed("added_tokens", value=[]),
      "has no end-of-sequence token, expected '<｜end▁of▁sentence｜>'",
    ),
    (
      "huge_id",
      _changed("model", "vocab", "a", value=10**12),
      "has the id 1000000000000, expected ints in",
    ),
    (
      "id_of_wrong_type",
      _changed("model", "vocab", "a", value="x"),
      "has the id 'x', expected ints in",
    ),
    ("no_model", {"added_tokens": []}, "is not laid out as a Hugging Face"),
    ("a_list", [1, 2], "is not laid out as a Hugging Face"),
    (
      "added_without_content",
      _changed("added_tokens", value=[{"id": 1}]),
      "is not laid out as a Hugging Face",
    ),
  )
  def test_refuses(self, spec, message):
    self.path.write_text(json.dumps(spec))
    with self.assertRaisesRegex(ValueError, message) as caught:
      tokenizer_file.read(self.path)
    self.assertStartsWith(str(caught.exception), "vocabulary: ")
    self.assertNotIn("\n", str(caught.exception))

  def test_refuses_what_is_not_json(self):
    self.path.write_bytes(b"\xff{")
    with self.assertRaisesRegex(ValueError, "is not JSON"):
      tokenizer_file.read(self.path)

  def test_says_how_to_get_a_file_that_is_missing(self):
    with self.assertRaisesRegex(
      ValueError, "cannot read .*tokenizer.json.*experiments.train_tokenizer"
    ):
      tokenizer_file.read(self.path)
