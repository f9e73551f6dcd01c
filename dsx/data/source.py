"""Reading a prepared split by global sequence index.

The batch at any step is a pure function of global sequence indices. Sequence i
of a shuffled split is record `permutation(epoch)(i mod N)`, epoch = i div N,
with Grain's index shuffle, so that no host keeps any state: give 8 hosts the
8 parts of a range of indices, or one host all of it, and the global batch is
the same; to resume, go on with the next index.
"""

from collections.abc import Sequence
import functools
import hashlib

import grain
import numpy as np

from dsx.data import store


class Source:
  """One split of a prepared data set, read by global sequence index.

  Attributes:
    metadata: about the data set: 'task', 'vocabulary' (name), 'vocab_size',
      'token_bytes' (int32 [V]), 'special', 'bigram_bits_per_byte',
      'sequence_length'; about the split: 'documents', 'bytes', 'tokens',
      'records', 'digest'.
  """

  def __init__(
    self,
    readers: Sequence[store.Reader],
    order: grain.MapDataset,
    metadata: dict,
  ):
    """Puts records in order.

    Args:
      readers: of the components.
      order: sequence index to (component, record).
      metadata: see the class.
    """
    self.metadata = metadata
    self._readers = list(readers)
    self._order = order

  def __len__(self) -> int:
    """Number of records; of a mixture, of all its components."""
    return sum(map(len, self._readers))

  def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the sequences with global indices `indices`.

    Args:
      indices: int [n], at least 0; past `len(self)` begins the next epoch.

    Returns:
      'tokens' int32 [n, L + 1], and 'segment_ids' and 'loss_mask', of the same
      shape and type, where the data set has them.

    Raises:
      store.CorruptionError: a record is corrupt; names shard and record.
    """
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
      raise ValueError(
        f"indices: got shape {indices.shape} and type {indices.dtype}, "
        "expected a one-dimensional array of ints"
      )
    length = self.metadata["sequence_length"] + 1
    rows = {
      name: np.zeros((len(indices), length), np.int32)
      for name in self.metadata["features"]
    }
    if not indices.size:
      return rows
    if indices.min() < 0:
      raise ValueError(f"indices: got {indices.min()}, expected at least 0")
    places = np.array([self._order[i] for i in indices.tolist()])
    for component in np.unique(places[:, 0]):
      here = np.flatnonzero(places[:, 0] == component)
      block = self._readers[component].read(places[here, 1].tolist())
      for name, values in block.items():
        rows[name][here] = values
    return rows

  def verify(self) -> None:
    """Reads everything and compares the digests.

    Raises:
      store.CorruptionError: the content is not what was prepared.
    """
    for reader in self._readers:
      reader.verify()


def _seed(seed: int, purpose: str) -> int:
  """A 32-bit seed. Grain adds the epoch to it: neighbours must not meet."""
  digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
  return int.from_bytes(digest[:4], "big")


def in_turn(lengths: list[int], seed: int | None) -> grain.MapDataset:
  """All records of one component after the other, endlessly."""
  starts = np.cumsum([0, *lengths]).tolist()
  order = grain.MapDataset.range(starts[-1])
  if seed is not None:
    order = order.shuffle(seed=_seed(seed, "shuffle"))

  def place(index: int) -> tuple[int, int]:
    component = int(np.searchsorted(starts, index, side="right")) - 1
    return component, index - starts[component]

  return order.map(place).repeat()


def mixed(
  lengths: list[int], weights: list[float], seed: int | None
) -> grain.MapDataset:
  """Components by weight; each goes through its own epochs."""
  orders = []
  for component, length in enumerate(lengths):
    order = grain.MapDataset.range(length)
    if seed is not None:
      order = order.shuffle(seed=_seed(seed, f"shuffle/{component}"))
    place = functools.partial(lambda c, index: (c, index), component)
    orders.append(order.map(place).repeat())
  return grain.MapDataset.mix(orders, weights=weights)
