"""Cross-entropy that never holds all logits, and divides like the model.

Section 2.2, eq. 24. Tokens may be divided over devices by batch and by
length, the vocabulary by columns, the kernel by rows.

Legend (parallel/axes.py): B batch, L length, D model, V vocabulary; T parts of
a vocabulary that is divided over devices.
"""

import functools
from typing import Any

import chex
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from dsx.parallel import axes
from dsx.parallel import sharding

_HIDDEN = (axes.BATCH, axes.LENGTH, axes.ACT_EMBED)


def cross_entropy(hidden, kernel, targets, *, chunk: int = 16384) -> Any:
  """-log softmax(hidden @ kernel)[targets], token by token.

  The vocabulary is visited `chunk` columns at a time, forward (an online
  logsumexp) and backward (each chunk's logits are computed again), so that
  at most [B, L, chunk] logits exist. A vocabulary of one chunk is computed
  once, and kept for the backward pass.

  Where the mesh divides the vocabulary, a chunk takes as many columns of each
  of its T parts, and what the parts make is added up at the end: tokens and
  logits stay where they are.

  Args:
    hidden: [B, L, D].
    kernel: [D, V], in the dtype of `hidden`.
    targets: int32 [B, L].
    chunk: columns held at a time.

  Returns:
    float32 [B, L], in nats.
  """
  chex.assert_rank([hidden, kernel, targets], [3, 2, 2])
  vocabulary, parts = kernel.shape[1], sharding.pieces(axes.VOCAB)
  hidden = nn.with_logical_constraint(hidden, _HIDDEN)
  if vocabulary <= chunk:
    return _whole(hidden, kernel, targets, parts)
  width = -(-vocabulary // (-(-vocabulary // chunk) * parts))
  return _chunked(hidden, kernel, targets, (parts, width))


def _product(x, y, x_axes, y_axes, dtype=jnp.float32):
  dimensions = ((x_axes, y_axes), ((), ()))
  return lax.dot_general(x, y, dimensions, preferred_element_type=dtype)


def _gathered(kernel):
  """`kernel` [D, ...] with D whole on every device."""
  whole = (None, axes.VOCAB, None)[: kernel.ndim]
  return nn.with_logical_constraint(kernel, whole)


def _scattered(d_kernel):
  """The gradient of `_gathered`'s [D, ...], summed to where D lies."""
  names = (axes.EMBED, axes.VOCAB, None)[: d_kernel.ndim]
  return nn.with_logical_constraint(d_kernel, names)


def _logits(hidden, kernel):
  """float32 [B, L, ...] of kernel [D, ...]."""
  logits = _product(hidden, _gathered(kernel), (2,), (0,))
  names = (axes.BATCH, axes.LENGTH, axes.ACT_VOCAB, None)[: logits.ndim]
  return nn.with_logical_constraint(logits, names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _whole(hidden, kernel, targets, parts):
  return _whole_forward(hidden, kernel, targets, parts)[0]


def _whole_forward(hidden, kernel, targets, parts):
  logits = _logits(hidden, kernel)
  norm = jax.nn.logsumexp(logits, axis=-1)
  if parts == 1:
    gold = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
  else:
    here = _is_target(jnp.arange(kernel.shape[1], dtype=jnp.int32), targets)
    gold = jnp.where(here, logits, 0.0).sum(-1)
  return norm - gold, (hidden, kernel, targets, logits, norm)


def _whole_backward(parts, residuals, g):
  del parts
  hidden, kernel, targets, logits, norm = residuals
  columns = jnp.arange(kernel.shape[1], dtype=jnp.int32)
  d = _d_logits(logits, norm, targets, columns, g).astype(hidden.dtype)
  d_hidden = _product(d, _gathered(kernel), (2,), (1,), hidden.dtype)
  d_kernel = _product(hidden, d, (0, 1), (0, 1), hidden.dtype)
  return d_hidden, _scattered(d_kernel), None


def _is_target(columns, targets):
  """bool [B, L, ...] of the vocabulary's columns [...]."""
  targets = jnp.expand_dims(targets, range(2, 2 + columns.ndim))
  return columns[None, None] == targets


def _d_logits(logits, norm, targets, columns, g):
  """(softmax - onehot) * g for the given columns, float32 [B, L, ...]."""
  wide = range(2, logits.ndim)
  probability = jnp.exp(logits - jnp.expand_dims(norm, wide))
  gold = _is_target(columns, targets)
  return (probability - gold) * jnp.expand_dims(g, wide)


_whole.defvjp(_whole_forward, _whole_backward)


def _slices(kernel, static):
  """The kernel as [chunks, D, T, width], padded, and the columns of each.

  Columns [chunks, T, width] that pad are as many as the vocabulary.
  """
  parts, width = static
  d, vocabulary = kernel.shape
  own = vocabulary // parts
  chunks = -(-own // width)
  pad = chunks * width - own
  pieces = jnp.pad(kernel.reshape(d, parts, own), ((0, 0), (0, 0), (0, pad)))
  pieces = pieces.reshape(d, parts, chunks, width).transpose(2, 0, 1, 3)
  columns = jnp.arange(vocabulary, dtype=jnp.int32).reshape(parts, own)
  columns = jnp.pad(columns, ((0, 0), (0, pad)), constant_values=vocabulary)
  columns = columns.reshape(parts, chunks, width).swapaxes(0, 1)
  names = (None, axes.EMBED, axes.VOCAB, None)
  return nn.with_logical_constraint(pieces, names), columns


def _chunk_logits(hidden, piece, columns, vocabulary):
  """float32 [B, L, T, width]."""
  logits = _logits(hidden, piece)
  return jnp.where((columns < vocabulary)[None, None], logits, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(hidden, kernel, targets, static):
  return _chunked_forward(hidden, kernel, targets, static)[0]


def _chunked_forward(hidden, kernel, targets, static):
  vocabulary = kernel.shape[1]

  def visit(carry, chunk):
    top, total, gold = carry  # [B, L, T]
    logits = _chunk_logits(hidden, *chunk, vocabulary)
    new_top = jnp.maximum(top, logits.max(-1))
    total = total * jnp.exp(top - new_top) + jnp.exp(
      logits - new_top[..., None]
    ).sum(-1)
    here = _is_target(chunk[1], targets)
    gold = gold + jnp.where(here, logits, 0.0).sum(-1)
    return (new_top, total, gold), None

  names = (axes.BATCH, axes.LENGTH, axes.ACT_VOCAB)
  zeros = jnp.zeros((*targets.shape, static[0]), jnp.float32)
  zeros = nn.with_logical_constraint(zeros, names)
  start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros)
  (top, total, gold), _ = lax.scan(visit, start, _slices(kernel, static))
  norm = jax.nn.logsumexp(top, axis=-1, b=total)
  return norm - gold.sum(-1), (hidden, kernel, targets, norm)


def _chunked_backward(static, residuals, g):
  hidden, kernel, targets, norm = residuals
  d, vocabulary = kernel.shape

  def visit(d_hidden, chunk):
    piece, columns = chunk
    logits = _chunk_logits(hidden, piece, columns, vocabulary)
    d = _d_logits(logits, norm, targets, columns, g).astype(hidden.dtype)
    # Each of the T parts adds up its own share.
    share = lax.dot_general(
      d,
      _gathered(piece),
      (((3,), (2,)), ((2,), (1,))),
      preferred_element_type=jnp.float32,
    )
    d_kernel = _product(hidden, d, (0, 1), (0, 1), hidden.dtype)
    return constrained(d_hidden + share), _scattered(d_kernel)

  def constrained(d_hidden):
    names = (axes.ACT_VOCAB, *_HIDDEN)
    return nn.with_logical_constraint(d_hidden, names)

  start = constrained(jnp.zeros((static[0], *hidden.shape), jnp.float32))
  d_hidden, pieces = lax.scan(visit, start, _slices(kernel, static))
  d_hidden = nn.with_logical_constraint(d_hidden.sum(0), _HIDDEN)
  pieces = pieces.transpose(1, 2, 0, 3).reshape(d, static[0], -1)
  d_kernel = pieces[:, :, : vocabulary // static[0]].reshape(d, vocabulary)
  return d_hidden.astype(hidden.dtype), d_kernel, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
