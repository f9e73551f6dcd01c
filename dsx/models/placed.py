"""Variables with experts where a placement has them, copies and all.

A layer's matrices [E, ...] become [P, ...], one for each place, and the
collection `placement` says where the copies of each expert are; `moe.Experts`
looks there. Router and biases stay as they are: a model routes to experts, and
its results are the same to rounding wherever these are.

Legend (parallel/axes.py): E experts, P places of experts and copies.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from jax.sharding import SingleDeviceSharding

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
  """Takes rows `expert` [P] of [E, ...], in its `sharding`."""
  if isinstance(sharding, SingleDeviceSharding):
    return jax.jit(_taken)  # on any device, if the matrix is
  spec = sharding.spec if isinstance(sharding, NamedSharding) else ()
  if not spec or spec[0] is None:
    return jax.jit(_taken, out_shardings=sharding)
  return jax.jit(
    jax.shard_map(
      functools.partial(_taken_from_others, axis=spec[0]),
      mesh=sharding.mesh,
      in_specs=(spec, PartitionSpec(spec[0])),
      out_specs=spec,
      check_vma=False,
    )
  )


def _taken(x, expert):
  return x.at[expert].get(mode="promise_in_bounds")


def _taken_from_others(x, expert, *, axis):
  """Of the devices' own rows [E / D, ...], those that this one needs [P / D].

  One row of every device at a time: left to itself, XLA gathers all of them.
  """
  n = x.shape[0]

  def some(i, found):
    rows = lax.all_gather(x[i], axis)  # [D, ...]
    theirs = (expert % n == i).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(theirs, _taken(rows, expert // n), found)

  nothing = jnp.zeros((expert.size, *x.shape[1:]), x.dtype)
  return lax.fori_loop(0, n, some, nothing)
