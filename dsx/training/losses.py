"""Cross-entropy that never holds all logits, and the sum of all losses.

Next-token loss of the main model, MTP losses (section 2.2, eq. 24 and 25) and
the sequence-wise balance loss (section 2.1.2, eq. 17).

Legend (parallel/axes.py): B batch, L length, D model, V vocabulary, N rows.
"""

import functools
from typing import Any

import chex
import jax
from jax import lax
import jax.numpy as jnp

from dsx.models import deepseek


def cross_entropy(hidden, kernel, targets, *, chunk: int = 16384):
  """-log softmax(hidden @ kernel)[targets], row by row.

  The vocabulary is visited `chunk` columns at a time, forward (an online
  logsumexp) and backward (each chunk's logits are computed again), so that
  at most [N, chunk] logits exist. A vocabulary of one chunk is computed
  once, and kept for the backward pass.

  Args:
    hidden: [N, D].
    kernel: [D, V], in the dtype of `hidden`.
    targets: int32 [N].
    chunk: columns held at a time.

  Returns:
    float32 [N], in nats.
  """
  chex.assert_rank([hidden, kernel, targets], [2, 2, 1])
  vocabulary = kernel.shape[1]
  if vocabulary <= chunk:
    return _whole(hidden, kernel, targets)
  n_chunks = -(-vocabulary // chunk)
  width = -(-vocabulary // n_chunks)
  return _chunked(hidden, kernel, targets, width)


def _logits(hidden, kernel):
  return lax.dot_general(
    hidden,
    kernel,
    (((1,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


@jax.custom_vjp
def _whole(hidden, kernel, targets):
  return _whole_forward(hidden, kernel, targets)[0]


def _whole_forward(hidden, kernel, targets):
  logits = _logits(hidden, kernel)
  norm = jax.nn.logsumexp(logits, axis=-1)
  gold = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  return norm - gold, (hidden, kernel, targets, logits, norm)


def _whole_backward(residuals, g):
  hidden, kernel, targets, logits, norm = residuals
  columns = jnp.arange(kernel.shape[1], dtype=targets.dtype)
  d = _d_logits(logits, norm, targets, columns, g).astype(hidden.dtype)
  d_hidden = lax.dot_general(d, kernel, (((1,), (1,)), ((), ())))
  d_kernel = lax.dot_general(hidden, d, (((0,), (0,)), ((), ())))
  return d_hidden, d_kernel, None


def _d_logits(logits, norm, targets, columns, g):
  """(softmax - onehot) * g for the given columns, float32 [N, columns]."""
  probability = jnp.exp(logits - norm[:, None])
  gold = columns[None, :] == targets[:, None]
  return (probability - gold) * g[:, None]


_whole.defvjp(_whole_forward, _whole_backward)


def _slices(kernel, width):
  """The kernel as [chunks, D, width], padded, and the columns of each."""
  chunks = -(-kernel.shape[1] // width)
  padded = jnp.pad(kernel, ((0, 0), (0, chunks * width - kernel.shape[1])))
  pieces = padded.reshape(kernel.shape[0], chunks, width).swapaxes(0, 1)
  columns = jnp.arange(chunks * width, dtype=jnp.int32).reshape(chunks, width)
  return pieces, columns


def _chunk_logits(hidden, piece, columns, vocabulary):
  logits = _logits(hidden, piece)
  return jnp.where((columns < vocabulary)[None, :], logits, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(hidden, kernel, targets, width):
  return _chunked_forward(hidden, kernel, targets, width)[0]


def _chunked_forward(hidden, kernel, targets, width):
  vocabulary = kernel.shape[1]

  def visit(carry, chunk):
    top, total, gold = carry
    logits = _chunk_logits(hidden, *chunk, vocabulary)
    columns = chunk[1]
    new_top = jnp.maximum(top, logits.max(-1))
    total = total * jnp.exp(top - new_top) + jnp.exp(
      logits - new_top[:, None]
    ).sum(-1)
    here = columns[None, :] == targets[:, None]
    gold = gold + jnp.where(here, logits, 0.0).sum(-1)
    return (new_top, total, gold), None

  n = hidden.shape[0]
  zeros = jnp.zeros((n,), jnp.float32)
  start = (jnp.full((n,), -jnp.inf, jnp.float32), zeros, zeros)
  (top, total, gold), _ = lax.scan(visit, start, _slices(kernel, width))
  norm = top + jnp.log(total)
  return norm - gold, (hidden, kernel, targets, norm)


def _chunked_backward(width, residuals, g):
  hidden, kernel, targets, norm = residuals
  vocabulary = kernel.shape[1]

  def visit(d_hidden, chunk):
    piece, columns = chunk
    logits = _chunk_logits(hidden, piece, columns, vocabulary)
    d = _d_logits(logits, norm, targets, columns, g).astype(hidden.dtype)
    d_hidden = d_hidden + lax.dot_general(
      d,
      piece,
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    return d_hidden, lax.dot_general(hidden, d, (((0,), (0,)), ((), ())))

  start = jnp.zeros(hidden.shape, jnp.float32)
  d_hidden, pieces = lax.scan(visit, start, _slices(kernel, width))
  d_kernel = pieces.swapaxes(0, 1).reshape(kernel.shape[0], -1)
  return d_hidden.astype(hidden.dtype), d_kernel[:, :vocabulary], None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def target_mask(batch, depth: int):
  """Which positions of L predict a token `depth` + 1 ahead, bool [B, L].

  A target must exist inside the record, belong to the segment of its
  position and be one that the loss counts (`loss_mask`, for SFT).

  Args:
    batch: `tokens` int32 [B, L+1], and optionally `segment_ids` and
      `loss_mask`, both [B, L+1].
    depth: 0 for the main model, k for MTP module k.
  """
  rows, width = batch["tokens"].shape
  length = width - 1
  exists = jnp.arange(length) < length - depth
  mask = jnp.broadcast_to(exists[None, :], (rows, length))
  if "segment_ids" in batch:
    mask &= shifted(batch["segment_ids"], depth) == batch["segment_ids"][:, :-1]
  if "loss_mask" in batch:
    mask &= shifted(batch["loss_mask"], depth).astype(bool)
  return mask


def shifted(record, depth: int):
  """Element i + depth + 1 at position i of [B, L], from a record [B, L+1]."""
  return jnp.roll(record, -(depth + 1), axis=1)[:, :-1]


def token_losses(model: deepseek.DeepSeek, variables, batch, *, mtp=True):
  """Every token's losses and the model's auxiliary outputs.

  Args:
    model: the model.
    variables: `params` and `router_bias`.
    batch: see `target_mask`.
    mtp: whether MTP losses are computed.

  Returns:
    (nats, masks, aux): tuples with one float32 [B, L] and one bool [B, L] per
    prediction depth, main model first; aux of `DeepSeek.features`.
  """
  tokens = batch["tokens"]
  segments = batch.get("segment_ids")
  segments = None if segments is None else segments[:, :-1]
  aux: Any = model.apply(
    variables, tokens[:, :-1], None, segments, method="features"
  )
  kernel = variables["params"]["lm_head"]["kernel"]
  kernel = kernel.astype(model.dtypes.compute)
  hiddens = (aux["hidden"], *(aux["mtp_hidden"] if mtp else ()))
  nats, masks = [], []
  for depth, hidden in enumerate(hiddens):
    mask = target_mask(batch, depth)
    flat = cross_entropy(
      hidden.reshape(-1, hidden.shape[-1]),
      kernel,
      shifted(tokens, depth).reshape(-1),
    )
    nats.append(jnp.where(mask, flat.reshape(mask.shape), 0.0))
    masks.append(mask)
  return tuple(nats), tuple(masks), aux


def total(model, params, router_bias, batch, denominators, weights):
  """The training loss of one micro-batch, as its share of the global one.

  Args:
    model: the model.
    params: parameters.
    router_bias: the routers' biases.
    batch: see `target_mask`.
    denominators: `targets`, main-model targets of the whole global batch,
      and `sequences`, its sequences; so that the micro-batches' losses and
      gradients simply add up.
    weights: `mtp_weight` (lambda) and `balance_weight` (alpha).

  Returns:
    (loss, metrics): metrics are sums that also just add up over
    micro-batches: `loss`, `mtp_loss` [depths], `balance_loss`, `load` [M, E].
  """
  variables = {"params": params, "router_bias": router_bias}
  nats, _, aux = token_losses(model, variables, batch)
  # NOTE(paper): eq. 24 divides each MTP loss by T, not by its T - k targets.
  main, *mtp = [n.sum() / denominators["targets"] for n in nats]
  balance = aux["balance_loss"].sum() / denominators["sequences"]
  loss = main + weights["balance_weight"] * balance
  if mtp:
    loss = loss + weights["mtp_weight"] * sum(mtp) / len(mtp)
  metrics = {
    "loss": main,
    "mtp_loss": jnp.stack(mtp) if mtp else jnp.zeros((0,)),
    "balance_loss": balance,
    "load": aux["load"],
  }
  return loss, metrics
