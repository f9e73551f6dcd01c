"""The arrays of a checkpoint on the disk, read and written a part at a time.

Orbax writes and reads arrays that are in memory. A model that is not, because
it is larger than the host, goes through here: the same files (zarr chunks in
an OCDBT store), opened with the library that Orbax itself uses, one chunk in
memory at a time.
"""

from collections.abc import Iterator
import itertools
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts

# Beyond this an array is cut further than into its matrices.
_CHUNK_BYTES = 2**24


def name_of(leaf: str) -> str:
  """Orbax's name of an array: the parts of its path joined with dots."""
  return leaf.replace("/", ".")


def chunk_shape(
  shape: tuple[int, ...], itemsize: int, *, stacked: int, axis: int, step: int
) -> tuple[int, ...]:
  """How to cut an array into chunks.

  A chunk is as many matrices of a stack as fit, or as many rows of a matrix.

  Args:
    shape: of the array.
    itemsize: bytes of an element.
    stacked: leading axes that count matrices (layers, experts).
    axis: which axis of a matrix to cut, counted in the whole array.
    step: multiple to cut it at.

  >>> chunk_shape((58, 256, 7168, 2048), 1, stacked=2, axis=3, step=128)
  (1, 1, 7168, 2048)
  >>> chunk_shape((129280, 7168), 2, stacked=0, axis=0, step=1)
  (1170, 7168)
  """
  chunk = [*shape]
  for axis_, multiple in (*((i, 1) for i in range(stacked)), (axis, step)):
    others = math.prod(chunk) // chunk[axis_] * itemsize
    fitting = _CHUNK_BYTES // others // multiple * multiple
    if axis_ < stacked:  # a divisor, so that no chunk is half empty
      fitting = max(n for n in _divisors(shape[axis_]) if n <= max(1, fitting))
    chunk[axis_] = min(shape[axis_], max(multiple, fitting))
  return tuple(chunk)


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]


def dtype(name: str) -> np.dtype:
  """The dtype of a manifest's name, ml_dtypes' own among them."""
  return jnp.dtype(name)


def boxes(
  shape: tuple[int, ...], chunk: tuple[int, ...]
) -> Iterator[tuple[slice, ...]]:
  """The parts of an array that are its chunks, in order, made lazily.

  >>> [box[0].start for box in boxes((5,), (2,))]
  [0, 2, 4]
  """
  starts = [range(0, size, n) for size, n in zip(shape, chunk, strict=True)]
  for start in itertools.product(*starts):
    yield tuple(
      slice(i, min(i + n, size))
      for i, n, size in zip(start, chunk, shape, strict=True)
    )


def chunks(store: ts.TensorStore) -> Iterator[tuple[slice, ...]]:
  """The parts of an array that are its chunks on the disk."""
  return boxes(store.shape, _chunk_of(store))


def read(store: ts.TensorStore, index: tuple[int, ...]) -> np.ndarray:
  """Reads the matrix, or what else is there, at an index of a stack.

  TensorStore would decode all of its chunks at once, and hold each of them in
  the file's form and in its own; here it holds one.
  """
  found = store[index]
  whole = np.empty(found.shape, store.dtype.numpy_dtype)
  for box in boxes(whole.shape, _chunk_of(store)[len(index) :]):
    whole[box] = found[box].read().result()
  return whole


def chunk_bytes(store: ts.TensorStore) -> int:
  """Bytes of a decoded chunk of an array."""
  return math.prod(_chunk_of(store)) * store.dtype.numpy_dtype.itemsize


def _chunk_of(store: ts.TensorStore) -> tuple[int, ...]:
  shape = store.chunk_layout.read_chunk.shape or ()
  sizes = zip(shape, store.shape, strict=True)
  return tuple(whole if size is None else size for size, whole in sizes)


class ArrayDatabase:
  """Arrays by name in one OCDBT store."""

  def __init__(self, folder: pathlib.Path, *, cache_bytes: int = 0):
    """Names the store; nothing is read or written.

    Args:
      folder: `arrays` of a step, or what Orbax calls a process's part of it.
      cache_bytes: of decoded chunks that are kept. A chunk that holds several
        layers of a stack is else decoded for each of them.
    """
    self._folder = folder.absolute()
    self._context = ts.Context(
      {"cache_pool": {"total_bytes_limit": cache_bytes}}
    )

  def create(
    self, name: str, shape: tuple[int, ...], dtype, chunk: tuple[int, ...]
  ) -> ts.TensorStore:
    """Opens an array to be written, made if it is not there."""
    spec = self._spec(name)
    spec["kvstore"] |= {
      # What Orbax sets, but for small nodes: the path to a chunk is written
      # anew with every group of chunks.
      "config": {
        "max_inline_value_bytes": 1024,
        "max_decoded_node_bytes": 2**20,
      },
      "target_data_file_size": 2**31,
    }
    # A zero that was written must not look like one that was lost.
    spec["store_data_equal_to_fill_value"] = True
    spec["metadata"] = {"shape": shape, "chunks": chunk, "compressor": None}
    return ts.open(
      spec, dtype=ts.dtype(np.dtype(dtype).name), open=True, create=True
    ).result()

  def open(self, name: str) -> ts.TensorStore:
    """Opens an array to be read.

    Raises:
      ValueError: if it is not there.
    """
    return ts.open(
      self._spec(name), open=True, read=True, context=self._context
    ).result()

  def _spec(self, name: str) -> dict[str, Any]:
    return {
      "driver": "zarr",
      "kvstore": {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{self._folder}/"},
        "path": name_of(name),
      },
    }
