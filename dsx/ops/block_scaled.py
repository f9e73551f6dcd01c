"""FP8 weights at rest: one scale for every block of 128 x 128.

DeepSeek-V3 section 3.3.2: a matrix is kept as e4m3 values, each block of them
with the float32 that they are multiplied by, so that one outlier costs its
own block its precision and no other. Blocks at a ragged edge are smaller. V3.1
allows only powers of two as scales (`ue8m0`: an exponent and nothing else).

Legend (parallel/axes.py): D in, F out.
"""

import dataclasses
from typing import Any

import jax

from dsx.ops import fp8

BLOCK = fp8.TILE
FORMATS = fp8.SCALE_FORMATS
LARGEST = fp8.LARGEST["e4m3"]


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
    blocks = fp8.Quantised(self.values, self.scales, fp8.BLOCK_TILE)
    return blocks.dequantise(dtype)


def scales_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of the scales of values of `shape`.

  >>> scales_shape((3, 7168, 576))
  (3, 56, 5)
  """
  return fp8.scales_shape(shape, fp8.BLOCK_TILE)


def quantise(x, *, scale_format: fp8.ScaleFormat = "float32") -> BlockScaled:
  """Rounds matrices to FP8 (`fp8.quantise` by blocks).

  Args:
    x: floats [..., D, F], a numpy array or a JAX array. Both give the same
      bits. What is not finite becomes NaN and does not touch its block's scale.
    scale_format: `float32` or `ue8m0`.

  Returns:
    Its values and scales, of numpy or JAX like `x`.
  """
  blocks = fp8.quantise(x, fp8.BLOCK_TILE, scale_format=scale_format)
  return BlockScaled(blocks.values, blocks.scales)
