"""What FP8 does to the values of a tensor, as sums that just add up.

`statistics` counts what quantisation lost and where the scales of tiles lie;
vectors of micro-batches, of devices and of layers are added, and `read` makes
shares of the sum. Where a linear layer is given a probe (zeros [3, WIDTH]),
its cotangent is these vectors (rows `TENSORS`), so that one gradient with
respect to the probes alone looks into every layer.

A vector [WIDTH] is

  0        finite values that are not zero
  1        of them, underflowed: their FP8 value is zero
  2        of them, saturated: their FP8 magnitude is the format's largest
  3        values that are not finite
  4 ...    tiles by their scale, in octaves: 2**e <= scale < 2**(e + 1), from
           e = LOWEST up; the first and the last have what lies beyond, too.
           Tiles without a finite value but zero have no scale to speak of
           and are not counted.

Legend (parallel/axes.py): R rows, C columns of the last two axes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8

COLLECTION = "fp8_probe"
NAME = "probe"
TENSORS = ("activation", "weight", "gradient")
LOWEST = -84
WIDTH = 128
_COUNTS = 4
_OCTAVES = WIDTH - _COUNTS


def statistics(x, quantised: fp8.Quantised):
  """Counts what happened to `x` when it was quantised.

  Args:
    x: floats [..., R, C], as they were before.
    quantised: `fp8.quantise` of them.

  Returns:
    float32 [WIDTH]. The counts are whole numbers as long as they are below
    2**24; beyond it they are rounded once, a relative error of 2**-24, and no
    count hides another, small one.
  """
  values = quantised.values.astype(jnp.float32)
  finite = jnp.isfinite(x)
  nonzero = finite & (x != 0)
  magnitude = jnp.where(finite, jnp.abs(values), 0)
  largest = float(jnp.finfo(quantised.values.dtype).max)
  counts = [
    _count(nonzero),
    _count(nonzero & (magnitude == 0)),
    _count(nonzero & (magnitude == largest)),
    _count(~finite),
  ]
  octaves = _octaves(quantised.scales, _any(magnitude > 0, quantised.tile))
  return jnp.concatenate([jnp.stack(counts), octaves])


def _count(mask):
  """How many are true in [..., R, C]: float32 []."""
  return _total(mask.sum(-1, dtype=jnp.int32))


def _total(counts):
  """The sum of int32 counts, float32 [], exact up to its rounding.

  Sums of int32 overflow past 2**31 values, sums of float32 drift past 2**24.
  """
  high, low = (counts >> 8).sum(), (counts & 255).sum()
  return high.astype(jnp.float32) * 256 + low.astype(jnp.float32)


def _any(mask, tile: tuple[int, int]):
  """Whether any value of a tile is true: bool like the tiles' scales."""
  *leading, rows, columns = fp8.scales_shape(mask.shape, tile)
  sizes = (rows * tile[0], columns * tile[1])
  missing = [n - size for n, size in zip(sizes, mask.shape[-2:], strict=True)]
  if any(missing):
    mask = jnp.pad(mask, [(0, 0)] * len(leading) + [(0, n) for n in missing])
  tiles = mask.reshape(*leading, rows, tile[0], columns, tile[1])
  return tiles.any((-3, -1))


def _octaves(scales, counted):
  """Tiles by floor(log2(scale)): float32 [_OCTAVES]."""
  bits = jax.lax.bitcast_convert_type(scales.astype(jnp.float32), jnp.int32)
  exponent = (bits >> 23) - 127
  place = jnp.clip(exponent - LOWEST, 0, _OCTAVES - 1)
  place = jnp.where(counted, place, -1)
  return jax.vmap(lambda octave: _count(place == octave))(jnp.arange(_OCTAVES))


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Shares and scales of tensors; all arrays of one shape.

  NaN where nothing was counted.

  Attributes:
    saturated: share of the nonzero finite values. The largest value of every
      tile is there by construction, 1/128 of them for tiles of 128.
    underflow: share of the nonzero finite values.
    not_finite: share of all values but zeros.
    scale_min: floor(log2(scale)) of the tile with the smallest scale.
    scale_median: of the median tile.
    scale_max: of the tile with the largest.
  """

  saturated: np.ndarray
  underflow: np.ndarray
  not_finite: np.ndarray
  scale_min: np.ndarray
  scale_median: np.ndarray
  scale_max: np.ndarray


def read(vectors) -> Statistics:
  """Reads sums of `statistics`, [..., WIDTH], on the host."""
  vectors = np.asarray(vectors, np.float64)
  nonzero, underflowed, saturated, not_finite = (
    vectors[..., i] for i in range(_COUNTS)
  )
  tiles = np.cumsum(vectors[..., _COUNTS:], axis=-1)
  total = tiles[..., -1:]

  def octave(share):
    """The first up to which there are more than `share` of the tiles."""
    place = (tiles > share * total).argmax(-1)
    return np.where(total[..., 0] > 0, place + float(LOWEST), np.nan)

  def last():
    place = (tiles >= total).argmax(-1)
    return np.where(total[..., 0] > 0, place + float(LOWEST), np.nan)

  with np.errstate(invalid="ignore", divide="ignore"):
    return Statistics(
      saturated=saturated / nonzero,
      underflow=underflowed / nonzero,
      not_finite=not_finite / (nonzero + not_finite),
      scale_min=octave(0.0),
      scale_median=octave(0.5),
      scale_max=last(),
    )
