"""Attention of whole sequences, each device its own sequences and heads.

Where the compiler divides arrays over devices, it can divide the operations of
attention, but not a kernel: that has to be called with each device's own part,
inside `jax.shard_map`. Nothing is sent either way.

Legend (parallel/axes.py): B batch, L length, H heads, K qk head dim, U value
head dim.
"""

import functools

from flax import linen as nn
import jax
from jax.sharding import PartitionSpec

from dsx.ops import attention
from dsx.ops import masks
from dsx.parallel import axes
from dsx.parallel import sharding

_KERNEL = "splash"


def attend(
  query,
  key,
  value,
  *,
  scale: float,
  segment_ids=None,
  impl: str = "auto",
  saved_as: str | None = None,
):
  """Causal attention of sequences to themselves.

  Args:
    query: [B, L, H, K].
    key: [B, L, H, K].
    value: [B, L, H, U].
    scale: multiplies the products.
    segment_ids: optional int32 [B, L].
    impl: of `attention.attention`.
    saved_as: likewise.

  Returns:
    [B, L, H, U].

  Raises:
    ValueError: if `impl` is a kernel and does not take such arrays, or so
      divided.
  """
  visible = masks.Visible.of(
    query.shape[1],
    key.shape[1],
    causal=True,
    q_segments=segment_ids,
    kv_segments=segment_ids,
  )
  divided = _divided(query.shape)
  chosen = attention.chosen(
    impl, query, key, value, visible, kernels=divided is not None
  )

  def core(query, key, value, segment_ids):
    return attention.attention(
      query,
      key,
      value,
      scale=scale,
      segment_ids=segment_ids,
      impl=chosen,
      saved_as=saved_as,
    )

  if chosen == _KERNEL:
    if divided is None:
      raise ValueError(
        f"impl={impl!r}: {query.shape[0]} sequences and {query.shape[2]} heads "
        "do not divide over the mesh; set Execution.attention to 'auto'"
      )
    core = divided(core)
  return core(query, key, value, segment_ids)


def _divided(shape):
  """What makes a function of arrays one of their parts; None if they have none.

  Args:
    shape: [B, L, H, width] of the arrays.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if set(mesh.axis_names) == set(mesh.manual_axes):  # these are parts already
    return lambda function: function
  if mesh.manual_axes:
    return None
  names = axes.BATCH, axes.LENGTH, axes.ACT_HEADS
  parts = [sharding.pieces(name) for name in names]
  if parts[1] > 1 or shape[0] % parts[0] or shape[2] % parts[2]:
    return None
  spec = nn.logical_to_mesh_axes((*names, None)) or PartitionSpec()
  return functools.partial(
    jax.shard_map,
    in_specs=(spec, spec, spec, PartitionSpec(*spec[:2])),
    out_specs=spec,
    check_vma=False,  # the kernels' results do not say what they vary over
  )
