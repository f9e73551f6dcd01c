"""Checksums of arrays that do not depend on how they are sharded.

The checksum is the sum over all elements of (bits of the element) * (weight of
its position), modulo 2^64. The weight is a product of one odd pseudo-random
number per axis, so a changed element always changes the sum, and swapped or
shifted elements do but for one chance in about 2^64. Unlike a sha256 it is a
sum over any partition: every process adds up what it holds, and the result is
the same on every mesh. It finds accidents, not forgeries.
"""

from collections.abc import Iterable
import math

import jax
import numpy as np

# A part of an array on the host: where it starts in the whole, and its values.
Piece = tuple[tuple[int, ...], np.ndarray]


def pieces(array: jax.Array, *, ordinal: int = 0) -> list[Piece]:
  """Copies this process's share of an array to the host.

  Over all processes each element is in exactly one piece. Where the array is
  replicated, the replica in charge is `ordinal` modulo the number of replicas,
  so that the work on many arrays spreads over the processes.

  On CPU the pieces are views: while they live, JAX does not reuse the array's
  memory, also where the array is donated to a computation.

  Args:
    array: any rank, at least one element, no typed keys.
    ordinal: a number that differs from array to array.

  Returns:
    The pieces, their data not to be written to.
  """
  shard_size = math.prod(array.sharding.shard_shape(array.shape))
  replicas = len(array.sharding.device_set) * shard_size // array.size
  shards = [
    shard
    for shard in array.addressable_shards
    if shard.replica_id == ordinal % replicas
  ]
  for shard in shards:
    shard.data.copy_to_host_async()
  return [
    (tuple(part.start or 0 for part in shard.index), np.asarray(shard.data))
    for shard in shards
  ]


def of_pieces(parts: Iterable[Piece]) -> int:
  """Sums (bits * weight of the position) over pieces of one array, mod 2^64."""
  total = 0
  for start, data in parts:
    words = _words(data)
    for axis in reversed(range(words.ndim)):
      first = start[axis] if axis < len(start) else 0
      weights = _weights(axis, first, words.shape[axis])
      # The last axis goes first: contiguous, and at 7 GB/s of float32 (measured
      # on one core) far from the bottleneck of a save.
      words = np.einsum("...i,i->...", words, weights)
    total += int(words)
  return total % 2**64


def _words(data: np.ndarray) -> np.ndarray:
  """Views data as unsigned words of at most 32 bits, wider ones split in two.

  Were a word as wide as the sum, flips of the topmost bit of two elements would
  cancel: 2 * 2^63 is 0 modulo 2^64.
  """
  word = np.dtype(f"uint{8 * min(data.dtype.itemsize, 4)}")
  words = np.ascontiguousarray(data).reshape(*data.shape, 1).view(word)
  return words[..., 0] if words.shape[-1] == 1 else words


def _weights(axis: int, first: int, size: int) -> np.ndarray:
  """Odd weights [size] uint64 of positions along an axis (SplitMix64)."""
  x = np.arange(first, first + size, dtype=np.uint64)
  x = (x + np.uint64((axis << 48) + 1)) * np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return (x ^ (x >> np.uint64(31))) | np.uint64(1)
