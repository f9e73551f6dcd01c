"""FP8 products of rows that lie group by group, with a matrix for each group.

DeepSeek-V3 section 3.3: the products of `fp8_linear` as the experts need them,
for three layouts of rows. Groups begin where tiles do, so tiles of 128 rows are
in all of them those that the expert would have alone, and a kernel meets no
ragged one.

Legend (parallel/axes.py): E experts, D in, F out; N groups of R rows, M rows.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import fp8
from dsx.ops import fp8_linear
from dsx.ops import fp8_recipe
from dsx.ops import manual_axes
from dsx.ops import permutation
from dsx.ops import platforms
from dsx.ops import row_blocks

ROWS = fp8.TILE


class Batched(NamedTuple):
  """Rows [N, R, ...] and as many matrices [N, D, F]: all at once."""

  recipe: fp8_recipe.Recipe

  def fprop(self, x: fp8.Quantised, w: fp8.Quantised, dtype):
    """q(x) @ q(w), [N, R, F]."""
    return fp8_linear.fprop(x, w, self.recipe, dtype=dtype)

  def dgrad(self, dy: fp8.Quantised, w: fp8.Quantised, dtype):
    """q(dy) @ q(w)^T, [N, R, D]."""
    return fp8_linear.dgrad(dy, w, self.recipe, dtype=dtype)

  def wgrad(self, x: fp8.Quantised, dy: fp8.Quantised):
    """q(x)^T @ q(dy), float32 [N, D, F]; both by tiles along rows."""
    groups, rows = x.shape[:2]
    whole = rows // ROWS * ROWS
    terms = []
    if whole:
      # All tiles at once are faster than one after the other.
      tiles = (_tiles(a, whole) for a in (x, dy))
      term = _outer(*tiles, self.recipe)
      term = term.reshape(groups, -1, *term.shape[1:])
      terms += [term[:, i] for i in range(term.shape[1])]
    if whole < rows:
      rest = (_rest(a, whole) for a in (x, dy))
      terms.append(_outer(*rest, self.recipe))
    return sum(terms[1:], start=terms[0])


class Blocks(NamedTuple):
  """Rows [M, ...] in blocks of `ROWS`, each of one expert.

  A CPU multiplies all blocks at once, each by a copy of its matrix, and Hopper
  has a kernel; elsewhere blocks in use take turns.

  Attributes:
    blocks: which expert each block is of.
    n_experts: E.
    recipe: of the model.
  """

  blocks: row_blocks.Padded
  n_experts: int
  recipe: fp8_recipe.Recipe

  def fprop(self, x: fp8.Quantised, w: fp8.Quantised, dtype):
    """q(x) @ q(w) [M, F]; zeros in blocks that are not in use."""
    if fp8_linear.implementation(self.recipe) == "kernel":
      from dsx.ops import hopper_grouped

      group, count = self.blocks.group, self.blocks.count
      return hopper_grouped.multiply(x, w, group, dtype, count=count)
    if platforms.target() == "cpu":
      matrices = jax.tree.map(
        lambda a: permutation.take(a, self.blocks.group), w
      )
      y = fp8_linear.fprop(_blocked(x), matrices, self.recipe, dtype=dtype)
      return y.reshape(x.shape[0], -1)

    def block(i, y):
      rows, matrix = _slice(x, i * ROWS, ROWS), _matrix(w, self.blocks.group[i])
      new = fp8_linear.fprop(rows, matrix, self.recipe, dtype=dtype)
      return lax.dynamic_update_slice_in_dim(y, new, i * ROWS, 0)

    zero = jnp.zeros((x.shape[0], w.shape[2]), dtype)
    zero = manual_axes.like(zero, x.values, w.values)
    return lax.fori_loop(0, self.blocks.count, block, zero)

  def dgrad(self, dy: fp8.Quantised, w: fp8.Quantised, dtype):
    """q(dy) @ q(w)^T [M, D], likewise."""
    return self.fprop(dy, w.transposed, dtype)

  def wgrad(self, x: fp8.Quantised, dy: fp8.Quantised):
    """q(x)^T @ q(dy) of each expert's rows, float32 [E, D, F]."""
    if fp8_linear.implementation(self.recipe) == "kernel":
      from dsx.ops import hopper_grouped

      return hopper_grouped.outer(
        x, dy, self.blocks.group, self.n_experts, count=self.blocks.count
      )
    if platforms.target() == "cpu":
      terms = _outer(_blocked(x), _blocked(dy), self.recipe)
      term = functools.partial(lax.dynamic_index_in_dim, terms, keepdims=False)
    else:

      def term(i):
        rows, grads = (_slice(a, i * ROWS, ROWS) for a in (x, dy))
        return _outer(rows, grads, self.recipe)

    def block(i, dw):
      group = self.blocks.group[i]
      new = _matrix(dw, group) + term(i)
      return lax.dynamic_update_index_in_dim(dw, new, group, 0)

    zero = jnp.zeros((self.n_experts, x.shape[1], dy.shape[1]), jnp.float32)
    zero = manual_axes.like(zero, x.values, dy.values)
    return lax.fori_loop(0, self.blocks.count, block, zero)


class OneByOne(NamedTuple):
  """Rows [E * R, ...], R of each expert: expert by expert, the slow oracle.

  Attributes:
    n_experts: E.
    recipe: of the model.
  """

  n_experts: int
  recipe: fp8_recipe.Recipe

  def fprop(self, x: fp8.Quantised, w: fp8.Quantised, dtype):
    """q(x) @ q(w) [E * R, F]."""

    def expert(e):
      rows, matrix = self._rows(x, e), _matrix(w, e)
      return fp8_linear.fprop(rows, matrix, self.recipe, dtype=dtype)

    y = lax.map(expert, jnp.arange(self.n_experts, dtype=jnp.int32))
    return y.reshape(x.shape[0], -1)

  def dgrad(self, dy: fp8.Quantised, w: fp8.Quantised, dtype):
    """q(dy) @ q(w)^T [E * R, D]."""
    return self.fprop(dy, w.transposed, dtype)

  def wgrad(self, x: fp8.Quantised, dy: fp8.Quantised):
    """q(x)^T @ q(dy), float32 [E, D, F]."""

    def expert(e):
      rows, grads = self._rows(x, e), self._rows(dy, e)
      return _outer(rows, grads, self.recipe)

    return lax.map(expert, jnp.arange(self.n_experts, dtype=jnp.int32))

  def _rows(self, x: fp8.Quantised, e) -> fp8.Quantised:
    rows = x.shape[0] // self.n_experts
    return _slice(x, e * rows, rows)


Products = Batched | Blocks | OneByOne


def _slice(x: fp8.Quantised, start, rows: int) -> fp8.Quantised:
  """Whole tiles of rows; a scale of all of them stays that of any."""
  values = lax.dynamic_slice_in_dim(x.values, start, rows)
  scales = x.scales
  if rows % x.tile[0] == 0:
    scales = lax.dynamic_slice_in_dim(
      scales, start // x.tile[0], rows // x.tile[0]
    )
  return fp8.Quantised(values, scales, x.tile)


def _blocked(x: fp8.Quantised) -> fp8.Quantised:
  """Rows [M, C] as [M / 128, 128, C]."""
  blocks = x.shape[0] // ROWS
  values = x.values.reshape(blocks, ROWS, -1)
  if x.tile[0] <= ROWS:
    scales = x.scales.reshape(blocks, -1, x.scales.shape[1])
  else:
    scales = jnp.broadcast_to(x.scales, (blocks, *x.scales.shape))
  return fp8.Quantised(values, scales, x.tile)


def _matrix(w, e):
  """Of expert `e`."""
  return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, e, 0, False), w)


def _outer(x: fp8.Quantised, dy: fp8.Quantised, recipe):
  """`fp8_linear.wgrad` of what is quantised for it."""
  # XLA would fold the transposition into the product, for which its CPU
  # backend has a slow implementation or, of bfloat16, none.
  turned = jax.tree.map(lax.optimization_barrier, x.transposed)
  return fp8_linear.fprop(turned, dy, recipe)


def _tiles(x: fp8.Quantised, rows: int) -> fp8.Quantised:
  """The first rows of [N, R, C] as [N * rows / 128, 128, C]."""
  values = x.values[:, :rows].reshape(-1, ROWS, x.shape[2])
  scales = x.scales
  if x.tile[0] == ROWS:
    scales = scales[:, : rows // ROWS]
    scales = scales.reshape(-1, 1, scales.shape[2])
  return fp8.Quantised(values, scales, x.tile)


def _rest(x: fp8.Quantised, rows: int) -> fp8.Quantised:
  """What comes after them, less than a tile."""
  return fp8.Quantised(
    x.values[:, rows:], x.scales[:, rows // x.tile[0] :], x.tile
  )
