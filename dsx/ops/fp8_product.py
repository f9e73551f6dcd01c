"""Products of FP8 matrices, promoted to float32 every 128 terms.

DeepSeek-V3 section 3.3.2, figure 7: tensor cores multiply 128 columns by 128
rows; the partial sum then moves to float32 registers, is multiplied by the
scales of both tiles and added. `accumulation` says how the 128 products
themselves are summed:

  float32       as the device sums float32; the order is its own
  exact         without error, rounded once to float32: the same bits on every
                device that has float64, and in numpy
  tensor_core   as Hopper does: products in fixed point, aligned to the largest
                of them and cut to 14 bits (section 3.5.2)

Legend (parallel/axes.py): M rows, K contracted, N columns, S = ceil(K / 128).
"""

from typing import Literal

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import fp8

Accumulation = Literal["float32", "exact", "tensor_core"]
ACCUMULATIONS = ("float32", "exact", "tensor_core")


def multiply(
  a: fp8.Quantised,
  b: fp8.Quantised,
  *,
  accumulation: Accumulation = "float32",
  promote: bool = True,
):
  """a @ b.

  Args:
    a: [..., M, K]; its scales do not change within 128 of K.
    b: [..., K, N], likewise; the same leading axes.
    accumulation: how products within a partial sum are added.
    promote: whether partial sums end every 128 terms. Without, all K terms are
      one sum, which wants scales that do not change along K.

  Returns:
    float32 [..., M, N].
  """
  del promote
  total = None
  for s in range(-(-a.shape[-1] // fp8.TILE)):
    terms = slice(s * fp8.TILE, (s + 1) * fp8.TILE)
    partial = _dot(a.values[..., terms], b.values[..., terms, :], accumulation)
    scales = _along_rows(a, s) * _along_columns(b, s)
    partial = partial * scales
    total = partial if total is None else total + partial
  return total


def _along_rows(a: fp8.Quantised, s: int):
  """a's scales in slice `s` of K, [..., M, 1]."""
  column = min(s * fp8.TILE // a.tile[1], a.scales.shape[-1] - 1)
  scales = a.scales[..., column : column + 1]
  return fp8.expand(scales, (a.tile[0], 1), (*a.shape[:-1], 1))


def _along_columns(b: fp8.Quantised, s: int):
  """b's scales in slice `s` of K, [..., 1, N]."""
  return jnp.swapaxes(_along_rows(b.transposed, s), -1, -2)


def _dot(a, b, accumulation):
  batch = tuple(range(a.ndim - 2))
  dimensions = (((a.ndim - 1,), (b.ndim - 2,)), (batch, batch))
  if accumulation == "exact":
    with jax.enable_x64(True):
      wide = (x.astype(jnp.float64) for x in (a, b))
      return lax.dot_general(*wide, dimensions).astype(jnp.float32)
  # FP8 numbers are bfloat16 numbers, and their products float32 numbers.
  wide = (x.astype(jnp.bfloat16) for x in (a, b))
  return lax.dot_general(*wide, dimensions, preferred_element_type=jnp.float32)
