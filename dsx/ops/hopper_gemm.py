"""Products of FP8 matrices on Hopper: the fast form of `fp8_product`.

Tensor cores want the terms of both sides side by side in memory. `b` [K, N]
is stored so if `hopper_quantise` made it, or if it is the transpose of
something; otherwise XLA copies it.

Legend (parallel/axes.py): M rows, K contracted, N columns, S = ceil(K / 128);
B batch.
"""

import math

import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import hopper_product
from dsx.ops import hopper_target

TILE = fp8.TILE


def multiply(a: fp8.Quantised, b: fp8.Quantised, out_dtype=jnp.float32):
  """a @ b, each 128 terms by tensor cores and their sums in float32.

  Any sizes; those that are no multiple of 128 are padded, which copies.

  Args:
    a: [..., M, K]; its scales do not change within 128 of K, counted from 0.
    b: [..., K, N], likewise; the same leading axes and the same format.
    out_dtype: float32 or a dtype of two bytes.

  Returns:
    [..., M, N].

  Raises:
    ValueError: shapes, tiles or formats are none of these, or what is traced
      is not for a Hopper GPU.
  """
  hopper_target.check("hopper_gemm")
  check("a", a, "b", b, out_dtype)
  *leading, rows, terms = a.shape
  columns = b.shape[-1]
  if b.shape != (*leading, terms, columns):
    raise ValueError(
      f"a {a.shape}, b {b.shape}: expected [..., M, K] and [..., K, N] with "
      "the same leading axes"
    )
  shape = (*leading, rows, columns)
  if 0 in (*shape, terms):
    return jnp.zeros(shape, out_dtype)
  left, right = left_side(a), right_side(b)
  blocks = -(-rows // TILE)
  row = jnp.arange(math.prod(leading) * blocks, dtype=jnp.int32)
  zero = jnp.zeros_like(row)
  slices = left.scales.shape[0]
  plan = hopper_product.Plan(row, row // blocks, zero, zero + slices)
  y = hopper_product.product(left, right, plan, out_dtype)
  y = y.reshape(*leading, blocks * TILE, -1)
  return y[..., :rows, :columns]


def check(
  a_name: str, a: fp8.Quantised, b_name: str, b: fp8.Quantised, out_dtype
) -> None:
  """Refuses formats and tiles that the kernel does not know.

  `a` is contracted along its last axis and `b` along its last but one.

  Raises:
    ValueError: naming which.
  """
  if a.values.dtype != b.values.dtype:
    raise ValueError(
      f"{b_name} is {b.values.dtype} and {a_name} {a.values.dtype}: expected "
      "one format on both sides; quantise both to e4m3"
    )
  if a.values.dtype not in map(jnp.dtype, fp8.FORMATS.values()):
    raise ValueError(
      f"{a_name} is {a.values.dtype}: expected {' or '.join(fp8.FORMATS)}; "
      "quantise it"
    )
  for name, x, axis in ((a_name, a, -1), (b_name, b, -2)):
    size = x.tile[axis]
    if size % TILE and size < x.shape[axis]:
      raise ValueError(
        f"{name} {x.shape} has tiles {x.tile}: expected a multiple of {TILE} "
        "along what is contracted; quantise it with such tiles"
      )
  if jnp.dtype(out_dtype).itemsize not in (2, 4):
    raise ValueError(
      f"out_dtype={jnp.dtype(out_dtype)}: expected float32 or bfloat16"
    )


def left_side(a: fp8.Quantised) -> hopper_product.Operand:
  """[..., M, K] as the kernel wants it: batches one after the other."""
  values = padded(a.values, (TILE, TILE)).reshape(-1, _whole(a.shape[-1]))
  scales = _scales(a, 1).reshape(values.shape[0], -1)
  return hopper_product.Operand(values, scales.T)


def right_side(b: fp8.Quantised) -> hopper_product.Operand:
  """[..., K, N] as the kernel wants it: [B, N, K], if need be copied."""
  b = b.transposed
  values = padded(b.values, (TILE, TILE))
  values = values.reshape(-1, *values.shape[-2:])
  shared = b.tile[0] % TILE == 0 or b.tile[0] >= b.shape[-2]
  scales = _scales(b, TILE if shared else 1)
  scales = scales.reshape(values.shape[0], *scales.shape[-2:])
  return hopper_product.Operand(values, scales.swapaxes(1, 2))


def padded(x, multiples: tuple[int, int]):
  """`x` with zeros at the ends of its last two axes, up to multiples."""
  missing = [-x.shape[i - 2] % multiples[i] for i in range(2)]
  if not any(missing):
    return x
  return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, n) for n in missing])


def _scales(x: fp8.Quantised, unit: int):
  """Scales for every `unit` rows and every 128 terms of [..., R, K].

  Returns:
    float32 [..., whole multiple of 128 of R / unit, S].
  """
  rows = _whole(x.shape[-2]) // unit
  scales = _repeated(x.scales, -2, rows, unit, x.tile[0])
  slices = -(-x.shape[-1] // TILE)
  return _repeated(scales, -1, slices, TILE, x.tile[1])


def _repeated(scales, axis: int, n: int, unit: int, tile: int):
  """n scales along `axis`, for units of it, from those for tiles of it."""
  size = scales.shape[axis]
  index = np.minimum(np.arange(n) * unit // tile, size - 1)
  if n == size and (index == np.arange(n)).all():
    return scales
  return jnp.take(scales, index, axis=axis)


def _whole(size: int) -> int:
  return -(-size // TILE) * TILE
