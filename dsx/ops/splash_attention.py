"""Causal attention in the kernels that JAX ships for TPUs: splash attention.

Scores live in vector memory alone, and blocks above the diagonal are left out.
Backward runs one kernel for keys and values and one for queries. Both in one
would take fewer cycles, but writes the gradient of the queries, rounded, once
for every block of keys: more memory, and to be summed.

On anything but a TPU the kernels are interpreted, which is for tests.

Legend (parallel/axes.py): B batch, L length, H heads, K qk head dim, U value
head dim.
"""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask,
)
import jax.numpy as jnp

from dsx.ops import masks
from dsx.ops import platforms

_LANES = 128
# Heads for which the vector memory of every kind of TPU has room.
_WIDEST = 256
_WIDEST_VALUE = 128
# Queries and keys of a block. The schedules that libtpu makes of the kernels
# (docs/scale.md) take the fewest cycles with the widest blocks that fit into
# vector memory, though these compute more above the diagonal.
_BLOCK = 1024
_BLOCK_FLOAT32 = 512
_COMPUTE = 512


def why_not(q, k, v, visible: masks.Visible) -> str | None:
  """What the kernels would need, None if nothing.

  Args:
    q: [B, L, H, K].
    k: [B, L, H, K].
    v: [B, L, H, U].
    visible: which keys a query sees.
  """
  if not visible.by_index or q.shape[1] != k.shape[1]:
    return "causal order by plain indices, with as many keys as queries"
  if visible.q_segments is not visible.kv_segments:
    return "the same segments of queries and keys"
  if q.shape[1] % _LANES:
    return f"a sequence length in multiples of {_LANES}"
  for width, most in ((q.shape[3], _WIDEST), (v.shape[3], _WIDEST_VALUE)):
    if width % 64 or width > most:
      return (
        f"head widths in multiples of 64, at most {_WIDEST} of queries and "
        f"{_WIDEST_VALUE} of values"
      )
  return None


def attend(
  q, k, v, visible: masks.Visible, scale: float, saved_as: str | None = None
):
  """As `attention.attention`, which documents the arguments; see `why_not`.

  Args:
    q: [B, L, H, K].
    k: [B, L, H, K].
    v: [B, L, H, U].
    visible: causal by index; segments are optional.
    scale: multiplies the queries, in their dtype.
    saved_as: names what backward needs of forward, the output and each query's
      log-sum-exp, for a rematerialisation policy that keeps it.

  Returns:
    [B, L, H, U].
  """
  b, length, heads, _ = q.shape
  # The two cores of a v4 or v5p chip share an axis that is vmapped; of their
  # own axes, the backward kernels leave all to one core.
  parts = 2 if heads % 2 == 0 else 1
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  q, k, v = (_parted(x, parts) for x in (q, k, v))
  kernel = _kernel(length, heads // parts, q.dtype, saved_as)
  if visible.q_segments is None:
    out = jax.vmap(kernel)(q, k, v)
  else:
    ids = jnp.broadcast_to(visible.q_segments, (b, length))
    ids = jnp.repeat(ids.astype(jnp.int32), parts, axis=0)
    segments = splash_attention_kernel.SegmentIds(ids, ids)
    out = jax.vmap(kernel)(q, k, v, segments)
  return out.reshape(b, heads, length, v.shape[3]).swapaxes(1, 2)


def _parted(x, parts: int):
  """[B, L, H, width] as [B * parts, H / parts, L, width]."""
  b, length, heads, width = x.shape
  return x.swapaxes(1, 2).reshape(b * parts, heads // parts, length, width)


def _kernel(length: int, heads: int, dtype, saved_as: str | None):
  mask = splash_attention_mask.CausalMask((length, length))
  return splash_attention_kernel.make_splash_mha_single_device(
    splash_attention_mask.MultiHeadMask([mask] * heads),
    block_sizes=_blocks(length, dtype),
    residual_checkpoint_name=saved_as,
    interpret=platforms.target() != "tpu",
  )


def _blocks(length: int, dtype):
  widest = _BLOCK if jnp.dtype(dtype).itemsize == 2 else _BLOCK_FLOAT32
  block = next(
    size for size in (widest, 512, 256, _LANES) if length % size == 0
  )
  compute = min(block, _COMPUTE)
  # As XLA lays out heads that are no multiple of the lanes wide: no copies.
  layout = splash_attention_kernel.QKVLayout.SEQ_MINOR
  return splash_attention_kernel.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=compute,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=compute,
    block_q_dq=block,
    block_kv_dq=block,
    q_layout=layout,
    k_layout=layout,
    v_layout=layout,
  )
