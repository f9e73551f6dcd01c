"""One sequence over several devices: context parallelism for causal attention.

A sequence of L tokens is cut into 2C chunks for the C devices of its mesh axis.
Device i holds chunks i and 2C - 1 - i, one early and one late, so that all see
about as many keys together (the `zigzag` order; Brandon et al. 2023, "Striped
attention", balance the same work otherwise):

  C = 4   natural  01 | 23 | 45 | 67      zigzag  07 | 16 | 25 | 34

What a query needs of other devices are the latents of all tokens, C + R numbers
each (DeepSeek-V3 section 2.1.1: 576 where keys and values have 40,960). They
are gathered, and every device expands them for itself; backward their
gradients, not those of keys and values, are summed and scattered.

Legend (parallel/axes.py): B batch, L length, H heads, K qk head dim, U value
head dim; W width of what is gathered, C devices of a sequence; small letters
are a device's own part.
"""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dsx.ops import manual_axes
from dsx.parallel import axes
from dsx.parallel import sharding

_MANUAL = {*axes.BATCH_MESH_AXES, axes.CONTEXT, axes.TENSOR}


def size() -> int:
  """C, by the current mesh and rules; 1 where sequences are not divided."""
  return sharding.pieces(axes.LENGTH)


def check_length(length: int, parts: int) -> None:
  """Refuses a sequence that has no `2 * parts` equal chunks.

  Raises:
    ValueError: says so.
  """
  if parts > 1 and length % (2 * parts):
    raise ValueError(
      f"sequence length {length}: expected a multiple of {2 * parts}, twice "
      f"mesh.MeshShape.context={parts}, so that every device has an early and "
      "a late chunk of a sequence; change the length or the mesh"
    )


def spread(x, parts: int):
  """Takes what every device holds whole into the zigzag order.

  Args:
    x: [B, L], tokens and what else is small.
    parts: C, of `size`.

  Returns:
    [B, L], zigzag and divided; `x` itself if C is 1. Nothing is sent.
  """
  if parts == 1:
    return x
  check_length(x.shape[1], parts)

  def own(x):
    return jnp.concatenate(_own_chunks(x, parts), axis=1)

  return _mapped(own, (_spec(axes.BATCH),), _spec(axes.BATCH, axes.LENGTH))(x)


def natural(x, parts: int):
  """Takes hidden states [B, L, D] from zigzag back to natural order.

  Every device sends each of its chunks once: of a device's two, one has an
  even and one an odd number, the even ones go to different devices, and so do
  the odd ones.
  """
  if parts == 1:
    return x

  def exchange(x):
    early, late = jnp.split(x, 2, axis=1)
    even_rank = lax.axis_index(axes.CONTEXT) % 2 == 0
    even = jnp.where(even_rank, early, late)
    odd = jnp.where(even_rank, late, early)
    both = [
      lax.ppermute(chunk, axes.CONTEXT, _homewards(parity, parts))
      for parity, chunk in enumerate((even, odd))
    ]
    return jnp.concatenate(both, axis=1)

  spec = _spec(axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
  return _mapped(exchange, (spec,), spec)(x)


def _homewards(parity: int, parts: int):
  """(from, to) of the chunks of one parity, from zigzag to natural order."""
  return [
    (min(chunk, 2 * parts - 1 - chunk), chunk // 2)
    for chunk in range(parity, 2 * parts, 2)
  ]


def attend(core, query, entries, kernel, names, segment_ids=None):
  """Runs attention where the queries are, over the entries of all devices.

  Args:
    core: a function of query [b, l, h, K], entries [b, L, W] in natural order,
      kernel, q_positions [1, l], segment_ids [b, l] and kv_segment_ids [b, L]
      (by name; the last two may be None), which returns [b, l, h, U].
    query: [B, L, H, K], zigzag.
    entries: [B, L, W], zigzag.
    kernel: makes keys and values of entries; divided over heads, gathered
      over what else divides it.
    names: logical axes of `kernel`.
    segment_ids: int32 [B, L] in natural order, or None.

  Returns:
    [B, L, H, U], zigzag.
  """
  parts, kernel_spec = size(), _spec(*names)
  heads = _spec(axes.BATCH, axes.LENGTH, axes.ACT_HEADS, None)

  def shard(query, entries, kernel, segment_ids):
    # Here already, so that backward what devices add to the gradient of one
    # entry is summed when it has been scattered, not before.
    query, entries, kernel = manual_axes.align(query, entries, kernel)
    segments = {}
    if segment_ids is not None:
      own = jnp.concatenate(_own_chunks(segment_ids, parts), axis=1)
      segments = {"segment_ids": own, "kv_segment_ids": segment_ids}
    length = parts * query.shape[1]
    positions = jnp.arange(length, dtype=jnp.int32)[None, :]
    positions = jnp.concatenate(_own_chunks(positions, parts), axis=1)
    return core(
      query,
      _gathered(entries, parts),
      _whole(kernel, kernel_spec),
      q_positions=positions,
      **segments,
    )

  inputs = heads, _spec(axes.BATCH, axes.LENGTH, None), kernel_spec
  return _mapped(shard, (*inputs, _spec(axes.BATCH)), heads)(
    query, entries, kernel, segment_ids
  )


def _spec(*names) -> PartitionSpec:
  """Mesh axes of logical names, by the current rules."""
  return nn.logical_to_mesh_axes(names) or PartitionSpec()


def _mapped(function, in_specs, out_specs):
  return jax.shard_map(
    function, in_specs=in_specs, out_specs=out_specs, axis_names=_MANUAL
  )


def _own_chunks(x, parts: int):
  """The early and the late chunk of this device from x [B, L] in whole."""
  chunk, rank = x.shape[1] // (2 * parts), lax.axis_index(axes.CONTEXT)
  return [
    lax.dynamic_slice_in_dim(x, number * chunk, chunk, 1)
    for number in (rank, 2 * parts - 1 - rank)
  ]


def _gathered(entries, parts: int):
  """Entries [b, L, W] in natural order, of [b, l, W] on each device."""
  found = lax.all_gather(entries, axes.CONTEXT)  # [C, b, l, W]
  early, late = jnp.split(found, 2, axis=2)
  chunks = jnp.concatenate([early, late[::-1]])  # [2C, b, L / 2C, W]
  b, _, width = entries.shape
  return chunks.swapaxes(0, 1).reshape(b, parts * entries.shape[1], width)


def _whole(kernel, spec):
  """`kernel` with every dimension gathered but that of heads."""
  for dimension, over in enumerate(spec):
    if over is not None and over != axes.TENSOR:
      kernel = lax.all_gather(kernel, over, axis=dimension, tiled=True)
  return kernel
