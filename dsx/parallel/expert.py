"""Dispatch of tokens to experts, and combination of what they return.

Section 2.1.2, eq. 12. On one device this is a sort of (token, expert) pairs
by expert, and its inverse; nothing is dropped. Under a mesh that divides the
batch, `over_batch` runs that same code on every device's own tokens, with the
experts' weights gathered to where the tokens are.

Legend (parallel/axes.py): T tokens, D model, E experts, K experts per token.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dsx.ops import permutation
from dsx.parallel import axes


def dispatch(x, index, n_experts: int):
  """Sorts copies of tokens by expert.

  Args:
    x: [T, D].
    index: int32 [T, K], chosen experts.
    n_experts: E.

  Returns:
    (rows [T*K, D] sorted by expert, group_sizes int32 [E], the order that
    `combine` needs to undo it).
  """
  rows, order = permutation.permute(x, index)
  experts = jnp.arange(n_experts, dtype=index.dtype)
  chosen = index.reshape(-1)[:, None] == experts[None, :]
  return rows, chosen.sum(0, dtype=jnp.int32), order


def combine(rows, weight, order):
  """Weighted sum over each token's experts, in the tokens' order.

  Args:
    rows: [T*K, D], experts' outputs in dispatch order.
    weight: float32 [T, K], gate weights.
    order: from `dispatch`.

  Returns:
    [T, D] in the dtype of `rows`.
  """
  return permutation.unpermute(rows, weight, order)


def over_batch(experts):
  """Runs `experts(x, index, weight, *weights)` where the tokens are.

  Args:
    experts: a function of x [T, D], index [T, K], weight [T, K] and any
      number of expert weights, which returns [T, D].

  Returns:
    The same function. Without a mesh (or with one that does not divide the
    batch) it is `experts` itself; with one, tokens stay on their device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  names = [a for a in axes.BATCH_MESH_AXES if mesh.shape.get(a, 1) > 1]
  if not names:
    return experts
  tokens = PartitionSpec(tuple(names))

  def mapped(x, index, weight, *weights):
    return jax.shard_map(
      experts,
      in_specs=(tokens, tokens, tokens) + (PartitionSpec(),) * len(weights),
      out_specs=tokens,
      axis_names=set(names),
      check_vma=False,
    )(x, index, weight, *weights)

  return mapped
