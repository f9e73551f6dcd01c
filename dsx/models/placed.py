"""Variables with experts where a placement has them, copies and all.

A layer's matrices [E, ...] become [P, ...], one for each place, and the
collection `placement` says where the copies of each expert are; `moe.Experts`
looks there. Router and biases stay as they are: a model routes to experts, and
its results are the same to rounding wherever these are.

Legend (parallel/axes.py): E experts, P places of experts and copies.
"""

import functools

import jax
import jax.numpy as jnp

from dsx.parallel import placement_file
from dsx.parallel import replicas


def placed(variables, placement: placement_file.Placement) -> dict:
  """Puts experts where they belong.

  Args:
    variables: in the layout `layers` (`layout.py`). Its experts are taken away
      one matrix after the other, so that no second model is ever in memory.
    placement: of the model. Layers that it does not name, or that `variables`
      has not (MTP modules that do not draft), are left alone.

  Returns:
    The variables with further rows in the experts' matrices, and `placement`.
    A matrix that is spread over devices stays so.
  """
  collection = {}
  for name, expert in placement.layers.items():
    block = "block" if name.startswith("mtp_") else None
    outer = name if block else f"layers_{name}"
    if outer not in variables["params"]:
      continue
    tree = variables["params"][outer]
    tree = tree[block] if block else tree
    _take_all(tree["mlp"]["experts"], jnp.asarray(expert, jnp.int32))
    table = {"mlp": {"experts": {replicas.NAME: placement.replicas(name)}}}
    collection[outer] = {block: table} if block else table
  return {**variables, replicas.COLLECTION: collection}


def _take_all(experts: dict, expert) -> None:
  for name in list(experts):
    matrix = experts.pop(name)
    leaves, tree = jax.tree.flatten(matrix)  # FP8 has values and scales
    del matrix
    for place in range(len(leaves)):
      leaves[place] = _taker(leaves[place].sharding)(leaves[place], expert)
    experts[name] = jax.tree.unflatten(tree, leaves)


@functools.cache
def _taker(sharding):
  def take(x, expert):
    return x.at[expert].get(mode="promise_in_bounds")

  return jax.jit(take, out_shardings=sharding)
