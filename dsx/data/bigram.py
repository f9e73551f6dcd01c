"""A byte-level bigram model: the figure that any trained model has to beat.

P(next | previous) = (count(previous, next) + 1) / (count(previous) + 256), with
counts from the train split's raw bytes, scored on the validation split's. Pairs
do not cross documents.
"""

from collections.abc import Iterable

import numpy as np

# Documents are joined into blocks of about this many bytes before counting, as
# counting costs a pass over 65536 bins whatever the document's length.
_BLOCK_BYTES = 1 << 20


class Counter:
  """Counts pairs of adjacent bytes within documents."""

  def __init__(self):
    self._counts = np.zeros(1 << 16, np.int64)
    self._pairs: list[np.ndarray] = []
    self._waiting = 0

  def add(self, text: bytes) -> None:
    """Counts the pairs of one document."""
    values = np.frombuffer(text, np.uint8).astype(np.int32)
    self._pairs.append(values[:-1] * 256 + values[1:])
    self._waiting += len(values)
    if self._waiting > _BLOCK_BYTES:
      self._flush()

  def counts(self) -> np.ndarray:
    """int64 [256, 256]: how often a byte (row) is followed by one (column)."""
    self._flush()
    return self._counts.reshape(256, 256)

  def _flush(self) -> None:
    if self._pairs:
      pairs = np.concatenate(self._pairs)
      self._counts += np.bincount(pairs, minlength=1 << 16)
    self._pairs, self._waiting = [], 0


def count(texts: Iterable[bytes]) -> np.ndarray:
  """int64 [256, 256]: pairs of all `texts`."""
  counter = Counter()
  for text in texts:
    counter.add(text)
  return counter.counts()


def bits_per_byte(train: np.ndarray, validation: np.ndarray) -> float:
  """The model's cross-entropy on the validation split, in bits per byte.

  Args:
    train: [256, 256] counts, see `Counter`.
    validation: [256, 256] counts.

  Returns:
    Mean over the pairs of `validation`; 8.0 where it has none.
  """
  probability = (train + 1) / (train.sum(axis=1, keepdims=True) + 256)
  total = validation.sum()
  if not total:
    return 8.0
  return float(-(validation * np.log2(probability)).sum() / total)
