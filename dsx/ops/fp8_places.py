"""Where the experts' rows lie in FP8: whole tiles of one expert each.

A tile along rows is 128 consecutive rows of an expert, counted from its first
in the order of tokens (`fp8_experts`). Three layouts keep that: equal room for
every expert and a loop over what overflows, rows sorted by expert with each
expert's filled up to whole blocks, and room for every token at every expert.

Legend (parallel/axes.py): T tokens, K experts per token, E experts, D model;
N groups of R rows, M rows.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import expert_slots
from dsx.ops import fp8_grouped
from dsx.ops import fp8_recipe
from dsx.ops import permutation
from dsx.ops import row_blocks

# Slots per expert over the mean load, a multiple of `_ROUND`.
_SLACK = 1.125
_ROUND = 8


class Places(NamedTuple):
  """Where each copy of each token goes. A copy is t * K + k.

  Attributes:
    copy: int32 [N, R] or [M], the copy in each place; T * K where there is
      none.
    place: int32 [T, K], the place of each copy; past the last for none.
    products: of rows in these places.
    slots: the overflow, if there can be any.
  """

  copy: jax.Array
  place: jax.Array
  products: fp8_grouped.Products
  slots: expert_slots.Slots | None


def assign(
  index, n_experts: int, impl: str, copies: int, recipe: fp8_recipe.Recipe
) -> Places:
  """Gives every copy a place.

  Args:
    index: int32 [T, K]; a copy whose expert is not in [0, E) goes nowhere.
    n_experts: E.
    impl: `slots`, `grouped` or `dense`.
    copies: most entries of `index` that are experts.
    recipe: of the products.
  """
  n_tokens = index.shape[0]
  if impl == "slots":
    slots = _slots(index, n_experts)
    copy = jnp.where(slots.filled, slots.copy, index.size)
    products = fp8_grouped.Batched(recipe)
    whole = copy.shape[1] >= n_tokens  # an expert has a token only once
    return Places(copy, slots.slot, products, None if whole else slots)
  if impl == "dense":
    blocks = row_blocks.spare(n_experts, n_tokens, fp8_grouped.ROWS)
    products = fp8_grouped.OneByOne(n_experts, recipe)
  else:
    sizes = permutation.group_sizes(index, n_experts)
    blocks = row_blocks.pad(sizes, copies, fp8_grouped.ROWS)
    products = fp8_grouped.Blocks(blocks, n_experts, recipe)
  copy, place = _in_blocks(index, n_experts, blocks)
  return Places(copy, place, products, None)


def _in_blocks(index, n_experts: int, blocks: row_blocks.Padded):
  """The copy in each row of the blocks, and the row of each copy."""
  order = permutation.by_expert(index, n_experts)
  sizes = permutation.group_sizes(index, n_experts)
  first = jnp.cumsum(sizes) - sizes
  shift = blocks.first - first  # from sorted rows to rows in blocks
  known = (index >= 0) & (index < n_experts)
  expert = jnp.where(known, index, 0)
  n_rows = blocks.group.shape[0] * fp8_grouped.ROWS
  place = jnp.where(known, order.row + permutation.take(shift, expert), n_rows)
  group = jnp.repeat(blocks.group, fp8_grouped.ROWS)
  row = jnp.arange(n_rows, dtype=jnp.int32) - permutation.take(shift, group)
  stop = permutation.take(first + sizes, group)
  copy = order.copy.at[jnp.where(row < stop, row, index.size)].get(
    mode="fill", fill_value=index.size
  )
  return copy, place


def _slots(index, n_experts: int) -> expert_slots.Slots:
  capacity = -(-int(_SLACK * index.size) // n_experts)
  capacity = min(-(-capacity // _ROUND) * _ROUND, index.shape[0])
  tile = fp8_grouped.ROWS
  return expert_slots.assign(index, n_experts, capacity, tile, tile=tile)


def gather(tokens, copy, k: int):
  """Rows of tokens [T, ...] for copies; zeros where there is none."""

  def gather(x):
    if x.dtype.itemsize > 1:
      return x.at[copy // k].get(mode="fill", fill_value=0)
    # A CPU picks and masks bytes several times faster than it does float8.
    bits = lax.bitcast_convert_type(x, jnp.uint8)
    bits = bits.at[copy // k].get(mode="fill", fill_value=0)
    return lax.bitcast_convert_type(bits, x.dtype)

  return jax.tree.map(gather, tokens)


def shares(weight, copy):
  """Gate weights of copies, zero where there is none."""
  flat = weight.astype(jnp.float32).reshape(-1)
  return flat.at[copy].get(mode="fill", fill_value=0)


def gather_sum(y, place):
  """Sums the rows of each token, float32 [T, D]."""
  y = y.reshape(-1, y.shape[-1])
  rows = y.at[place].get(mode="fill", fill_value=0)
  return rows.sum(1, dtype=jnp.float32)
