"""Sorts tokens by expert and brings the experts' results back.

A permutation's gradient is its inverse, so both directions, forward and
backward, are gathers here: JAX would transpose a gather to a scatter-add,
which a CPU does row by row and which is not deterministic on a GPU.

Legend (parallel/axes.py): T tokens, K experts per token, E experts, D model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsx.ops import manual_axes
from dsx.ops import platforms

_INT32_MAX = jnp.iinfo(jnp.int32).max
# Small enough that counts are exact in bfloat16, which a TPU multiplies in.
_COUNTED = 256


class Permutation(NamedTuple):
  """Where each copy of each token lies once copies are sorted by expert.

  Attributes:
    copy: int32 [T * K], copy t * K + k that lies in each sorted row.
    row: int32 [T, K], the sorted row of each copy: the inverse.
  """

  copy: jax.Array
  row: jax.Array


def by_expert(index, n_experts: int) -> Permutation:
  """The stable order of copies by expert.

  Args:
    index: int32 [T, K], expert of each copy; those not in [0, E) come last.
    n_experts: E.

  Returns:
    The `Permutation`.

  >>> by_expert(jnp.array([[1, 0], [0, 2]]), 3).row.tolist()
  [[2, 0], [1, 3]]
  """
  expert = index.reshape(-1)
  expert = jnp.where(expert < 0, n_experts, jnp.minimum(expert, n_experts))
  places = jnp.arange(expert.size, dtype=jnp.int32)
  if platforms.target() == "tpu":
    row = _counted(expert, n_experts + 1)
    copy = jnp.zeros_like(row).at[row].set(places, unique_indices=True)
    return Permutation(copy, row.reshape(index.shape))
  if (n_experts + 1) * expert.size <= _INT32_MAX:
    # Expert and place in one number: one array to sort is several times
    # faster on a CPU than one array to sort another by.
    copy = jnp.sort(expert * expert.size + places) % expert.size
  else:
    copy = jnp.argsort(expert, stable=True).astype(jnp.int32)
  row = jnp.zeros_like(copy).at[copy].set(places, unique_indices=True)
  return Permutation(copy, row.reshape(index.shape))


def _counted(kind, n_kinds: int):
  """The row of each element once sorted by kind, by counting.

  A TPU sorts slowly, and its compiler takes ten seconds over every sort; it
  multiplies fast. Within a block of elements, the product of a triangle of
  ones and of the kinds' indicators counts who came before.

  Args:
    kind: int32 [M], each in [0, n_kinds).
    n_kinds: how many kinds.
  """
  blocks = -(-kind.size // _COUNTED)
  padded = jnp.pad(kind, (0, blocks * _COUNTED - kind.size), mode="edge")
  padded = padded.reshape(blocks, _COUNTED)
  kinds = jnp.arange(n_kinds, dtype=kind.dtype)[None, None, :]
  is_kind = (padded[:, :, None] == kinds).astype(jnp.float32)
  earlier = jnp.tril(jnp.ones((_COUNTED,) * 2, jnp.float32), -1)
  within = jnp.einsum("ij,bjk->bik", earlier, is_kind)  # exact: at most 256
  sizes = is_kind.sum(1).astype(jnp.int32)  # [blocks, kinds]
  before = jnp.cumsum(sizes, axis=0) - sizes
  first = jnp.cumsum(group_sizes(kind, n_kinds))
  first = first - group_sizes(kind, n_kinds)
  row = within.astype(jnp.int32) + (before + first[None, :])[:, None, :]
  row = jnp.where(is_kind > 0, row, 0).sum(-1)
  return row.reshape(-1)[: kind.size]


def group_sizes(index, n_experts: int):
  """Int32 [E]: how many copies each expert receives of `index` [T, K]."""
  experts = jnp.arange(n_experts, dtype=index.dtype)[None, :]
  return (index.reshape(-1)[:, None] == experts).sum(0, dtype=jnp.int32)


def permute(x, index, n_experts: int, *, most: int | None = None):
  """Copies each token once per expert it goes to, sorted by expert.

  Args:
    x: [T, D].
    index: int32 [T, K], experts of each token.
    n_experts: E.
    most: M, at least as many as there are entries of `index` in [0, E); None
      is T * K.

  Returns:
    ([M, D], `Permutation`). Rows past the last expert's are of copies that no
    expert takes, and so are those that do not exist if M < T * K.
  """
  order = by_expert(index, n_experts)
  x, copy, row = manual_axes.align(x, order.copy[:most], order.row)
  return _spread(x, copy, row), order


def unpermute(y, weight, order: Permutation):
  """Sums the results of each token's copies, weighted.

  Args:
    y: [M, D], rows sorted by expert.
    weight: [T, K], gate weight of each copy, of any floating dtype.
    order: what `permute` returned.

  Returns:
    [T, D] in y's dtype, summed in float32; differentiable in `y`, `weight`.
  """
  return _gather_sum(*manual_axes.align(y, weight, *order))


def take(x, index):
  """Rows of `x` at `index`, all of which exist."""
  return x.at[index].get(mode="promise_in_bounds")


def _take_or_zero(x, index):
  """Rows of `x` at `index`, zeros for those that do not exist."""
  return x.at[index].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _spread(x, copy, row):
  return take(x, copy // row.shape[1])


def _spread_forward(x, copy, row):
  return _spread(x, copy, row), row


def _spread_backward(row, dy):
  # One copy of the tokens at a time: all K of them would be K times as large.
  dx = jnp.zeros((row.shape[0], dy.shape[1]), jnp.float32)
  for k in range(row.shape[1]):
    dx += _take_or_zero(dy, row[:, k])
  return dx.astype(dy.dtype), None, None


_spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def _gather_sum(y, weight, copy, row):
  del copy
  weight = weight.astype(jnp.float32)
  total = jnp.zeros((row.shape[0], y.shape[1]), jnp.float32)
  for k in range(row.shape[1]):
    total += _take_or_zero(y, row[:, k]) * weight[:, k, None]
  return total.astype(y.dtype)


def _gather_sum_forward(y, weight, copy, row):
  return _gather_sum(y, weight, copy, row), (y, weight, copy, row)


def _gather_sum_backward(saved, dout):
  y, weight, copy, row = saved
  copy = copy[: y.shape[0]]
  scale = take(weight.reshape(-1), copy)[:, None].astype(jnp.float32)
  dy = take(dout, copy // row.shape[1]) * scale
  dweight = [
    (_take_or_zero(y, row[:, k]).astype(jnp.float32) * dout).sum(-1)
    for k in range(row.shape[1])
  ]
  dweight = jnp.stack(dweight, axis=1).astype(weight.dtype)
  return dy.astype(y.dtype), dweight, None, None


_gather_sum.defvjp(_gather_sum_forward, _gather_sum_backward)
