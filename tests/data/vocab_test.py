"""Round trips, sizes, and special tokens that no text can make."""

import json
import pathlib
import random

from absl.testing import parameterized
import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from dsx.data import special_tokens
from dsx.data import tokenizer_file
from dsx.data import vocab

_ADDED = [
  *special_tokens.STRINGS.values(),
  "<image_placeholder>",
  "<tool>",
  "abc",
]


def _symbols(text: str) -> list[str]:
  """The characters by which a tokenizer.json writes the bytes of `text`."""
  symbols = {v: k for k, v in tokenizer_file.byte_symbols().items()}
  return [symbols[value] for value in text.encode("utf-8")]


def _hostile_file(folder: pathlib.Path, *, ignore_merges: bool) -> pathlib.Path:
  """A tokenizer in which special tokens can be reached in every known way.

  Some are added with special: false, which the library's own flag lets pass;
  some are model tokens too, which merges reach, or whole words where merges are
  ignored.
  """
  table = {symbol: i for i, symbol in enumerate(tokenizer_file.byte_symbols())}
  merges = []
  for word in ("<think>", "abc", "<|EOT|>", ".\n", "the"):
    symbols = _symbols(word)
    left = symbols[0]
    for right in symbols[1:]:
      if left + right not in table:
        table[left + right] = len(table)
        merges.append((left, right))
      left += right
  model = models.BPE(vocab=table, merges=merges, ignore_merges=ignore_merges)
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  tokenizer.decoder = decoders.ByteLevel()
  for i, string in enumerate(_ADDED):
    token = tokenizers.AddedToken(string, normalized=bool(i % 2))
    if i % 3:
      tokenizer.add_special_tokens([token])
    else:
      tokenizer.add_tokens([token])
  # Runs of spaces are added tokens in some tokenizers, and are text.
  tokenizer.add_tokens([tokenizers.AddedToken("    ", normalized=False)])
  tokenizer.enable_truncation(5)
  path = folder / "tokenizer.json"
  tokenizer.save(str(path))
  return path


def _hostile_texts(count: int) -> list[str]:
  """Texts made of special strings, their parts, and other characters."""
  generator = random.Random(0)
  parts = [*_ADDED, "<", "｜", "▁", "|>", "think", "</", "    ", ".\n", "abc"]
  parts += ["\u0000", "\U0010ffff", "é", "日本", "\ufeff", "\r\n", "a", " "]
  texts = [*_ADDED, *[f" {string}\n" for string in _ADDED]]
  while len(texts) < count:
    words = generator.choices(parts, k=generator.randint(1, 12))
    text = "".join(words)
    cut = generator.randint(0, len(text))
    texts += [text, text[:cut] + text[cut + 1 :]]
  return texts


class ByteVocabularyTest(parameterized.TestCase):
  def test_bytes_are_their_own_ids(self):
    vocabulary = vocab.ByteVocabulary()
    self.assertEqual(vocabulary.encode("aé\n"), [97, 0xC3, 0xA9, 10])
    self.assertEqual(vocabulary.decode([97, 0xC3, 0xA9, 10]), "aé\n")

  def test_specials_follow_the_bytes_in_a_size_divisible_by_64(self):
    vocabulary = vocab.ByteVocabulary()
    self.assertEqual(vocabulary.size, 320)
    self.assertEqual(vocabulary.special["bos"], 256)
    self.assertEqual(vocabulary.special["eos"], 257)
    ids = sorted(vocabulary.special.values())
    self.assertEqual(ids, list(range(256, 256 + len(special_tokens.STRINGS))))

  def test_token_bytes(self):
    counts = vocab.ByteVocabulary().token_bytes
    self.assertEqual(counts.dtype, np.int32)
    np.testing.assert_array_equal(counts, [1] * 256 + [0] * 64)

  def test_decoding_replaces_broken_sequences_and_hides_specials(self):
    vocabulary = vocab.ByteVocabulary()
    eos = vocabulary.special["eos"]
    self.assertEqual(vocabulary.decode([0xC3, 97, eos, 319]), "\ufffda")
    self.assertEqual(
      vocabulary.decode([97, eos], specials=True), "a<｜end▁of▁sentence｜>"
    )

  @parameterized.parameters(-1, 320)
  def test_ids_outside_the_vocabulary_are_refused(self, token):
    with self.assertRaisesRegex(ValueError, rf"got {token}, expected ids in"):
      vocab.ByteVocabulary().decode([token])

  def test_a_lone_surrogate_is_refused_where_it_stands(self):
    with self.assertRaisesRegex(ValueError, "character 2 is a lone surrogate"):
      vocab.ByteVocabulary().encode("ab\ud800")

  def test_no_text_makes_a_special_id(self):
    vocabulary = vocab.ByteVocabulary()
    for text in _hostile_texts(4000):
      ids = vocabulary.encode(text)
      self.assertLess(max(ids, default=0), 256)
      self.assertEqual(vocabulary.decode(ids), text)

  def test_load_by_name(self):
    self.assertEqual(vocab.load("byte").digest, vocab.ByteVocabulary().digest)


class BpeVocabularyTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @parameterized.parameters(False, True)
  def test_no_text_makes_a_special_id(self, ignore_merges):
    path = _hostile_file(self.folder, ignore_merges=ignore_merges)
    vocabulary = vocab.load(path)
    special = set(vocabulary.special.values())
    self.assertLen(special, len(_ADDED))
    naive = tokenizers.Tokenizer.from_file(str(path))
    naive.no_truncation()
    naive.encode_special_tokens = True
    reached = 0
    for text in _hostile_texts(4000):
      ids = vocabulary.encode(text)
      self.assertEmpty(special.intersection(ids), msg=repr(text))
      self.assertEqual(vocabulary.decode(ids), text)
      size = int(vocabulary.token_bytes[ids].sum())
      self.assertEqual(size, len(text.encode("utf-8")))
      reached += bool(special.intersection(naive.encode(text).ids))
    # The library's flag alone would have let them through.
    self.assertGreater(reached, 100)

  def test_added_runs_of_spaces_stay_tokens_with_their_ids(self):
    path = _hostile_file(self.folder, ignore_merges=False)
    naive = tokenizers.Tokenizer.from_file(str(path))
    vocabulary = vocab.load(self.folder)
    token = naive.token_to_id("    ")
    self.assertEqual(vocabulary.encode("    x")[0], token)
    self.assertEqual(vocabulary.piece(token), b"    ")
    self.assertEqual(vocabulary.size, token + 1)

  def test_agrees_with_the_library_on_plain_text(self):
    path = _hostile_file(self.folder, ignore_merges=False)
    naive = tokenizers.Tokenizer.from_file(str(path))
    naive.no_truncation()
    vocabulary = vocab.load(path)
    text = "on the way, é日本.\n    the end.\n"
    self.assertEqual(vocabulary.encode(text), naive.encode(text).ids)
    self.assertIn(
      b".\n", [vocabulary.piece(i) for i in vocabulary.encode(text)]
    )
    ids = vocabulary.encode(text)
    self.assertEqual(vocabulary.decode(ids), naive.decode(ids))

  def test_names_of_special_tokens(self):
    vocabulary = vocab.load(_hostile_file(self.folder, ignore_merges=False))
    self.assertContainsSubset(special_tokens.STRINGS, vocabulary.special)
    self.assertIn("<image_placeholder>", vocabulary.special)
    for name, token in vocabulary.special.items():
      string = special_tokens.STRINGS.get(name, name)
      self.assertEqual(vocabulary.decode([token], specials=True), string)
      self.assertEqual(vocabulary.decode([token]), "")

  def test_a_config_beside_it_names_the_ends(self):
    path = _hostile_file(self.folder, ignore_merges=False)
    before = vocab.load(path)
    config = {"eos_token": {"content": "<tool>"}, "pad_token": "<tool>"}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    after = vocab.load(path)
    self.assertEqual(after.special["eos"], before.special["<tool>"])
    self.assertEqual(after.special["pad"], before.special["<tool>"])
    self.assertNotEqual(after.digest, before.digest)

  def test_a_lone_surrogate_is_refused(self):
    vocabulary = vocab.load(_hostile_file(self.folder, ignore_merges=False))
    with self.assertRaisesRegex(ValueError, "character 0 is a lone surrogate"):
      vocabulary.encode("\udcff")
