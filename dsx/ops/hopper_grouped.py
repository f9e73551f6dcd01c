"""FP8 products of rows that lie group by group, on Hopper.

Rows stand in blocks of 128 that each serve one group, as `row_blocks.pad` lays
them out: groups one after the other, in ascending order, each of whole blocks.
Forward and backward to the rows, each block meets its group's matrix; backward
to the matrices, each group's blocks are contracted with each other.

Legend (parallel/axes.py): E groups, D in, F out, M rows, P = M / 128 blocks.
"""

import jax
import jax.numpy as jnp

from dsx.ops import fp8
from dsx.ops import hopper_gemm
from dsx.ops import hopper_product
from dsx.ops import hopper_target

ROWS = fp8.TILE


def multiply(
  x: fp8.Quantised,
  w: fp8.Quantised,
  group_of_block: jax.Array,
  out_dtype=jnp.float32,
  *,
  count: jax.Array | None = None,
):
  """Each block of rows @ its group's matrix.

  Args:
    x: [M, D], M a multiple of 128, tiles of 1 x 128 or larger.
    w: [E, D, F], tiles of 128 x 128 or larger.
    group_of_block: int32 [P]; what is not in 0...E-1 has no rows in use.
    out_dtype: float32 or a dtype of two bytes.
    count: int32 [], how many blocks are in use, from the first; all of them
      without it. Others cost nothing but the writing of zeros.

  Returns:
    [M, F]; zeros in blocks that are not in use.

  Raises:
    ValueError: shapes, tiles or formats are none of these, or what is traced
      is not for a Hopper GPU.
  """
  hopper_target.check("hopper_grouped")
  hopper_gemm.check("x", x, "w", w, out_dtype)
  if len(x.shape) != 2 or len(w.shape) != 3 or x.shape[1] != w.shape[1]:
    raise ValueError(f"x {x.shape}, w {w.shape}: expected [M, D] and [E, D, F]")
  _check_blocks("x", x, group_of_block)
  n_groups, _, columns = w.shape
  if 0 in (*x.shape, *w.shape):
    return jnp.zeros((x.shape[0], columns), out_dtype)
  left, right = hopper_gemm.left_side(x), hopper_gemm.right_side(w)
  group = group_of_block.astype(jnp.int32)
  row = jnp.arange(group.shape[0], dtype=jnp.int32)
  used = _used(group, n_groups, count)
  slices = left.scales.shape[0]
  plan = hopper_product.Plan(
    rows=row,
    matrix=jnp.where(used, group, 0),
    begin=jnp.zeros_like(row),
    end=jnp.where(used, jnp.int32(slices), 0),
  )
  return hopper_product.product(left, right, plan, out_dtype)[:, :columns]


def outer(
  x: fp8.Quantised,
  dy: fp8.Quantised,
  group_of_block: jax.Array,
  n_groups: int,
  out_dtype=jnp.float32,
  *,
  count: jax.Array | None = None,
):
  """x^T @ dy of each group's rows.

  Args:
    x: [M, D], M a multiple of 128, tiles of 128 x 1 or larger.
    dy: [M, F], likewise.
    group_of_block: int32 [P], ascending among blocks in use.
    n_groups: E.
    out_dtype: float32 or a dtype of two bytes.
    count: int32 [], how many blocks are in use, from the first; all of them
      without it.

  Returns:
    [E, D, F]; zeros for groups without rows.

  Raises:
    ValueError: as `multiply`.
  """
  hopper_target.check("hopper_grouped")
  hopper_gemm.check("x", x.transposed, "dy", dy, out_dtype)
  if len(x.shape) != 2 or len(dy.shape) != 2 or x.shape[0] != dy.shape[0]:
    raise ValueError(f"x {x.shape}, dy {dy.shape}: expected [M, D] and [M, F]")
  _check_blocks("x", x, group_of_block)
  shape = (n_groups, x.shape[1], dy.shape[1])
  if 0 in (*shape, x.shape[0]):
    return jnp.zeros(shape, out_dtype)
  left, right = hopper_gemm.left_side(x.transposed), hopper_gemm.right_side(dy)
  plan = _by_group(group_of_block.astype(jnp.int32), shape, count)
  y = hopper_product.product(left, right, plan, out_dtype)
  y = y.reshape(n_groups, left.values.shape[0], -1)
  return y[:, : shape[1], : shape[2]]


def _by_group(group, shape: tuple[int, int, int], count):
  """For each group all rows of the result, over the group's blocks."""
  n_groups, rows, _ = shape
  blocks = -(-rows // ROWS)
  each = jnp.arange(n_groups, dtype=jnp.int32)
  used = _used(group, n_groups, count)
  # A block before all that are in use belongs to no group; so does one after.
  group = jnp.where(used, group, n_groups)
  mine = group[None, :] == each[:, None]
  sizes = mine.sum(1, dtype=jnp.int32)
  begin = jnp.where(sizes > 0, jnp.argmax(mine, axis=1).astype(jnp.int32), 0)
  row = jnp.arange(n_groups * blocks, dtype=jnp.int32)
  group_of_row = row // blocks
  return hopper_product.Plan(
    rows=row % blocks,
    matrix=jnp.zeros_like(row),
    begin=begin[group_of_row],
    end=(begin + sizes)[group_of_row],
  )


def _used(group, n_groups: int, count):
  used = (group >= 0) & (group < n_groups)
  if count is None:
    return used
  return used & (jnp.arange(group.shape[0], dtype=jnp.int32) < count)


def _check_blocks(name: str, x: fp8.Quantised, group_of_block) -> None:
  if x.shape[0] != group_of_block.size * ROWS or group_of_block.ndim != 1:
    raise ValueError(
      f"group_of_block {group_of_block.shape}: expected one group for each "
      f"{ROWS} rows of {name} {x.shape}"
    )
