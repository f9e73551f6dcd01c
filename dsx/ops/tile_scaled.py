"""FP8 rows: one power of two for every 128 values of a row.

DeepSeek-V3 section 3.3.3: what is dispatched to experts is quantised in 1 x 128
tiles whose scales are integral powers of two, so that quantising again with
other tiles later rounds nothing twice. A scale is kept as its exponent, one
byte: what travels is 129/128 bytes a value.

Legend (parallel/axes.py): T rows, D width.
"""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import fp8

TILE = fp8.TILE
_MANTISSA_BITS = 23


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TileScaled:
  """Rows in FP8 with their scales.

  Attributes:
    values: float8_e4m3fn [..., D].
    scales: uint8 [..., ceil(D / 128)], biased exponents of the powers of two
      to multiply by.
  """

  values: Any
  scales: Any

  def dequantise(self, dtype):
    """values * scales [..., D], exact in float32, rounded once to `dtype`."""
    scales = jnp.repeat(powers(self.scales), TILE, axis=-1)
    scales = scales[..., : self.values.shape[-1]]
    return (self.values.astype(jnp.float32) * scales).astype(dtype)


def quantise(x) -> TileScaled:
  """Rounds rows to FP8.

  The scale of a tile is the power of two at or above its largest finite
  magnitude / 448, so that nothing overflows; a tile of zeros has scale 1. What
  is not finite becomes NaN.

  Args:
    x: floats [..., D].

  Returns:
    Values and exponents. A row's last tile is shorter where 128 does not
    divide D.
  """
  rows = jnp.asarray(x)[..., None, :]
  tiles = fp8.quantise(rows, fp8.ROW_TILE, scale_format="ue8m0")
  return TileScaled(tiles.values[..., 0, :], exponents(tiles.scales[..., 0, :]))


def exponents(scales):
  """Powers of two, positive normal float32, as biased exponents, uint8."""
  bits = lax.bitcast_convert_type(scales, jnp.int32)
  return (bits >> _MANTISSA_BITS).astype(jnp.uint8)


def powers(exponents):
  """The powers of two, float32, that these uint8 stand for."""
  bits = exponents.astype(jnp.int32) << _MANTISSA_BITS
  return lax.bitcast_convert_type(bits, jnp.float32)
