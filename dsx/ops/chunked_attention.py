"""Attention over chunks of keys, scores never held whole.

The online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al.
2022): a running maximum, a running sum of exponentials and a running mix of
values take one chunk of keys after another. Backward keeps only each query's
log-sum-exp and computes the weights again, chunk by chunk. Blocks that lie
wholly above the causal diagonal are never computed, even where only the
running program knows the positions (`parallel/context.py`).

Arrays are [B, H, length, width] in here, so that every product is a plain
batched matrix multiplication.

Legend (parallel/axes.py): B batch, H heads, L query length, S key length,
K qk head dim, U value head dim; C chunk.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import manual_axes
from dsx.ops import masks

_CHUNK = 256


def attend(q, k, v, visible: masks.Visible, scale: float):
  """As `attention.attention`, which checks and documents the arguments."""
  length, kv_length = q.shape[1], k.shape[1]
  rows, columns = _rows(length, visible), min(_CHUNK, kv_length)
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  q = _pad(q, -length % rows, axis=2)
  k, v = (_pad(x, -kv_length % columns, axis=2) for x in (k, v))
  visible = _pad_visible(visible, length, kv_length, q.shape[2], k.shape[2])
  q, k, v, *seen = manual_axes.align(q, k, v, *visible[:4])
  by_index = visible.by_index
  static = (scale, rows, columns, by_index)
  out: Any = _attend(q, k, v, tuple(seen), static)
  return out[:, :, :length].swapaxes(1, 2)


def _rows(length: int, visible: masks.Visible) -> int:
  """Queries of a block.

  Those of one device lie in two runs of positions, as long as each other
  (`parallel/context.py`); a block across both would see the keys of both.
  """
  if visible.by_index or visible.q_positions is None or length % 2:
    return min(_CHUNK, length)
  run = length // 2
  fits = [n for n in range(1, min(_CHUNK, run) + 1) if run % n == 0]
  return fits[-1] if 4 * fits[-1] > min(_CHUNK, run) else min(_CHUNK, length)


def _pad(x, amount: int, axis: int, value=0):
  if not amount:
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, amount)
  return jnp.pad(x, widths, constant_values=value)


def _pad_visible(visible, length, kv_length, q_padded, kv_padded):
  """Hides the keys that pad the last chunk, by a segment of their own."""
  segments = visible.q_segments, visible.kv_segments
  if kv_padded > kv_length and segments[0] is None:
    segments = (
      jnp.zeros((1, length), jnp.int32),
      jnp.zeros((1, kv_length), jnp.int32),
    )

  def fill(x, amount, value=0):
    return None if x is None else _pad(x, amount, 1, value)

  none, never = jnp.iinfo(jnp.int32).min, jnp.iinfo(jnp.int32).max
  return masks.Visible(
    fill(visible.q_positions, q_padded - length),
    fill(visible.kv_positions, kv_padded - kv_length, never),
    fill(segments[0], q_padded - length),
    fill(segments[1], kv_padded - kv_length, none),
    visible.by_index,
  )


def _einsum(spec, *operands):
  return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)


def _scores(q, k, i, j, seen, static):
  """Masked float32 scores [B, H, rows, columns] of block (i, j)."""
  scale, rows, columns, _ = static
  visible = masks.Visible(*seen, False)
  block = visible.part(i * rows, rows, j * columns, columns)
  return block.mask(_einsum("bhlk,bhsk->bhls", q, k) * scale)


def _chunk(x, i, size):
  return lax.dynamic_slice_in_dim(x, i * size, size, 2)


def _key_stops(n_queries: int, n_keys: int, seen, static):
  """Before which chunk of keys each chunk of queries may stop, int32 [N]."""
  _, rows, columns, by_index = static
  if by_index:
    ends = jnp.arange(1, n_queries + 1, dtype=jnp.int32) * rows
    return jnp.minimum(n_keys, (ends + columns - 1) // columns)
  reached = masks.Visible(*seen, False).reached(rows, columns)
  if reached is None:
    return jnp.full(n_queries, n_keys, jnp.int32)
  numbers = jnp.arange(1, n_keys + 1, dtype=jnp.int32)
  return jnp.where(reached, numbers[None, :], 0).max(1)


def _query_starts(n_queries: int, n_keys: int, seen, static):
  """The first chunk of queries that may see each chunk of keys, int32 [M]."""
  _, rows, columns, by_index = static
  if by_index:
    return jnp.arange(n_keys, dtype=jnp.int32) * columns // rows
  reached = masks.Visible(*seen, False).reached(rows, columns)
  if reached is None:
    return jnp.zeros(n_keys, jnp.int32)
  numbers = jnp.arange(n_queries, dtype=jnp.int32)
  return jnp.where(reached, numbers[:, None], n_queries).min(0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, seen, static):
  return _forward(q, k, v, seen, static)[0]


def _forward(q, k, v, seen, static):
  _, rows, columns, _ = static
  n_queries, n_keys = q.shape[2] // rows, k.shape[2] // columns

  def queries(chunk):
    i, stop = chunk
    q_i = _chunk(q, i, rows)

    def keys(j, carry):
      top, total, mix = carry
      k_j, v_j = _chunk(k, j, columns), _chunk(v, j, columns)
      scores = _scores(q_i, k_j, i, j, seen, static)
      new_top = jnp.maximum(top, masks.top(scores))
      weights = jnp.exp(scores - new_top)
      shrink = jnp.exp(top - new_top)
      total = total * shrink + weights.sum(-1, keepdims=True)
      new = _einsum("bhls,bhsu->bhlu", weights.astype(v.dtype), v_j)
      return new_top, total, mix * shrink + new

    column = (*q_i.shape[:3], 1)
    start = (
      jnp.full(column, masks.HIDDEN, jnp.float32),
      jnp.zeros(column, jnp.float32),
      jnp.zeros((*q_i.shape[:3], v.shape[3]), jnp.float32),
    )
    start = tuple(manual_axes.like(x, q) for x in start)
    top, total, mix = lax.fori_loop(0, stop, keys, start)
    total = jnp.where(total > 0, total, 1.0)
    return (mix / total).astype(q.dtype), top + jnp.log(total)

  chunks = jnp.arange(n_queries, dtype=jnp.int32)
  stops = _key_stops(n_queries, n_keys, seen, static)
  outs, sums = lax.map(queries, (chunks, stops))
  out, log_sum = (_join(x) for x in (outs, sums))
  return out, (q, k, v, seen, out, log_sum)


def _join(chunks):
  """[N, B, H, C, width] to [B, H, N * C, width]."""
  n, b, h, c, width = chunks.shape
  return chunks.transpose(1, 2, 0, 3, 4).reshape(b, h, n * c, width)


def _backward(static, saved, dout):
  scale, rows, columns, _ = static
  q, k, v, seen, out, log_sum = saved
  n_queries, n_keys = q.shape[2] // rows, k.shape[2] // columns
  dot = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(
    -1, keepdims=True
  )

  def keys(dq, chunk):
    j, first = chunk
    k_j, v_j = _chunk(k, j, columns), _chunk(v, j, columns)

    def queries(i, carry):
      dq, dk_j, dv_j = carry
      q_i, dout_i = _chunk(q, i, rows), _chunk(dout, i, rows)
      scores = _scores(q_i, k_j, i, j, seen, static)
      weights = jnp.exp(scores - _chunk(log_sum, i, rows))
      dweights = _einsum("bhlu,bhsu->bhls", dout_i, v_j)
      dscores = weights * (dweights - _chunk(dot, i, rows)) * scale
      weights, dscores = weights.astype(v.dtype), dscores.astype(q.dtype)
      dv_j += _einsum("bhls,bhlu->bhsu", weights, dout_i)
      dk_j += _einsum("bhls,bhlk->bhsk", dscores, q_i)
      dq_i = _chunk(dq, i, rows) + _einsum("bhls,bhsk->bhlk", dscores, k_j)
      dq = lax.dynamic_update_slice_in_dim(dq, dq_i, i * rows, 2)
      return dq, dk_j, dv_j

    zeros = (jnp.zeros(x.shape, jnp.float32) for x in (k_j, v_j))
    start = (dq, *(manual_axes.like(x, q) for x in zeros))
    dq, dk_j, dv_j = lax.fori_loop(first, n_queries, queries, start)
    return dq, (dk_j.astype(k.dtype), dv_j.astype(v.dtype))

  dq: Any = manual_axes.like(jnp.zeros(q.shape, jnp.float32), q)
  chunks = jnp.arange(n_keys, dtype=jnp.int32)
  starts = _query_starts(n_queries, n_keys, seen, static)
  dq, (dk, dv) = lax.scan(keys, dq, (chunks, starts))
  return dq.astype(q.dtype), _join(dk), _join(dv), None


_attend.defvjp(_forward, _backward)
