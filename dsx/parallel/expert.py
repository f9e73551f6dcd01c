"""Where the routed experts run, and how tokens get there.

Section 2.1.2, eq. 12, and section 3.2.2. `ops.expert_mlp` takes tokens through
their experts on one device. Where the experts are spread over `node` x `local`,
tokens travel to them first and their results travel back:

  no mesh, or whole experts on every device   tokens stay where they are
  `flat`                                      one hop to each device needed
  `two_hop`                                   one hop over `node` to each node
                                              needed, at most `topk_group`, and
                                              one over `local` from there

Tensor parallelism: each of the devices that share a matrix sends its own part
of the tokens, so that no row crosses a network twice. Behind the last hop the
parts are gathered, every device multiplies its columns of F, and the results
are summed and scattered again.

Nothing is dropped unless it is asked for: what buffers of a fixed capacity
cannot hold travels in further rounds, as many as the fullest buffer anywhere
needs.

Legend (parallel/axes.py): B batch, L length, T tokens of a device, D model,
F feed-forward, E experts, K experts per token, N nodes.
"""

import functools
import math
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dsx.ops import block_scaled
from dsx.ops import expert_mlp
from dsx.ops import permutation
from dsx.parallel import axes
from dsx.parallel import dispatch as dispatch_lib

# The loops over them bear this name in the compiled program; as a rule they do
# not run.
FURTHER_ROUNDS = "further_rounds"

# Buffers of a limited capacity are a multiple of this many rows.
_ROWS = 8


class Way(NamedTuple):
  """The way of one layer's tokens, known before any token is (static).

  Attributes:
    mesh_axes: all axes that divide tokens or matrices.
    expert_axes: those over which the experts are spread.
    hops: of `dispatch`, none where experts are whole everywhere.
    experts: experts of one device.
    quota: copies (a token at one of its experts) that a device may send to
      another in one round.
    copies: most copies that a device receives in one round.
    rounds: whether buffers may overflow into further rounds.
    counts_drops: whether what does not fit is left out and counted.
    tensor: devices that share a matrix and gather their rows; 1 for none.
    wire: of `exchange.exchange`.
    float8: whether activations travel in FP8.
    impl: of `expert_mlp`.
  """

  mesh_axes: tuple[str, ...]
  expert_axes: tuple[str, ...]
  hops: tuple[dispatch_lib.Hop, ...]
  experts: int
  quota: int
  copies: int
  rounds: bool
  counts_drops: bool
  tensor: int
  wire: str
  float8: bool
  impl: str


def reachable(config, nodes: int) -> int:
  """Most nodes that one token's experts can be on.

  Args:
    config: an object with `DeepSeekConfig`'s routing fields.
    nodes: N; node i holds the i-th part of the experts.

  Returns:
    `topk_group` where a node holds whole groups of experts; more where groups
    are spread over several nodes or cross their borders.
  """
  most = min(nodes, config.num_experts_per_tok)
  if config.topk_method == "greedy":
    return most
  n_group = config.n_group
  if n_group % nodes == 0:
    spread = 1
  elif nodes % n_group == 0:
    spread = nodes // n_group
  else:  # a border of nodes lies within a group
    spread = -(-nodes // n_group) + 1
  return min(most, config.topk_group * spread)


def run(x, index, weight, kernels, config, *, impl: str, dispatch: Any):
  """Sums weight * expert(x) over each token's experts, wherever they are.

  Args:
    x: [B, L, D].
    index: int32 [B, L, K], experts of each token; negative ones add nothing.
    weight: float32 [B, L, K].
    kernels: (gate [E, D, F], up [E, D, F], down [E, F, D]), arrays in x's
      dtype or FP8 with block scales.
    config: an object with `DeepSeekConfig`'s routing fields.
    impl: of `ops.expert_mlp`.
    dispatch: an object with the fields of `config.Dispatch`.

  Returns:
    (y [B, L, D], dropped): copies that found no room, float32 [], of the
    whole batch.

  Raises:
    ValueError: the experts do not divide over the devices.
  """
  mesh = jax.sharding.get_abstract_mesh()
  names = _divided_axes(mesh)
  tokens = x.shape[0] * x.shape[1]
  if not names:
    flat = (a.reshape(tokens, -1) for a in (x, index, weight))
    y = expert_mlp.expert_mlp(*flat, *kernels, impl=impl)
    return y.reshape(x.shape), jnp.zeros((), jnp.float32)

  specs, expert_axes, gathered, shared = _kernel_specs(mesh, kernels)
  x_spec, arrays = _divided((x, index, weight), mesh)
  shards = math.prod(mesh.shape[a] for a in names if a != axes.TENSOR)
  tensor = mesh.shape.get(axes.TENSOR, 1)
  way = _way(
    tokens=-(-arrays[0].shape[0] * arrays[0].shape[1] // (shards * tensor)),
    mesh=mesh,
    names=names,
    expert_axes=expert_axes,
    shares_matrices=bool(shared),
    config=config,
    impl=impl,
    dispatch=dispatch,
  )
  y, dropped = jax.shard_map(
    functools.partial(_on_device, way=way, gathered=gathered, parts=tensor),
    in_specs=(x_spec, x_spec, x_spec, *specs),
    out_specs=(x_spec, PartitionSpec()),
    axis_names=set(names),
    check_vma=False,
  )(*arrays, *kernels)
  y = y.reshape(-1, x.shape[-1])[:tokens]
  return y.reshape(x.shape), dropped


def _divided_axes(mesh) -> tuple[str, ...]:
  """Mesh axes that divide tokens or matrices here, outermost first."""
  manual = set(getattr(mesh, "manual_axes", ()))
  wanted = (*axes.BATCH_MESH_AXES, axes.CONTEXT, axes.TENSOR)
  return tuple(
    a for a in wanted if mesh.shape.get(a, 1) > 1 and a not in manual
  )


def _divided(arrays, mesh):
  """Arrays [B, L, ...] that divide over the mesh, and how they do.

  Where B or L does not divide (a few tokens of decoding), tokens are laid out
  in one row and padded with such that have no expert.
  """
  names = _divided_axes(mesh)
  batch = tuple(a for a in names if a in axes.BATCH_MESH_AXES)
  context = axes.CONTEXT if axes.CONTEXT in names else None
  rows, length = arrays[0].shape[:2]
  shards = math.prod(mesh.shape[a] for a in batch)
  parts = mesh.shape[context] if context else 1
  if rows % shards == 0 and length % parts == 0:
    return PartitionSpec(batch or None, context), arrays
  everything = batch + ((context,) if context else ())
  missing = -(rows * length) % (shards * parts)

  def flat(a, fill):
    a = a.reshape(rows * length, 1, -1)
    return jnp.pad(a, ((0, missing), (0, 0), (0, 0)), constant_values=fill)

  x, index, weight = arrays
  arrays = flat(x, 0), flat(index, -1), flat(weight, 0)
  return PartitionSpec(everything), arrays


def _kernel_specs(mesh, kernels):
  """Specs of the three kernels, and the mesh axes of E, D and F in them.

  They follow the current rules of logical axes as far as the experts' way
  does: experts over `node` and `local`, F over `tensor`. D is gathered in the
  body, so that its gradient is scattered there.
  """
  rules = dict(nn.get_logical_axis_rules())

  def named(logical, allowed):
    part = rules.get(logical)
    part = (part,) if isinstance(part, str) else tuple(part or ())
    part = tuple(a for a in part if mesh.shape.get(a, 1) > 1)
    return part if set(part) <= set(allowed) else ()

  gate = kernels[0]
  spread = named(axes.EXPERTS, axes.EXPERT_MESH_AXES)
  shared = named(axes.EXPERT_MLP, (axes.TENSOR,))
  width = named(axes.EXPERT_EMBED, axes.MESH_AXES)
  if isinstance(gate, block_scaled.BlockScaled):
    width = ()  # blocks of 128 seldom divide
    parts = mesh.shape.get(axes.TENSOR, 1)
    if gate.shape[2] % (parts * block_scaled.BLOCK):
      shared = ()
  e, d, f = (part or None for part in (spread, width, shared))
  into = PartitionSpec(e, d, f)
  return (into, into, PartitionSpec(e, f, d)), spread, width, shared


def _way(
  *,
  tokens: int,
  mesh,
  names,
  expert_axes,
  shares_matrices: bool,
  config,
  impl: str,
  dispatch,
) -> Way:
  """The way for `tokens` tokens of each device."""
  k = config.num_experts_per_tok
  devices = math.prod(mesh.shape[a] for a in expert_axes)
  nodes = mesh.shape[axes.NODE] if axes.NODE in expert_axes else 1
  if config.n_routed_experts % devices:
    raise ValueError(
      f"n_routed_experts={config.n_routed_experts}: expected a multiple of "
      f"the {devices} devices of {' x '.join(expert_axes)}; change the mesh"
    )
  experts = config.n_routed_experts // devices
  reach = reachable(config, nodes)
  worst = tokens * min(k, experts)
  quota, per_node = worst, tokens
  if dispatch.capacity_factor is not None:
    room = dispatch.capacity_factor * tokens
    quota = min(worst, _rounded(room * k / devices))
    per_node = min(tokens, _rounded(room * reach / nodes))
  two_hop = dispatch.transport != "flat" and len(expert_axes) == 2
  local = devices // nodes
  if not expert_axes:
    hops = ()
  elif two_hop:
    hops = (
      dispatch_lib.Hop((axes.NODE,), nodes, local * experts, reach, per_node),
      dispatch_lib.Hop(
        (axes.LOCAL,),
        local,
        experts,
        min(k, local),
        nodes * min(per_node, quota),
      ),
    )
  else:
    hops = (
      dispatch_lib.Hop(
        expert_axes, devices, experts, min(k, devices), min(tokens, quota)
      ),
    )
  tight = bool(hops) and (quota < worst or (two_hop and per_node < tokens))
  rows = hops[-1].blocks * hops[-1].capacity if hops else tokens
  return Way(
    mesh_axes=names,
    expert_axes=expert_axes,
    hops=hops,
    experts=experts,
    quota=quota,
    copies=min(devices * quota, rows * min(k, experts)),
    rounds=tight and dispatch.overflow == "rounds",
    counts_drops=tight and dispatch.overflow == "drop",
    tensor=mesh.shape[axes.TENSOR] if shares_matrices else 1,
    wire=dispatch.wire,
    float8=dispatch.dtype == "float8",
    impl=impl,
  )


def _rounded(rows: float) -> int:
  return max(_ROWS, -(-math.ceil(rows) // _ROWS) * _ROWS)


def _on_device(x, index, weight, *kernels, way: Way, gathered, parts: int):
  """The body: this device's tokens [B, L, D] and its experts' kernels."""
  shape = x.shape
  x, index, weight = (
    a.reshape(shape[0] * shape[1], -1) for a in (x, index, weight)
  )
  x, index, weight = _own_part(x, index, weight, parts)
  if gathered:
    gate, up, down = kernels
    gather = functools.partial(lax.all_gather, axis_name=gathered, tiled=True)
    kernels = gather(gate, axis=1), gather(up, axis=1), gather(down, axis=2)
  splits, total = _turns(index, way)
  y, arrived = _round(0, splits, x, index, weight, kernels, way)
  if way.rounds:
    y = y + _further(splits, total, x, index, weight, kernels, way)
  dropped = jnp.zeros((), jnp.float32)
  if way.counts_drops:
    missing = ((index >= 0).sum() - arrived).astype(jnp.float32)
    dropped = lax.psum(missing, way.mesh_axes)
  if parts > 1:
    y = lax.all_gather(y, axes.TENSOR, tiled=True)
  return y[: shape[0] * shape[1]].reshape(shape), dropped


def _own_part(x, index, weight, parts: int):
  """The rows that this device sends, of those it shares with `parts`."""
  if parts == 1:
    return x, index, weight
  rows = -(-x.shape[0] // parts)
  missing = ((0, rows * parts - x.shape[0]), (0, 0))
  start = lax.axis_index(axes.TENSOR) * rows

  def own(a, fill):
    a = jnp.pad(a, missing, constant_values=fill)
    return lax.dynamic_slice_in_dim(a, start, rows)

  return own(x, 0), own(index, -1), own(weight, 0)


def _turns(index, way: Way):
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


def _admitted(index, turn, way: Way):
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


def _round(i, splits, x, index, weight, kernels, way: Way):
  """One round: ([T, D] of what took part in it, copies that arrived)."""
  index = _admitted(index, i // splits, way)
  turn, first, at = i % splits, jnp.int32(0), []
  for hop in way.hops:
    block = dispatch_lib.blocks_of(index, first, hop)
    at.append(dispatch_lib.places(block, turn, hop))
    # Row numbers travel plus one: empty places hold zero.
    index = dispatch_lib.carry(index + 1, (hop,), (at[-1],), way.wire) - 1
    first = first + lax.axis_index(hop.axis) * hop.experts
    turn = 0  # a later hop's blocks hold all that the first one brings
  at = tuple(at)
  rows = dispatch_lib.spread(x, at, way.hops, way.wire, way.float8)
  weight = dispatch_lib.spread(weight, at, way.hops, way.wire, False)
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
  )
  if way.tensor > 1:
    y = lax.psum_scatter(y, axes.TENSOR, tiled=True)
  return dispatch_lib.collect(y, at, way.hops, way.wire, way.float8), arrived


def _own_experts(index, weight, first, way: Way):
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _further(splits, total, x, index, weight, kernels, way: Way):
  """All rounds but the first, [T, D]; none, as a rule."""

  def add(i, y):
    return y + _round(i, splits, x, index, weight, kernels, way)[0]

  with jax.named_scope(FURTHER_ROUNDS):
    return lax.fori_loop(1, total, add, jnp.zeros_like(x))


def _further_forward(splits, total, x, index, weight, kernels, way):
  saved = (splits, total, x, index, weight, kernels)
  return _further(*saved, way), saved


def _further_backward(way, saved, dy):
  splits, total, x, index, weight, kernels = saved

  def add(i, grads):
    def of(x, weight, kernels):
      return _round(i, splits, x, index, weight, kernels, way)[0]

    _, pull = jax.vjp(of, x, weight, kernels)
    return jax.tree.map(jnp.add, grads, pull(dy))

  zeros = jax.tree.map(jnp.zeros_like, (x, weight, kernels))
  with jax.named_scope(FURTHER_ROUNDS):
    dx, dweight, dkernels = lax.fori_loop(1, total, add, zeros)
  return None, None, dx, None, dweight, dkernels


_further.defvjp(_further_forward, _further_backward)
