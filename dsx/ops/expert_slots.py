"""Places for tokens at experts: equal shares first, the overflow in blocks.

Every expert has the same number of slots, a little more than the mean load,
so that all experts multiply at once and need no copy of their weights. What
an expert receives beyond them waits in blocks of its own, which a loop works
off; balanced experts leave it little to do, and nothing is ever dropped.

Where the rows of an expert belong together in tiles (FP8), no tile is torn: an
expert that overflows takes the whole of its last tile along.

Legend (parallel/axes.py): T tokens, K experts per token, E experts; C slots
per expert, N blocks of R rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsx.ops import permutation
from dsx.ops import row_blocks


class Slots(NamedTuple):
  """Where each copy of each token goes. A copy is t * K + k.

  Attributes:
    copy: int32 [E, C], the copy in each slot (any, where `filled` is False).
    filled: bool [E, C].
    slot: int32 [T, K], the slot e * C + c of each copy; E * C for one that
      has none.
    sorted: int32 [T * K], copies in the order of their experts.
    past: int32 [E], in `sorted`, where each expert's overflow begins.
    left: int32 [E], how many copies overflow at each expert.
    blocks: the overflow, cut into blocks of one expert each.
  """

  copy: jax.Array
  filled: jax.Array
  slot: jax.Array
  sorted: jax.Array
  past: jax.Array
  left: jax.Array
  blocks: row_blocks.Blocks

  def overflow(self, i):
    """Block `i` of the overflow: (expert, copies [R], which count [R])."""
    expert = self.blocks.group[i]
    row = self.blocks.first[i]
    row = row + jnp.arange(self.blocks.rows, dtype=jnp.int32)
    before = jnp.cumsum(self.left)[expert] - self.left[expert]
    place = jnp.minimum(row - before + self.past[expert], self.sorted.size - 1)
    return (
      expert,
      permutation.take(self.sorted, place),
      row < self.blocks.stop[i],
    )


def assign(
  index, n_experts: int, capacity: int, rows: int, *, tile: int = 1
) -> Slots:
  """Gives every copy a slot, or a row of the overflow.

  Args:
    index: int32 [T, K], expert of each copy; a copy whose expert is not in
      [0, E) goes nowhere.
    n_experts: E.
    capacity: C.
    rows: R, rows of an overflow block; a multiple of `tile`, or at least as
      many as there are copies.
    tile: so many consecutive rows of an expert are in slots all together, or
      in one overflow block all together.

  Returns:
    The `Slots`. Earlier tokens are the first to get slots.
  """
  order = permutation.by_expert(index, n_experts)
  sizes = permutation.group_sizes(index, n_experts)
  first = jnp.cumsum(sizes) - sizes
  place = jnp.arange(capacity, dtype=jnp.int32)[None, :]
  source = jnp.minimum(first[:, None] + place, index.size - 1)
  known = (index >= 0) & (index < n_experts)
  expert = jnp.where(known, index, 0)
  own = order.row - permutation.take(first, expert)
  none = n_experts * capacity
  kept = jnp.where(sizes > capacity, capacity // tile * tile, sizes)
  left = sizes - kept
  return Slots(
    copy=permutation.take(order.copy, source),
    filled=place < kept[:, None],
    slot=jnp.where(
      known & (own < permutation.take(kept, expert)),
      expert * capacity + own,
      none,
    ),
    sorted=order.copy,
    past=first + kept,
    left=left,
    blocks=row_blocks.cut(left, index.size, min(rows, index.size)),
  )
