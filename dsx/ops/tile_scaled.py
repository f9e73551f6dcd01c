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

from dsx.ops import block_scaled

TILE = 128
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
    bits = self.scales.astype(jnp.int32) << _MANTISSA_BITS
    scales = lax.bitcast_convert_type(bits, jnp.float32)
    scales = jnp.repeat(scales, TILE, axis=-1)[..., : self.values.shape[-1]]
    return (self.values.astype(jnp.float32) * scales).astype(dtype)


def quantise(x) -> TileScaled:
  """Rounds rows to FP8.

  The scale of a tile is the power of two at or above its largest magnitude /
  448, so that nothing overflows; a tile of zeros has scale 1.

  Args:
    x: finite floats [..., D].

  Returns:
    Values and exponents. A row's last tile is shorter where 128 does not
    divide D.
  """
  width = x.shape[-1]
  n_tiles = -(-width // TILE)
  pad = [(0, 0)] * (x.ndim - 1) + [(0, n_tiles * TILE - width)]
  tiles = jnp.pad(x.astype(jnp.float32), pad)
  tiles = tiles.reshape(*x.shape[:-1], n_tiles, TILE)
  largest = jnp.abs(tiles).max(axis=-1)
  scales = block_scaled.scales_of(largest, "ue8m0")
  values = block_scaled.divide(tiles, scales[..., None])
  values = jnp.clip(values, -block_scaled.LARGEST, block_scaled.LARGEST)
  values = values.astype(jnp.float8_e4m3fn)
  values = values.reshape(*x.shape[:-1], n_tiles * TILE)[..., :width]
  bits = lax.bitcast_convert_type(scales, jnp.int32)
  return TileScaled(values, (bits >> _MANTISSA_BITS).astype(jnp.uint8))
