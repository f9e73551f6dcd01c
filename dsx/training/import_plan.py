"""Which arrays a checkpoint gets from which tensors, and their making.

An array is a parameter of dsx, stacked over layers and experts. It is never
whole in memory: `Array.chunk` says into which parts it is cut, and `Assembler`
makes one part from the tensors that lie in it. FP8 matrices become two arrays,
values and scales, as `BlockScaled` has them.
"""

from collections.abc import Iterator
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsx.convert import encoding as encoding_lib
from dsx.convert import inventory
from dsx.convert import name_map
from dsx.convert import safetensors
from dsx.ops import block_scaled
from dsx.training import array_database
from dsx.training import restore

VALUES, SCALES = "/values", "/scales"
_STATE = "state/"
EMBEDDING = "state/params/embed_tokens/embedding"
_FP8 = safetensors.DTYPES[inventory.FP8]
_quantise = jax.jit(block_scaled.quantise)
_dequantise = jax.jit(
  block_scaled.BlockScaled.dequantise, static_argnames="dtype"
)


class Array(NamedTuple):
  """One array of the checkpoint.

  Attributes:
    name: its name there.
    shape: its shape.
    dtype: its dtype.
    chunk: shape of the parts that it is written in.
    leaf: the parameter that it is, or a half of.
    part: '' if it is the parameter, `VALUES` or `SCALES` if a half of it.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  chunk: tuple[int, ...]
  leaf: name_map.Leaf
  part: str

  @property
  def n_bytes(self) -> int:
    """Bytes of its data."""
    return math.prod(self.shape) * self.dtype.itemsize

  def boxes(self) -> Iterator[tuple[slice, ...]]:
    """Its parts, in the order in which they are written."""
    return array_database.boxes(self.shape, self.chunk)


def leaf_name(leaf: name_map.Leaf) -> str:
  """Name of a parameter in a checkpoint."""
  return _STATE + "/".join(leaf.path)


def arrays(encoding: encoding_lib.Encoding) -> list[Array]:
  """The arrays of a source's checkpoint.

  Args:
    encoding: in which dtype each tensor is to be kept.

  Raises:
    ValueError: if only some of the tensors of one array are FP8.
  """
  found = []
  for leaf in name_map.leaves(encoding.source.config):
    dtypes = {encoding.dtype_of(name) for _, name in leaf.pieces()}
    if _FP8 not in dtypes:
      # A stack has one dtype; the wider one holds the numbers of the others.
      dtype = functools.reduce(jnp.promote_types, sorted(dtypes, key=str))
      is_bias = leaf.path[0] == "router_bias"
      found.append(_array(leaf, np.dtype("float32") if is_bias else dtype, ""))
      continue
    if len(dtypes) > 1:
      raise ValueError(
        f"{encoding.source.place}: of the tensors {leaf.pattern!r} some are "
        f"{inventory.FP8} and some are not, which one stack cannot hold; "
        "convert with dtype bfloat16"
      )
    found.append(_array(leaf, _FP8, VALUES))
    found.append(_array(leaf, np.dtype(np.float32), SCALES))
  return found


def _array(leaf: name_map.Leaf, dtype: np.dtype, part: str) -> Array:
  shape = (
    block_scaled.scales_shape(leaf.shape) if part == SCALES else leaf.shape
  )
  # Rows of a file's tensor; of matrices, a part has whole FP8 blocks.
  axis = (
    len(shape) - 1 if leaf.transform == name_map.TRANSPOSE else leaf.stacked
  )
  step = 1 if part == SCALES or leaf.path[-1] == "scale" else block_scaled.BLOCK
  chunk = array_database.chunk_shape(
    shape, dtype.itemsize, stacked=leaf.stacked, axis=axis, step=step
  )
  return Array(leaf_name(leaf) + part, shape, dtype, chunk, leaf, part)


def stored(found: list[Array]) -> dict[str, str]:
  """Dtypes by parameter, as `restore.as_stored` takes them."""
  return {
    leaf_name(array.leaf).removeprefix(_STATE): restore.FP8
    if array.part
    else array.dtype.name
    for array in found
  }


def source_dtypes(
  found: list[Array], encoding: encoding_lib.Encoding
) -> dict[str, str]:
  """Tensors whose dtype is not that of their array, with their dtypes.

  Their numbers are the same in the array; with this, the tensors that are
  made from it again are the same bit for bit.
  """
  entries = encoding.source.entries
  kept = {}
  for array in found:
    expected = safetensors.NAMES[array.dtype]
    for _, name in array.leaf.pieces():
      name += name_map.SCALES if array.part == SCALES else ""
      if name not in entries:  # scales that are made here
        continue
      is_kept = (
        array.part == SCALES
        or encoding.dtype_of(name) == safetensors.DTYPES[entries[name].dtype]
      )
      if is_kept and entries[name].dtype != expected:
        kept[name] = entries[name].dtype
  return kept


def copies(encoding: encoding_lib.Encoding) -> list[str]:
  """Copies of shared tensors that the source has for its MTP modules."""
  every = name_map.copies(encoding.source.config)
  return [name for name in every if name in encoding.source.entries]


class Assembler:
  """Makes parts of arrays from the tensors of a source."""

  def __init__(self, source):
    """Reads nothing yet.

    Args:
      source: a `tensor_source.TensorSource`.
    """
    self._source = source
    self._held: dict[str, np.ndarray] = {}
    self._names = functools.lru_cache(maxsize=2)(
      lambda leaf: dict(leaf.pieces())
    )

  def make(self, array: Array, box: tuple[slice, ...]) -> np.ndarray:
    """One part of an array, contiguous."""
    stack, inner = box[: array.leaf.stacked], box[array.leaf.stacked :]
    whole = np.empty([s.stop - s.start for s in box], array.dtype)
    names = self._names(array.leaf)
    for index in itertools.product(*(range(s.start, s.stop) for s in stack)):
      place = tuple(i - s.start for i, s in zip(index, stack, strict=True))
      whole[place] = self._part(array, names[index], inner)
    return whole

  def _part(self, array: Array, name: str, box) -> np.ndarray:
    """The part `box` of one tensor, turned as dsx has it."""
    was_fp8 = inventory.is_fp8(self._source.entries, name)
    if not array.part and was_fp8:
      return self._dequantised(array, name, box)
    if not array.part:
      return self._tensor(array, name)[box]
    if was_fp8:
      scales = name_map.SCALES if array.part == SCALES else ""
      return self._tensor(array, name + scales)[box]
    return self._quantised(array, name, box)

  def _tensor(self, array: Array, name: str) -> np.ndarray:
    """A tensor, kept until another is asked for."""
    base = name.removesuffix(name_map.SCALES)
    for other in [n for n in self._held if not n.startswith(base)]:
      del self._held[other]
    if name not in self._held:
      self._held[name] = self._source.read(name)
    found = self._held[name]
    return found.T if array.leaf.transform == name_map.TRANSPOSE else found

  def _dequantised(self, array: Array, name: str, box) -> np.ndarray:
    blocks = tuple(_blocks(part) for part in box)
    part = block_scaled.BlockScaled(
      np.ascontiguousarray(self._tensor(array, name)[box]),
      self._tensor(array, name + name_map.SCALES)[blocks].astype(np.float32),
    )
    with _on_host():
      return np.asarray(_dequantise(part, dtype=array.dtype.name))

  def _quantised(self, array: Array, name: str, box) -> np.ndarray:
    if array.part == VALUES:
      part = np.ascontiguousarray(self._tensor(array, name)[box])
      with _on_host():
        return np.asarray(_quantise(part).values)
    # Scales are few: one row of blocks at a time is made of the values again.
    whole = self._tensor(array, name)
    rows = []
    for start in range(0, whole.shape[0], block_scaled.BLOCK):
      part = np.ascontiguousarray(whole[start : start + block_scaled.BLOCK])
      with _on_host():
        rows.append(np.asarray(_quantise(part).scales))
    return np.concatenate(rows)[box]


def _blocks(part: slice) -> slice:
  """The blocks that a part of whole blocks consists of."""
  size = block_scaled.BLOCK
  return slice(part.start // size, -(-part.stop // size))


def _on_host():
  """Makes JAX's CPU do it, which rounds as numpy does, ten times as fast."""
  return jax.default_device(jax.local_devices(backend="cpu")[0])
