"""FP8 weights at rest: one scale for every block of 128 x 128.

DeepSeek-V3 section 3.3.2: a matrix is kept as e4m3 values, each block of them
with the float32 that they are multiplied by, so that one outlier costs its
own block its precision and no other. Blocks at a ragged edge are smaller. V3.1
allows only powers of two as scales (`ue8m0`: an exponent and nothing else).

Legend (parallel/axes.py): D in, F out.
"""

import dataclasses
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 128
FORMATS = ("float32", "ue8m0")
# e4m3fn has no infinity: what exceeds its largest number becomes NaN.
LARGEST = 448.0
# Neither such a scale nor anything that rounds to more than zero after the
# division by it is a denormal, which XLA takes for zero and numpy does not.
_SMALLEST_SCALE = 2.0**-100
_SMALLEST_NORMAL = 2.0**-126


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockScaled:
  """A matrix, or a stack of matrices, in FP8 with its scales.

  Attributes:
    values: float8_e4m3fn [..., D, F].
    scales: float32 [..., ceil(D / 128), ceil(F / 128)], to multiply by.
  """

  values: Any
  scales: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the values."""
    return self.values.shape

  @property
  def dtype(self):
    """Of the values."""
    return self.values.dtype

  @property
  def ndim(self) -> int:
    """Of the values."""
    return self.values.ndim

  def dequantise(self, dtype):
    """values * scales [..., D, F], in float32 and rounded once to `dtype`."""
    rows, columns = self.shape[-2:]
    numpy = numpy_of(self.values)
    scales = numpy.repeat(self.scales, BLOCK, axis=-1)[..., :columns]
    scales = numpy.repeat(scales, BLOCK, axis=-2)[..., :rows, :]
    return (self.values.astype(jnp.float32) * scales).astype(dtype)


def scales_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of the scales of values of `shape`.

  >>> scales_shape((3, 7168, 576))
  (3, 56, 5)
  """
  rows, columns = shape[-2:]
  return (*shape[:-2], -(-rows // BLOCK), -(-columns // BLOCK))


def quantise(
  x, *, scale_format: Literal["float32", "ue8m0"] = "float32"
) -> BlockScaled:
  """Rounds matrices to FP8.

  The scale of a block is its largest magnitude / 448, so that e4m3's range is
  used to its end; with `ue8m0` the next power of two. A block of zeros has
  scale 1.

  Args:
    x: finite floats [..., D, F], a numpy array or a JAX array. Both give the
      same bits.
    scale_format: `float32` or `ue8m0`.

  Returns:
    Its values and scales, of numpy or JAX like `x`.
  """
  if scale_format not in FORMATS:
    raise ValueError(
      f"scale_format={scale_format!r}: expected {' or '.join(FORMATS)}"
    )
  if x.ndim < 2:
    raise ValueError(f"x of shape {x.shape}: expected a matrix [..., D, F]")
  numpy = numpy_of(x)
  (rows, columns), leading = x.shape[-2:], x.shape[:-2]
  n_rows, n_columns = scales_shape(x.shape)[-2:]
  pad = [(0, 0)] * len(leading)
  pad += [(0, n_rows * BLOCK - rows), (0, n_columns * BLOCK - columns)]
  blocks = numpy.pad(x.astype(jnp.float32), pad).reshape(
    *leading, n_rows, BLOCK, n_columns, BLOCK
  )
  largest = numpy.abs(blocks).max(axis=(-3, -1), keepdims=True)
  scales = scales_of(largest, scale_format)
  values = divide(blocks, scales)
  values = numpy.clip(values, -LARGEST, LARGEST)
  values = values.astype(jnp.float8_e4m3fn)
  values = values.reshape(*leading, n_rows * BLOCK, n_columns * BLOCK)
  return BlockScaled(values[..., :rows, :columns], scales[..., :, 0, :, 0])


def scales_of(largest, scale_format: str):
  """The scales of tiles with these largest magnitudes.

  Args:
    largest: float32, finite, not negative.
    scale_format: of `quantise`.

  Returns:
    float32 of the same shape: `largest` / 448, or the next power of two; 1
    where `largest` is zero.
  """
  numpy = numpy_of(largest)
  scales = divide(largest, np.float32(LARGEST))
  scales = numpy.maximum(scales, np.float32(_SMALLEST_SCALE))
  if scale_format == "ue8m0":
    # Any fraction carries into the exponent; then it is cut off.
    bits = scales.view(np.int32) + np.int32(0x7FFFFF)
    scales = (bits & np.int32(0x7F800000)).view(np.float32)
  is_zero = largest < np.float32(_SMALLEST_NORMAL)
  return numpy.where(is_zero, np.float32(1), scales)


def divide(x, divisor):
  """x / divisor (broadcast), rounded once: the same bits in numpy and JAX."""
  if isinstance(x, np.ndarray):
    return x / divisor
  # XLA multiplies by the reciprocal of what it sees is broadcast, which rounds
  # twice; so it must not see that.
  divisor = jnp.broadcast_to(divisor, x.shape)
  return x / jax.lax.optimization_barrier(divisor)


def numpy_of(x):
  """The module whose array `x` is, numpy or jax.numpy."""
  return np if isinstance(x, np.ndarray) else jnp
