"""A linear layer in FP8 on a mesh: each device its own tokens.

Tiles of the weights' gradient run along tokens. Left to itself, the compiler
would gather the tokens of all devices to cut them; and it cannot divide a
kernel at all. So the layer runs inside `jax.shard_map`: tiles end where a
device's tokens end, and where a matrix is divided by `tensor`, its blocks begin
anew on each device. Matrices are gathered over the other axes in FP8, where
whole blocks lie on each device, and their gradients summed and scattered in
float32.

Legend (parallel/axes.py): B batch, L length, D in, F out.
"""

import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dsx.ops import block_scaled
from dsx.ops import fp8_linear
from dsx.parallel import axes


def run(core, inputs, w, probe, names):
  """Calls `core` with each device's own tokens and matrix.

  Args:
    core: a function of *inputs, w, probe and a `fp8_linear.Spread`, which
      returns [B, L, F].
    inputs: arrays [B, L, D].
    w: [D, F], or FP8 with block scales, which the compiler divides.
    probe: of `fp8_linear.matmul`.
    names: logical axes of `w`.

  Returns:
    [B, L, F].
  """
  mesh = jax.sharding.get_abstract_mesh()
  manual = set(getattr(mesh, "manual_axes", ()))
  sizes = {a: n for a, n in mesh.shape.items() if a not in manual}
  alone = math.prod(sizes.values()) == 1
  if alone or isinstance(w, block_scaled.BlockScaled) or inputs[0].ndim != 3:
    return core(*inputs, w, probe, fp8_linear.WHOLE)
  into, out = (
    _dividing(_mesh_axes(name, sizes), size, sizes)
    for name, size in zip(names, w.shape, strict=True)
  )
  over = [tuple(a for a in part if a != axes.TENSOR) for part in (into, out)]
  spread = fp8_linear.Spread(
    tuple((d, part) for d, part in enumerate(over) if part)
  )
  summed = axes.TENSOR in into
  rows = tuple(
    _dividing(_mesh_axes(name, sizes), size, sizes)
    for name, size in zip(
      (axes.BATCH, axes.LENGTH), inputs[0].shape, strict=False
    )
  )
  columns = [
    axes.TENSOR if axes.TENSOR in part else None for part in (into, out)
  ]
  tokens = [part or None for part in rows]
  x_spec = PartitionSpec(*tokens, columns[0])
  once = _once(sizes, into, out, rows, columns)

  def body(w, probe, *inputs):
    if probe is not None:
      probe = probe * once[:, None]
    y = core(*inputs, w, probe, spread)
    return lax.psum(y, axes.TENSOR) if summed else y

  return jax.shard_map(
    body,
    in_specs=(
      PartitionSpec(into or None, out or None),
      PartitionSpec(),
      *(x_spec,) * len(inputs),
    ),
    out_specs=PartitionSpec(*tokens, columns[1]),
    axis_names=set(sizes),
    check_vma=False,
  )(w, probe, *inputs)


def _mesh_axes(name, sizes) -> tuple[str, ...]:
  """Mesh axes of more than one device that divide a logical axis."""
  part = dict(nn.get_logical_axis_rules()).get(name)
  part = (part,) if isinstance(part, str) else tuple(part or ())
  return tuple(a for a in part if sizes.get(a, 1) > 1)


def _dividing(part, size: int, sizes):
  """The mesh axes `part`, or none where they do not divide `size`."""
  return part if size % _product(part, sizes) == 0 else ()


def _product(part, sizes) -> int:
  return math.prod(sizes[a] for a in part)


def _once(sizes, into, out, rows, columns):
  """What a probe's rows are multiplied by, so that nothing counts twice.

  Each device counts what it has, and others may have the same.
  """
  everyone = math.prod(sizes.values())
  tokens = _product((*rows[0], *rows[1]), sizes)
  of_input, of_output = (tokens * sizes.get(a, 1) for a in columns)
  counted = jnp.array([of_input, _product((*into, *out), sizes), of_output])
  return counted.astype(jnp.float32) / everyone
