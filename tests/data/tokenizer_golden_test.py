"""The files of a trained tokenizer, read by Hugging Face transformers."""

import pathlib

from absl.testing import absltest
import transformers

from dsx.data import tokenizer_training
from dsx.data import vocab

_TEXT = "def f(x):\n  return x + 123456\n\nprint(f(2), '日本語');\n"


class TransformersTest(absltest.TestCase):
  def test_same_ids_and_same_special_tokens(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    trained = tokenizer_training.train([_TEXT] * 20, vocab_size=512)
    vocabulary = vocab.load(tokenizer_training.save(trained, folder))
    found = transformers.AutoTokenizer.from_pretrained(str(folder))
    self.assertLen(found, vocabulary.size)
    self.assertEqual(found.eos_token_id, vocabulary.special["eos"])
    self.assertEqual(found.pad_token_id, vocabulary.special["pad"])
    for text in (_TEXT, "Ω – été\r\n\n  x  \t", ""):
      ids = found.encode(text, add_special_tokens=False)
      self.assertEqual(ids, vocabulary.encode(text))
      self.assertEqual(found.decode(ids), vocabulary.decode(ids))


if __name__ == "__main__":
  absltest.main()
