"""Cuts rows sorted by group into equal blocks that each serve one group.

Rows of group e are consecutive; groups have any sizes. A loop over blocks of a
fixed number of rows, each multiplied by one group's matrix, does the work of
the rows that exist, plus the last block of each group, instead of every row
times every group.

Two ways to lay them out. `cut` leaves rows where they are: a block that would
stick out past the last row is moved back, so that no array needs padding, and
`Blocks.mine` masks rows of other groups at its front, as it does at its back.
`pad` gives every group whole blocks of its own, so that nothing needs a mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Blocks(NamedTuple):
  """The blocks of one grouping.

  Attributes:
    group: int32 [N], the group that each block serves.
    start: int32 [N], the block's first row.
    first: int32 [N], its first row that belongs to the group.
    stop: int32 [N], one past its last row that belongs to the group.
    count: int32 [], how many of the N blocks there are; N is the most that
      the sizes allow.
    rows: rows per block.
  """

  group: jax.Array
  start: jax.Array
  first: jax.Array
  stop: jax.Array
  count: jax.Array
  rows: int

  def mine(self, i):
    """Bool [rows, 1]: which rows of block `i` belong to its group."""
    row = self.start[i] + jnp.arange(self.rows, dtype=jnp.int32)[:, None]
    return (row >= self.first[i]) & (row < self.stop[i])


def cut(group_sizes, n_rows: int, rows: int) -> Blocks:
  """Cuts `n_rows` rows into blocks of `rows` rows.

  Args:
    group_sizes: int32 [E], consecutive rows of each group; their sum is at
      most `n_rows`.
    n_rows: T, static.
    rows: rows per block, at most `n_rows`.

  Returns:
    The `Blocks`.

  >>> cut(jnp.array([3, 0, 2]), 6, 2).start[:3].tolist()
  [0, 2, 3]
  """
  group_sizes = group_sizes.astype(jnp.int32)
  n_groups = group_sizes.shape[0]
  stops = jnp.cumsum(group_sizes)
  per_group = (group_sizes + rows - 1) // rows
  last = jnp.cumsum(per_group)
  most = n_rows // rows + n_groups
  block = jnp.arange(most, dtype=jnp.int32)
  # The group of block i is the number of groups that end at or before it.
  group = (last[None, :] <= block[:, None]).sum(1, dtype=jnp.int32)
  group = jnp.minimum(group, n_groups - 1)
  first = stops[group] - group_sizes[group]
  first += (block - last[group] + per_group[group]) * rows
  return Blocks(
    group=group,
    start=jnp.minimum(first, n_rows - rows),
    first=first,
    stop=jnp.minimum(first + rows, stops[group]),
    count=last[-1],
    rows=rows,
  )


class Padded(NamedTuple):
  """Groups of whole blocks, one after the other.

  Attributes:
    group: int32 [N], the group of each block.
    first: int32 [E], the first row of each group.
    count: int32 [], how many of the N blocks hold rows of any group.
  """

  group: jax.Array
  first: jax.Array
  count: jax.Array


def pad(group_sizes, n_rows: int, rows: int) -> Padded:
  """Gives each group as many whole blocks of `rows` rows as it needs.

  Args:
    group_sizes: int32 [E]; their sum is at most `n_rows`.
    n_rows: T, static.
    rows: rows per block.

  Returns:
    The `Padded`; N is the most blocks that such groups can need.

  >>> pad(jnp.array([3, 0, 2]), 5, 2).group[:3].tolist()
  [0, 0, 2]
  """
  n_groups = group_sizes.shape[0]
  per_group = (group_sizes.astype(jnp.int32) + rows - 1) // rows
  last = jnp.cumsum(per_group)
  most = (n_rows + min(n_groups, n_rows) * (rows - 1)) // rows
  block = jnp.arange(most, dtype=jnp.int32)
  group = (last[None, :] <= block[:, None]).sum(1, dtype=jnp.int32)
  return Padded(
    group=jnp.minimum(group, n_groups - 1),
    first=(last - per_group) * rows,
    count=last[-1],
  )


def spare(n_groups: int, n_rows: int, rows: int) -> Padded:
  """Gives each group whole blocks for `n_rows` rows, needed or not."""
  per_group = -(-n_rows // rows)
  group = jnp.arange(n_groups, dtype=jnp.int32)
  return Padded(
    group=jnp.repeat(group, per_group),
    first=group * (per_group * rows),
    count=jnp.int32(n_groups * per_group),
  )
