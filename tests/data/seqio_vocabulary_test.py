"""The adaptor says in seqio's terms what the vocabulary says."""

import pathlib

from absl.testing import parameterized
import tensorflow as tf

from dsx.data import seqio_vocabulary
from dsx.data import tokenizer_training
from dsx.data import vocab

_TEXT = "def f(x):\n  return '日本語<think>'\n"


class SeqioVocabularyTest(parameterized.TestCase):
  def _vocabulary(self, kind: str) -> vocab.Vocabulary:
    if kind == "byte":
      return vocab.ByteVocabulary()
    trained = tokenizer_training.train([_TEXT] * 10, vocab_size=384)
    folder = pathlib.Path(self.create_tempdir().full_path)
    return vocab.load(tokenizer_training.save(trained, folder))

  @parameterized.parameters("byte", "bpe")
  def test_python_and_tensorflow_agree(self, kind):
    vocabulary = self._vocabulary(kind)
    adapted = seqio_vocabulary.SeqioVocabulary(vocabulary)
    ids = adapted.encode(_TEXT)
    self.assertEqual(ids, vocabulary.encode(_TEXT))
    in_graph = tf.function(adapted.encode_tf)(tf.constant(_TEXT))
    self.assertEqual(in_graph.dtype, tf.int32)
    self.assertEqual(in_graph.numpy().tolist(), ids)
    self.assertEqual(adapted.decode(ids), _TEXT)
    back = adapted.decode_tf(tf.constant([ids, ids]))
    self.assertEqual([text.decode() for text in back.numpy()], [_TEXT] * 2)
    self.assertEqual(
      adapted.decode_tf(tf.constant(ids)).numpy().decode(), _TEXT
    )

  def test_special_ids_and_size(self):
    adapted = seqio_vocabulary.SeqioVocabulary(vocab.ByteVocabulary())
    self.assertEqual(
      (adapted.bos_id, adapted.eos_id, adapted.pad_id, adapted.unk_id),
      (256, 257, 258, None),
    )
    self.assertEqual(adapted.vocab_size, 320)

  def test_decoding_stops_at_the_end(self):
    adapted = seqio_vocabulary.SeqioVocabulary(vocab.ByteVocabulary())
    self.assertEqual(adapted.decode([97, 257, 98]), "a")

  def test_equality_is_of_content(self):
    byte = seqio_vocabulary.SeqioVocabulary(vocab.ByteVocabulary())
    again = seqio_vocabulary.SeqioVocabulary(vocab.ByteVocabulary())
    bpe = seqio_vocabulary.SeqioVocabulary(self._vocabulary("bpe"))
    self.assertEqual(byte, again)
    self.assertLen({byte, again, bpe}, 2)
