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

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dsx.ops import block_scaled
from dsx.ops import expert_mlp
from dsx.ops import fp8_recipe
from dsx.parallel import axes
from dsx.parallel import rounds
from dsx.parallel import ways


def run(
  x,
  index,
  weight,
  kernels,
  config,
  *,
  impl: str,
  dispatch: Any,
  fp8: fp8_recipe.Recipe | None = None,
  probe=None,
):
  """Sums weight * expert(x) over each token's experts, wherever they are.

  Args:
    x: [B, L, D].
    index: int32 [B, L, K], experts of each token; negative ones add nothing.
    weight: float32 [B, L, K].
    kernels: (gate [E, D, F], up [E, D, F], down [E, F, D]), arrays in x's
      dtype or FP8 with block scales.
    config: an object with `DeepSeekConfig`'s routing fields.
    impl: of `ops.expert_mlp`.
    dispatch: an object with the fields of `config.Dispatch`. Its `dtype`
      `float8` says how products in FP8 have their rows even where none travel.
    fp8: of `ops.expert_mlp`. Rows give the numbers of one device wherever they
      go. Weights' gradients do as far as an expert's rows keep the order of
      tokens (`flat` within one `data` shard), as tiles are 128 rows of it;
      and blocks of weights are those of one device where `tensor` leaves each
      a multiple of 128 columns of F.
    probe: of `ops.expert_mlp`; sums of all devices.

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
    y = expert_mlp.expert_mlp(
      *flat,
      *kernels,
      impl=impl,
      fp8=fp8,
      dispatched=dispatch.dtype == "float8",
      probe=probe,
    )
    return y.reshape(x.shape), jnp.zeros((), jnp.float32)

  specs, expert_axes, gathered, shared = _kernel_specs(mesh, kernels)
  x_spec, arrays = _divided((x, index, weight), mesh)
  shards = math.prod(mesh.shape[a] for a in names if a != axes.TENSOR)
  tensor = mesh.shape.get(axes.TENSOR, 1)
  way = ways.plan(
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
    functools.partial(
      _on_device, way=way, gathered=gathered, parts=tensor, fp8=fp8
    ),
    in_specs=(x_spec, x_spec, x_spec, PartitionSpec(), *specs),
    out_specs=(x_spec, PartitionSpec()),
    axis_names=set(names) | _undivided(mesh),
    check_vma=False,
  )(*arrays, probe, *kernels)
  y = y.reshape(-1, x.shape[-1])[:tokens]
  return y.reshape(x.shape), dropped


def _divided_axes(mesh) -> tuple[str, ...]:
  """Mesh axes that divide tokens or matrices here, outermost first."""
  manual = set(getattr(mesh, "manual_axes", ()))
  wanted = (*axes.BATCH_MESH_AXES, axes.CONTEXT, axes.TENSOR)
  return tuple(
    a for a in wanted if mesh.shape.get(a, 1) > 1 and a not in manual
  )


def _undivided(mesh) -> set[str]:
  """Axes of one device: a kernel of Pallas wants no axis to be automatic."""
  manual = getattr(mesh, "manual_axes", ())
  return {a for a in mesh.axis_names if mesh.shape[a] == 1 and a not in manual}


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


def _on_device(
  x, index, weight, probe, *kernels, way: ways.Way, gathered, parts: int, fp8
):
  """The body: this device's tokens [B, L, D] and its experts' kernels."""
  shape = x.shape
  x, index, weight = (
    a.reshape(shape[0] * shape[1], -1) for a in (x, index, weight)
  )
  x, index, weight = _own_part(x, index, weight, parts)
  if gathered:
    if not isinstance(kernels[0], block_scaled.BlockScaled):
      kernels = (k.astype(x.dtype) for k in kernels)  # half the bytes
    gate, up, down = kernels
    gather = functools.partial(lax.all_gather, axis_name=gathered, tiled=True)
    kernels = gather(gate, axis=1), gather(up, axis=1), gather(down, axis=2)
  y: Any
  y, dropped = rounds.run(x, index, weight, kernels, way, fp8, probe)
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
