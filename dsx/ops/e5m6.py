"""E5M6: activations in 12 bits, a power of two for every 128 of a row.

DeepSeek-V3 section 3.3.3 (1): the output of attention, which its own backward
pass uses too, waits in "a customized E5M6 data format" in 1 x 128 tiles. Scales
are integral powers of two, so that what was kept becomes FP8 in 128 x 1 tiles
with one rounding more and no other error.

The report gives no more than the name. Here a number is the upper 12 bits of
an IEEE float16: sign, 5 exponent bits biased by 15, 6 mantissa bits; the
smallest normal number is 2**-14, denormals are multiples of 2**-20, the largest
is 65024. There is no infinity: what is not finite becomes NaN. As 7 significant
bits are fewer than bfloat16's 8, widening to bfloat16 is exact.

Legend (parallel/axes.py): D width.
"""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import tile_scaled

LARGEST = 65024.0
_EXPONENT_BITS, _MANTISSA_BITS = 5, 6
_NAN = 0x7E0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class E5M6:
  """Rows in E5M6 with their scales: 1.5 bytes a value, and 1/128.

  Attributes:
    high: uint8 [..., D], the upper 8 bits of each value.
    low: uint8 [..., ceil(D / 2)], the lower 4 bits of two: of value i and, in
      the upper half of the byte, of value i + ceil(D / 2).
    scales: uint8 [..., ceil(D / 128)], biased exponents of the powers of two
      to multiply by.
  """

  high: Any
  low: Any
  scales: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the values."""
    return self.high.shape


def encode(x) -> E5M6:
  """Rounds rows to E5M6, to nearest, ties to even.

  The scale of a tile is the power of two at or above its largest finite
  magnitude / 65024; a tile of zeros has scale 1.

  Args:
    x: floats [..., D]. A row's last tile is shorter where 128 does not divide
      D.

  Returns:
    What `decode` widens.
  """
  x = jnp.asarray(x).astype(jnp.float32)
  finite = jnp.isfinite(x)
  magnitude = jnp.where(finite, jnp.abs(x), 0)
  rows = fp8.largest_of_tiles(magnitude[..., None, :], fp8.ROW_TILE)
  scales = fp8.scales_of(rows[..., 0, :], "ue8m0", LARGEST)
  x = jnp.where(finite, fp8.divide(x, _repeated(scales, x.shape)), jnp.nan)
  # The quotient exceeds the largest number by no more than its own rounding.
  bits = fp8.rounded_bits(x, _EXPONENT_BITS, _MANTISSA_BITS, _NAN)
  nibbles = bits & np.int32(15)
  half = -(-x.shape[-1] // 2)
  pad = [(0, 0)] * (x.ndim - 1) + [(0, 2 * half - x.shape[-1])]
  upper = jnp.pad(nibbles[..., half:], pad)
  return E5M6(
    high=(bits >> 4).astype(jnp.uint8),
    low=(nibbles[..., :half] | (upper << 4)).astype(jnp.uint8),
    scales=tile_scaled.exponents(scales),
  )


def decode(x: E5M6, dtype):
  """The numbers [..., D], exact in float32 and bfloat16.

  Args:
    x: of `encode`.
    dtype: of the result; narrower ones are rounded to once, from float32.
  """
  nibbles = jnp.concatenate([x.low & np.uint8(15), x.low >> np.uint8(4)], -1)
  nibbles = nibbles[..., : x.shape[-1]]
  bits = (x.high.astype(jnp.int32) << 4) | nibbles.astype(jnp.int32)
  magnitude = bits & np.int32(0x7FF)
  shifted = magnitude << (23 - _MANTISSA_BITS)
  normal = lax.bitcast_convert_type(shifted + np.int32(112 << 23), jnp.float32)
  small = magnitude < np.int32(1 << _MANTISSA_BITS)
  denormal = magnitude.astype(jnp.float32) * np.float32(2.0**-20)
  values = jnp.where(small, denormal, normal)
  values = jnp.where(magnitude >= np.int32(0x7C0), jnp.nan, values)
  values = jnp.where(bits > np.int32(0x7FF), -values, values)
  scales = _repeated(tile_scaled.powers(x.scales), x.shape)
  return (values * scales).astype(dtype)


def _repeated(scales, shape: tuple[int, ...]):
  """Scales of the tiles of rows, for every value of `shape`."""
  return jnp.repeat(scales, fp8.TILE, axis=-1)[..., : shape[-1]]
