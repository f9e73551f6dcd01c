"""FP8 numbers, one scale to every tile of them.

DeepSeek-V3 section 3.3.2: a tile's largest magnitude is brought to the largest
number of the format ("online quantization"), so that one outlier costs its own
tile precision and no other. Activations have tiles of 1 x 128 (one token, 128
channels), weights blocks of 128 x 128, and what is multiplied along tokens
tiles of 128 x 1. E4M3 everywhere: fine tiles leave exponents little to do.

What is not finite stays visible: it becomes NaN, and neither its tile's scale
nor its neighbours change.

Legend (parallel/axes.py): R rows, C columns of the last two axes.
"""

import dataclasses
from typing import Any
from typing import Literal

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

TILE = 128
ROW_TILE = (1, TILE)
COLUMN_TILE = (TILE, 1)
BLOCK_TILE = (TILE, TILE)

Format = Literal["e4m3", "e5m2"]
ScaleFormat = Literal["float32", "ue8m0"]
FORMATS = {"e4m3": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}
SCALE_FORMATS = ("float32", "ue8m0")
# The largest finite numbers. e4m3fn has no infinity: what exceeds its largest
# becomes NaN.
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
# Neither such a scale nor anything that rounds to more than zero after the
# division by it is a denormal, which XLA takes for zero and numpy does not.
_SMALLEST_SCALE = 2.0**-100
_SMALLEST_NORMAL = 2.0**-126
_MANTISSA_BITS = 23  # of float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
  """Matrices in FP8 with the scales of their tiles.

  Attributes:
    values: float8 [..., R, C].
    scales: float32 [..., ceil(R / tile[0]), ceil(C / tile[1])], to multiply by.
    tile: rows and columns that share a scale.
  """

  values: Any
  scales: Any
  tile: tuple[int, int] = dataclasses.field(metadata={"static": True})

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the values."""
    return self.values.shape

  @property
  def transposed(self) -> "Quantised":
    """The same numbers with the last two axes exchanged."""
    values, scales = (a.swapaxes(-1, -2) for a in (self.values, self.scales))
    rows, columns = self.tile
    return Quantised(values, scales, (columns, rows))

  def dequantise(self, dtype):
    """values * scales [..., R, C], in float32 and rounded once to `dtype`."""
    scales = expand(self.scales, self.tile, self.shape)
    return (self.values.astype(jnp.float32) * scales).astype(dtype)


def scales_shape(
  shape: tuple[int, ...], tile: tuple[int, int]
) -> tuple[int, ...]:
  """Shape of the scales of values of `shape`.

  >>> scales_shape((3, 7168, 576), BLOCK_TILE)
  (3, 56, 5)
  """
  (rows, columns), (r, c) = shape[-2:], tile
  return (*shape[:-2], -(-rows // r), -(-columns // c))


def expand(scales, tile: tuple[int, int], shape: tuple[int, ...]):
  """Scales of tiles, repeated for every value of `shape`."""
  numpy = numpy_of(scales)
  for axis, size in ((-1, tile[1]), (-2, tile[0])):
    if size > 1 and scales.shape[axis] > 1:
      scales = numpy.repeat(scales, size, axis=axis)
  return numpy.broadcast_to(
    scales[..., : shape[-2], : shape[-1]],
    shape,
  )


def quantise(
  x,
  tile: tuple[int, int],
  *,
  format: Format = "e4m3",
  scale_format: ScaleFormat = "float32",
) -> Quantised:
  """Rounds matrices to FP8, to nearest, ties to even.

  The scale of a tile is its largest finite magnitude / the format's largest
  number; with `ue8m0` the next power of two. A tile of zeros has scale 1. What
  is not finite becomes NaN.

  Args:
    x: floats [..., R, C], a numpy array or a JAX array. Both give the same
      bits.
    tile: rows and columns that share a scale; tiles at a ragged edge are
      smaller.
    format: `e4m3` or `e5m2`.
    scale_format: `float32` or `ue8m0`.

  Returns:
    Its values and scales, of numpy or JAX like `x`.
  """
  _check(x, format, scale_format)
  numpy = numpy_of(x)
  x = x.astype(jnp.float32)
  finite = numpy.isfinite(x)
  magnitude = numpy.where(finite, numpy.abs(x), np.float32(0))
  limit = LARGEST[format]
  scales = scales_of(largest_of_tiles(magnitude, tile), scale_format, limit)
  values = divide(x, expand(scales, tile, x.shape))
  values = numpy.clip(values, np.float32(-limit), np.float32(limit))
  values = numpy.where(finite, values, np.float32(np.nan))
  return Quantised(_rounded(values, format), scales, tile)


def largest_of_tiles(x, tile: tuple[int, int]):
  """The largest number in each tile of [..., R, C], none of them negative."""
  (r, c), (rows, columns) = tile, x.shape[-2:]
  *leading, n_rows, n_columns = scales_shape(x.shape, tile)
  missing = (n_rows * r - rows, n_columns * c - columns)
  if any(missing):
    pad = [(0, 0)] * len(leading) + [(0, n) for n in missing]
    x = numpy_of(x).pad(x, pad)
  return x.reshape(*leading, n_rows, r, n_columns, c).max((-3, -1))


def _rounded(x, format: str):
  """float32 within the format's range, or NaN, in the format.

  XLA's own conversion for CPUs takes twice the time of all the rest of
  `quantise`; the same bits come from integers.
  """
  dtype = np.dtype(FORMATS[format])
  if isinstance(x, np.ndarray):
    return x.astype(dtype)
  mantissa_bits = int(jnp.finfo(dtype).nmant)
  nan = int(np.array(np.nan, dtype).view(np.uint8))
  bits = rounded_bits(x, 7 - mantissa_bits, mantissa_bits, nan)
  return lax.bitcast_convert_type(bits.astype(jnp.uint8), dtype)


def rounded_bits(x, exponent_bits: int, mantissa_bits: int, nan: int):
  """Rounds to nearest, ties to even, to a smaller float than float32.

  Args:
    x: JAX array, float32, within the range of that float, or NaN.
    exponent_bits: of that float, biased by 2**(exponent_bits - 1) - 1.
    mantissa_bits: of that float.
    nan: bits of its NaN, the sign aside.

  Returns:
    int32, its bits: sign, exponent, mantissa.
  """
  smallest = 2 - 2 ** (exponent_bits - 1)  # exponent of a normal number
  cut = _MANTISSA_BITS - mantissa_bits
  bits = lax.bitcast_convert_type(x, jnp.int32)
  magnitude = bits & np.int32(0x7FFFFFFF)
  # What carries out of the mantissa belongs in the exponent, which then gets
  # its own bias.
  half = np.int32((1 << (cut - 1)) - 1) + ((magnitude >> cut) & np.int32(1))
  bias = np.int32((126 + smallest) << mantissa_bits)
  normal = ((magnitude + half) >> cut) - bias
  # A denormal is a multiple of the smallest one: where that is the last bit of
  # float32's mantissa, addition rounds to it.
  shift = np.float32(2.0 ** (smallest + cut))
  denormal = lax.bitcast_convert_type(jnp.abs(x) + shift, jnp.int32)
  denormal = denormal - shift.view(np.int32)
  small = jnp.abs(x) < np.float32(2.0**smallest)
  magnitude = jnp.where(small, denormal, normal)
  magnitude = jnp.where(jnp.isnan(x), np.int32(nan), magnitude)
  sign = lax.shift_right_logical(bits, np.int32(31))
  return magnitude | (sign << (exponent_bits + mantissa_bits))


def _check(x, format: str, scale_format: str) -> None:
  if format not in FORMATS:
    raise ValueError(f"format={format!r}: expected {' or '.join(FORMATS)}")
  if scale_format not in SCALE_FORMATS:
    raise ValueError(
      f"scale_format={scale_format!r}: expected {' or '.join(SCALE_FORMATS)}"
    )
  if x.ndim < 2:
    raise ValueError(f"x of shape {x.shape}: expected a matrix [..., R, C]")


def scales_of(largest, scale_format: str, limit: float):
  """The scales of tiles with these largest magnitudes.

  Args:
    largest: float32, finite, not negative.
    scale_format: of `quantise`.
    limit: the format's largest number.

  Returns:
    float32 of the same shape: `largest` / `limit`, or the next power of two; 1
    where `largest` is zero.
  """
  numpy = numpy_of(largest)
  scales = divide(largest, np.float32(limit))
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
    with np.errstate(invalid="ignore"):
      return x / divisor
  # XLA multiplies by the reciprocal of what it sees is broadcast, which rounds
  # twice; so it must not see that.
  divisor = jnp.broadcast_to(divisor, x.shape)
  return x / lax.optimization_barrier(divisor)


def numpy_of(x):
  """The module whose array `x` is, numpy or jax.numpy."""
  return np if isinstance(x, np.ndarray) else jnp
