"""Rounds of tokens through experts on other devices.

A round takes as many tokens as the buffers of its way have room for: out, hop
by hop, through the experts of wherever they arrive, and back. One round is
enough unless buffers have a fixed capacity; then whatever has no room waits for
a further one. How many there are is the same on all devices, because all take
part in each.

Legend (parallel/axes.py): T tokens of a device, D model, K experts per token.
"""

import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import expert_mlp
from dsx.ops import fp8_recipe
from dsx.ops import permutation
from dsx.parallel import axes
from dsx.parallel import dispatch as dispatch_lib
from dsx.parallel import ways

# The loops over them bear this name in the compiled program; as a rule they do
# not run.
FURTHER_ROUNDS = "further_rounds"


def run(
  x,
  index,
  weight,
  kernels,
  way: ways.Way,
  fp8: fp8_recipe.Recipe | None = None,
  probe=None,
):
  """Takes this device's tokens through all their experts.

  To be called in a `jax.shard_map` body over `way.mesh_axes`.

  Args:
    x: [T, D].
    index: int32 [T, K], experts of each token; negative for none.
    weight: float32 [T, K].
    kernels: of this device's experts.
    way: the way.
    fp8: of `expert_mlp`. Rows are tiled in the order in which they arrive, and
      those of further rounds apart.
    probe: of `expert_mlp`.

  Returns:
    (y [T, D], dropped float32 []): copies that had no room, on all devices.
  """
  splits, total = turns(index, way)
  y: Any
  arrays = (x, index, weight, kernels, probe)
  y, arrived = _round(0, splits, *arrays, way, fp8)
  if way.rounds:
    more: Any = _further(splits, total, *arrays, way, fp8)
    y = y + more
  dropped = jnp.zeros((), jnp.float32)
  if way.counts_drops:
    missing = ((index >= 0).sum() - arrived).astype(jnp.float32)
    dropped = lax.psum(missing, way.mesh_axes)
  return y, dropped


def turns(index, way: ways.Way):
  """(turns of the first hop, all rounds), int32 [], the same on all devices."""
  if not way.rounds:
    return jnp.int32(1), jnp.int32(1)
  device = jnp.where(index >= 0, index // way.experts, -1)
  devices = math.prod(hop.blocks for hop in way.hops)
  copies = permutation.group_sizes(device, devices).max()
  block = dispatch_lib.blocks_of(index, 0, way.hops[0])
  rows = permutation.group_sizes(block, way.hops[0].blocks).max()
  needed = jnp.stack(
    [-(-rows // way.hops[0].capacity), -(-copies // way.quota)]
  )
  splits, quotas = lax.pmax(jnp.maximum(needed, 1), way.mesh_axes)
  return splits, splits * quotas


def _admitted(index, turn, way: ways.Way):
  """`index` without the copies that this turn's quotas have no room for."""
  if not (way.rounds or way.counts_drops):
    return index
  device = jnp.where(index >= 0, index // way.experts, -1)
  devices = math.prod(hop.blocks for hop in way.hops)
  order = permutation.by_expert(device, devices)
  sizes = permutation.group_sizes(device, devices)
  first = jnp.cumsum(sizes) - sizes
  rank = order.row - permutation.take(first, jnp.maximum(device, 0))
  return jnp.where(rank // way.quota == turn, index, -1)


def _round(i, splits, x, index, weight, kernels, probe, way: ways.Way, recipe):
  """One round: ([T, D] of what took part in it, copies that arrived)."""
  index = _admitted(index, i // splits, way)
  turn, first, at = i % splits, jnp.int32(0), []
  # Index and weight travel as one; empty places arrive as zeros, so that
  # experts are numbered from one meanwhile.
  k, there = index.shape[1], _joined(index + 1, weight)
  for hop in way.hops:
    block = dispatch_lib.blocks_of(there[:, :k] - 1, first, hop)
    at.append(dispatch_lib.places(block, turn, hop))
    there = dispatch_lib.carry(there, (hop,), (at[-1],), way.wire)
    first = first + lax.axis_index(hop.axis) * hop.experts
    turn = 0  # a later hop's blocks hold all that the first one brings
  at = tuple(at)
  index, known = there[:, :k] - 1, _weights(there[:, k:])
  rows = dispatch_lib.spread(x, at, way.hops, way.wire, way.float8)
  weight = dispatch_lib.spread_already(weight, known, at, way.hops, way.wire)
  index, weight = _own_experts(index, weight, first, way)
  arrived = (index >= 0).sum()
  if way.tensor > 1:
    gather = functools.partial(
      lax.all_gather, axis_name=axes.TENSOR, tiled=True
    )
    rows, index, weight = gather(rows), gather(index), gather(weight)
  y = expert_mlp.expert_mlp(
    rows,
    index,
    weight,
    *kernels,
    impl=way.impl,
    copies=way.copies * way.tensor if way.hops else None,
    fp8=recipe,
    dispatched=way.float8,
    probe=probe,
  )
  if way.tensor > 1:
    y = lax.psum_scatter(y, axes.TENSOR, tiled=True)
  return dispatch_lib.collect(y, at, way.hops, way.wire, way.float8), arrived


def _joined(index, weight):
  """Index and weight [T, K] each, as the bits of int32 [T, 2 K]."""
  bits = lax.bitcast_convert_type(lax.stop_gradient(weight), jnp.int32)
  return jnp.concatenate([index, bits], axis=1)


def _weights(bits):
  return lax.bitcast_convert_type(bits, jnp.float32)


def _own_experts(index, weight, first, way: ways.Way):
  """Index and weight [T, K'] of this device's experts, numbered from 0.

  K' is the most of them that one token can have; -1 fills up.
  """
  index = index - first
  mine = (index >= 0) & (index < way.experts)
  most = min(index.shape[1], way.experts)
  place = jnp.cumsum(mine, axis=1) - 1
  chosen = mine[:, :, None] & (
    place[:, :, None] == jnp.arange(most, dtype=place.dtype)[None, None, :]
  )  # [T, K, K']
  own = jnp.where(chosen, index[:, :, None] + 1, 0).sum(1) - 1
  return own, jnp.where(chosen, weight[:, :, None], 0.0).sum(1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _further(
  splits, total, x, index, weight, kernels, probe, way: ways.Way, recipe
):
  """All rounds but the first, [T, D]; none, as a rule."""
  arrays = (x, index, weight, kernels, probe)

  def add(i, y):
    return y + _round(i, splits, *arrays, way, recipe)[0]

  with jax.named_scope(FURTHER_ROUNDS):
    return lax.fori_loop(1, total, add, jnp.zeros_like(x))


def _further_forward(
  splits, total, x, index, weight, kernels, probe, way, recipe
):
  saved = (splits, total, x, index, weight, kernels, probe)
  return _further(*saved, way, recipe), saved


def _further_backward(way, recipe, saved, dy):
  splits, total, x, index, weight, kernels, probe = saved

  def add(i, grads):
    def of(x, weight, kernels, probe):
      arrays = (x, index, weight, kernels, probe)
      return _round(i, splits, *arrays, way, recipe)[0]

    _, pull = jax.vjp(of, x, weight, kernels, probe)
    return jax.tree.map(jnp.add, grads, pull(dy))

  zeros = jax.tree.map(jnp.zeros_like, (x, weight, kernels, probe))
  with jax.named_scope(FURTHER_ROUNDS):
    grads: Any = lax.fori_loop(1, total, add, zeros)
  dx, dweight, dkernels, dprobe = grads
  return None, None, dx, None, dweight, dkernels, dprobe


_further.defvjp(_further_forward, _further_backward)
