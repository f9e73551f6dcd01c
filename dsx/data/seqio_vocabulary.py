"""Any `vocab.Vocabulary` as a seqio Vocabulary.

seqio's interface has the text and the TensorFlow side; the latter calls back
into Python, which is enough for preparing data once. Special ids are never
produced by encoding, here as there.
"""

from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from dsx.data import vocab


class SeqioVocabulary(seqio.Vocabulary):
  """Adapts a `vocab.Vocabulary` for seqio features."""

  def __init__(self, vocabulary: vocab.Vocabulary):
    """Wraps `vocabulary`."""
    super().__init__(extra_ids=0)
    self.vocabulary = vocabulary

  @property
  def bos_id(self) -> int | None:
    """Id of the beginning of a sequence, if the vocabulary has one."""
    return self.vocabulary.special.get("bos")

  @property
  def eos_id(self) -> int:
    """Id of the end of a sequence."""
    return self.vocabulary.special["eos"]

  @property
  def pad_id(self) -> int:
    """Id of padding."""
    return self.vocabulary.special["pad"]

  @property
  def unk_id(self) -> None:
    """There is none: every text can be encoded."""
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self.vocabulary.size

  def _encode(self, s: str) -> Sequence[int]:
    return self.vocabulary.encode(s)

  def _decode(self, ids: Iterable[int]) -> str:
    return self.vocabulary.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: bytes) -> np.ndarray:
      return np.array(self.vocabulary.encode(text.decode("utf-8")), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    return tf.ensure_shape(ids, [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(values: np.ndarray) -> np.ndarray | bytes:
      if values.ndim == 1:
        return self.vocabulary.decode(values).encode("utf-8")
      rows = [decode(row) for row in values]
      return np.array(rows, object)

    return tf.numpy_function(decode, [ids], tf.string, stateful=False)

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, SeqioVocabulary)
      and self.vocabulary.digest == other.vocabulary.digest
    )

  def __hash__(self) -> int:
    return hash(self.vocabulary.digest)
