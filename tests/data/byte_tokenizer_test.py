"""Other programs give a text the ids that the byte vocabulary gives it."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import tokenizers

from dsx.data import byte_tokenizer
from dsx.data import vocab

_TEXTS = (
  "def f(x):\n\treturn  x\r\n",
  "Café, 北京, \U0001f40d and \x00\x7f",
  " leading and trailing ",
  "don't split 1234567 here",
  "",
)


class ByteTokenizerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    for name, text in byte_tokenizer.files(64).items():
      (self.folder / name).write_text(text)
    self.bytes = vocab.ByteVocabulary()

  @parameterized.parameters(*_TEXTS)
  def test_ids_are_bytes(self, text):
    tokenizer = tokenizers.Tokenizer.from_file(
      str(self.folder / "tokenizer.json")
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    self.assertEqual(ids, list(text.encode()))
    self.assertEqual(tokenizer.decode(ids), text)
    with_bos = tokenizer.encode(text).ids
    self.assertEqual(with_bos, [self.bytes.special["bos"], *ids])

  def test_every_special_token_has_its_id(self):
    tokenizer = tokenizers.Tokenizer.from_file(
      str(self.folder / "tokenizer.json")
    )
    for token in self.bytes.special.values():
      string = self.bytes.decode([token], specials=True)
      self.assertEqual(tokenizer.token_to_id(string), token)

  @parameterized.parameters(*_TEXTS, "<think> is text")
  def test_read_back_by_our_own_loader(self, text):
    found = vocab.load(self.folder)
    self.assertEqual(found.special, self.bytes.special)
    self.assertEqual(found.encode(text), self.bytes.encode(text))
    everything = [*range(256), *self.bytes.special.values()]
    for token in everything:
      self.assertEqual(found.piece(token), self.bytes.piece(token))


if __name__ == "__main__":
  absltest.main()
