"""A batch in two halves, each spread over the devices like the whole.

DeepSeek-V3 sections 3.2.1 and 3.4.1: while one micro-batch's tokens travel to
their experts and back, the other one computes. The halves are the even and the
odd rows, so that both have rows on every device and nothing moves.

Legend (parallel/axes.py): B batch.
"""

import jax
import jax.numpy as jnp

from dsx.parallel import mesh as mesh_lib


def split(arrays):
  """The two halves of a tree of arrays [B, ...] (None passes through).

  Raises:
    ValueError: a device has an odd number of rows.
  """
  rows = jax.tree.leaves(arrays)[0].shape[0]
  shards = mesh_lib.batch_shards(jax.sharding.get_abstract_mesh())
  if rows % (2 * shards):
    raise ValueError(
      f"overlap='two_batches' halves each device's sequences, but {rows} "
      f"sequences on {shards} devices cannot be halved; make "
      f"micro_batch_size a multiple of {2 * shards}, or set "
      "config.Execution.overlap = 'none'"
    )

  def half(i):
    return jax.tree.map(
      lambda x: x.reshape(rows // 2, 2, *x.shape[1:])[:, i], arrays
    )

  return half(0), half(1)


def join(pair):
  """The batch [B, ...] of two halves: the inverse of `split`."""
  even, odd = pair
  return jnp.stack([even, odd], axis=1).reshape(
    2 * even.shape[0], *even.shape[1:]
  )
