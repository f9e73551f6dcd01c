"""Attention over blocks of query rows, each against the keys it can see.

With plain causal order the keys of a block end where its queries end, so that
about half of the products are never made; scores of one block exist at a
time. Backward keeps each query's log-sum-exp and computes the weights again.
Blocks are unrolled: for sequences of many thousands, `chunked_attention`.

Arrays are [B, H, length, width] in here, so that every product is a plain
batched matrix multiplication.

Legend (parallel/axes.py): B batch, H heads, L query length, S key length,
K qk head dim, U value head dim.
"""

import functools

import jax
import jax.numpy as jnp

from dsx.ops import manual_axes
from dsx.ops import masks

_ROWS = 64
_MOST_BLOCKS = 16


def attend(q, k, v, visible: masks.Visible, scale: float):
  """As `attention.attention`, which checks and documents the arguments."""
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  q, k, v, *seen = manual_axes.align(q, k, v, *visible[:4])
  out = _attend(q, k, v, tuple(seen), (scale, visible.by_index))
  return out.swapaxes(1, 2)


def _einsum(spec, *operands):
  return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)


def _blocks(q, k, seen, by_index):
  """(queries, keys, mask) of each block: two slices and a `Visible`."""
  length, kv_length = q.shape[2], k.shape[2]
  rows = max(_ROWS, -(-length // _MOST_BLOCKS))
  visible = masks.Visible(*seen, by_index)
  for start in range(0, length, rows):
    stop = min(start + rows, length)
    keys = min(stop, kv_length) if by_index else kv_length
    mask = visible.part(start, stop - start, 0, keys)
    yield slice(start, stop), slice(0, keys), mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, seen, static):
  return _forward(q, k, v, seen, static)[0]


def _forward(q, k, v, seen, static):
  scale, by_index = static
  outs, log_sums = [], []
  for rows, keys, mask in _blocks(q, k, seen, by_index):
    scores = _einsum("bhlk,bhsk->bhls", q[:, :, rows], k[:, :, keys])
    scores = mask.mask(scores * scale)
    top = masks.top(scores)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, 1.0)
    out = _einsum("bhls,bhsu->bhlu", weights.astype(v.dtype), v[:, :, keys])
    outs.append((out / total).astype(q.dtype))
    log_sums.append(top + jnp.log(total))
  out = jnp.concatenate(outs, axis=2)
  return out, (q, k, v, seen, out, log_sums)


def _backward(static, saved, dout):
  scale, by_index = static
  q, k, v, seen, out, log_sums = saved
  dot = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(
    -1, keepdims=True
  )
  dq = []
  dk, dv = (jnp.zeros((*x.shape[:2], 0, x.shape[3])) for x in (k, v))
  blocks = _blocks(q, k, seen, by_index)
  for (rows, keys, mask), log_sum in zip(blocks, log_sums, strict=True):
    q_i, dout_i = q[:, :, rows], dout[:, :, rows]
    k_i, v_i = k[:, :, keys], v[:, :, keys]
    scores = mask.mask(_einsum("bhlk,bhsk->bhls", q_i, k_i) * scale)
    weights = jnp.exp(scores - log_sum)
    dweights = _einsum("bhlu,bhsu->bhls", dout_i, v_i)
    dscores = weights * (dweights - dot[:, :, rows]) * scale
    weights, dscores = weights.astype(v.dtype), dscores.astype(q.dtype)
    dq.append(_einsum("bhls,bhsk->bhlk", dscores, k_i))
    dk = _widen(dk, keys.stop) + _einsum("bhls,bhlk->bhsk", dscores, q_i)
    dv = _widen(dv, keys.stop) + _einsum("bhls,bhlu->bhsu", weights, dout_i)
  dq = jnp.concatenate(dq, axis=2).astype(q.dtype)
  dk = _widen(dk, k.shape[2]).astype(k.dtype)
  return dq, dk, _widen(dv, v.shape[2]).astype(v.dtype), None


def _widen(x, length: int):
  """`x` with zeros for the keys up to `length`."""
  missing = length - x.shape[2]
  return jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0))) if missing else x


_attend.defvjp(_forward, _backward)
