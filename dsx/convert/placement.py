"""Parameters filled on their devices, one tensor of a file at a time.

A parameter is allocated where it will live, and each tensor goes to its place
in it: only the part that a device holds is sent to that device, which
transposes, dequantises and rounds it. No copy of the parameter is ever on the
host, and of several processes each reads the tensors that its devices hold a
part of.
"""

from collections.abc import Iterator
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from dsx.convert import name_map
from dsx.ops import block_scaled
from dsx.parallel import sharding as sharding_lib

Slices = tuple[slice, ...]


class Piece(NamedTuple):
  """One tensor of a file.

  Attributes:
    values: its numbers, [out, in] as in the file.
    scales: float32 [ceil(out / 128), ceil(in / 128)] if they are FP8 to be
      dequantised, else None.
  """

  values: np.ndarray
  scales: np.ndarray | None = None


class Place(NamedTuple):
  """A device (None: JAX's default) and the part of a parameter it holds."""

  device: Any
  part: Slices


def leaf_sharding(
  leaf: name_map.Leaf, mesh, sharding: sharding_lib.Sharding | None
) -> NamedSharding | None:
  """Where a parameter lives; None means JAX's default device.

  Raises:
    ValueError: if it does not divide by the mesh.
  """
  if mesh is None:
    return None
  rules = (sharding or sharding_lib.Sharding()).parameters
  # Biases have no axes and are whole on every device.
  spec = sharding_lib.spec(leaf.axes, rules)
  found = NamedSharding(mesh, spec)
  try:
    found.shard_shape(leaf.shape)
  except ValueError as error:
    raise ValueError(
      f"{'/'.join(leaf.path)} of shape {leaf.shape} does not divide over the "
      f"mesh axes {spec}; change the mesh or sharding.Sharding"
    ) from error
  return found


def of_scales(sharding: NamedSharding | None, stacked: int):
  """Where an FP8 parameter's scales live: beside it, each matrix's whole.

  They are a 16384th of its numbers, and need not divide over devices.
  """
  if sharding is None:
    return None
  parts = (*sharding.spec, *(None,) * stacked)[:stacked]
  return NamedSharding(sharding.mesh, PartitionSpec(*parts))


class Target:
  """One parameter, being filled."""

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype,
    *,
    stacked: int,
    transpose: bool,
    sharding: NamedSharding | None,
  ):
    """Allocates it.

    Args:
      shape: of the parameter.
      dtype: of the parameter.
      stacked: how many of its leading axes count pieces.
      transpose: whether pieces are [out, in] and it is [in, out].
      sharding: where it lives.
    """
    self._shape, self._dtype = shape, jnp.dtype(dtype)
    self._stacked, self._transpose = stacked, transpose
    self._sharding = sharding
    self._places = list(_places(shape, sharding))
    self._arrays: list[Any] = [None] * len(self._places)
    if stacked:
      self._arrays = [
        jnp.zeros(_extent(place.part), self._dtype, device=place.device)
        for place in self._places
      ]

  def wants(self, index: tuple[int, ...]) -> bool:
    """Whether a device of this process holds any of the piece at `index`."""
    parts = (place.part[: self._stacked] for place in self._places)
    return any(_within(index, part) is not None for part in parts)

  def put(self, index: tuple[int, ...], piece: Piece) -> None:
    """Fills the piece at `index` of the leading axes, on all its devices."""
    for i, (device, part) in enumerate(self._places):
      within = _within(index, part[: self._stacked])
      if within is None:
        continue
      rest = part[self._stacked :]
      rest = rest[::-1] if self._transpose else rest
      # Waiting here, while the host read the next tensor, bounds what queues.
      jax.block_until_ready(self._arrays[i])
      values = jax.device_put(piece.values[rest], device)
      scales = starts = None
      if piece.scales is not None:
        scales = jax.device_put(piece.scales, device)
        starts = tuple(np.int32(s.start) for s in rest)
      how = {"dtype": self._dtype.name, "transpose": self._transpose}
      if self._arrays[i] is None:
        self._arrays[i] = _made(values, scales, starts, **how)
      else:
        self._arrays[i] = _put(
          self._arrays[i], values, scales, starts, within, **how
        )

  def array(self) -> jax.Array:
    """The parameter, all of whose pieces were put."""
    jax.block_until_ready(self._arrays)
    if self._sharding is None:
      return self._arrays[0]
    return jax.make_array_from_single_device_arrays(
      self._shape, self._sharding, self._arrays
    )


def _places(shape, sharding: NamedSharding | None) -> Iterator[Place]:
  """Every device of this process, and what it holds."""
  if sharding is None:
    yield Place(None, tuple(slice(0, n) for n in shape))
    return
  parts = sharding.addressable_devices_indices_map(shape)
  for device, part in parts.items():
    assert part is not None  # which only stands for devices of others
    bounds = (s.indices(n) for s, n in zip(part, shape, strict=True))
    yield Place(device, tuple(slice(start, stop) for start, stop, _ in bounds))


def _extent(part: Slices) -> tuple[int, ...]:
  return tuple(s.stop - s.start for s in part)


def _within(index: tuple[int, ...], part: Slices):
  """`index` relative to a part of the leading axes, None if it is outside."""
  if any(not s.start <= i < s.stop for i, s in zip(index, part, strict=True)):
    return None
  return tuple(np.int32(i - s.start) for i, s in zip(index, part, strict=True))


@functools.partial(jax.jit, static_argnames=("dtype", "transpose"))
def _made(values, scales, starts, *, dtype: str, transpose: bool):
  """A piece's part as the parameter has it.

  Args:
    values: [out, in], or any shape if it is not transposed.
    scales: those of the whole piece, or None.
    starts: row and column of the piece at which `values` begins.
    dtype: of the parameter.
    transpose: whether it is [in, out].
  """
  if scales is not None:
    for axis, (start, n) in enumerate(zip(starts, values.shape, strict=True)):
      blocks = (start + jnp.arange(n, dtype=jnp.int32)) // block_scaled.BLOCK
      scales = jnp.take(scales, blocks, axis=axis)
    values = values.astype(jnp.float32) * scales
  values = values.astype(dtype)
  return values.T if transpose else values


@functools.partial(
  jax.jit, static_argnames=("dtype", "transpose"), donate_argnums=0
)
def _put(stack, values, scales, starts, index, *, dtype, transpose):
  """`stack` with a piece's part at `index` of its leading axes."""
  made = _made(values, scales, starts, dtype=dtype, transpose=transpose)
  at = (*index, *(np.int32(0),) * made.ndim)
  made = jnp.expand_dims(made, range(len(index)))
  return lax.dynamic_update_slice(stack, made, at)
