"""Log-probabilities of given tokens, and entropies, without all logits.

The vocabulary is visited a chunk of columns at a time, forward and again
backward, so that at most [B, L, chunk] logits exist: those of all 129,280
tokens are by far the largest array of reinforcement learning. Softmax is in
float32, like the sampler's (`inference/sampling.py`), and so is the division
by its temperature; ids that only pad the model's vocabulary have no
probability there and none here.

Legend (parallel/axes.py): B batch, L length, D model, V vocabulary; T parts of
a vocabulary that is divided over devices, W columns of a chunk in each.
"""

from typing import NamedTuple

import chex
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from dsx.parallel import axes
from dsx.parallel import sharding

_HIDDEN = (axes.BATCH, axes.LENGTH, axes.ACT_EMBED)


class Scores(NamedTuple):
  """What is known of each token.

  Attributes:
    logp: float32 [B, L], its log-probability in nats.
    entropy: float32 [B, L] of the distribution that it was drawn from; zeros
      if not asked for.
  """

  logp: jax.Array
  entropy: jax.Array


def log_probabilities(
  hidden,
  kernel,
  targets,
  *,
  temperature=1.0,
  vocab_size: int | None = None,
  entropy: bool = False,
  chunk: int = 16384,
) -> Scores:
  """Scores of tokens under softmax(hidden @ kernel / temperature).

  Args:
    hidden: [B, L, D], input of the output head.
    kernel: [D, V], in the dtype of `hidden`.
    targets: int32 [B, L], below `vocab_size`.
    temperature: float32 [], above 0.
    vocab_size: ids from here on only pad the model's vocabulary; None for none
      of them.
    entropy: whether entropies are computed too.
    chunk: columns held at a time.

  Returns:
    The `Scores`, differentiable in `hidden` and `kernel`.

  Raises:
    ValueError: `vocab_size` or `chunk` is out of range.
  """
  chex.assert_rank([hidden, kernel, targets], [3, 2, 2])
  columns = kernel.shape[1]
  size = columns if vocab_size is None else vocab_size
  _check("vocab_size", size, columns, "rows of the output head")
  _check("chunk", chunk, None, "columns")
  hidden = nn.with_logical_constraint(hidden, _HIDDEN)
  pieces, numbers = _slices(kernel, chunk)

  def visit(piece, numbers):
    """What a chunk [D, T, W] knows, each float32 [B, L]."""
    logits = _product(hidden, piece) / temperature
    used = (numbers < size)[None, None]
    here = targets[:, :, None, None] == numbers[None, None]
    gold = jnp.where(here, logits, 0.0).sum((2, 3))
    logits = jnp.where(used, logits, -jnp.inf)
    top = lax.stop_gradient(logits.max((2, 3)))
    top = jnp.where(jnp.isfinite(top), top, 0.0)  # all of it may be padding
    # Below the top, because differences of large numbers are not exact.
    below = jnp.where(used, logits - top[:, :, None, None], 0.0)
    share = jnp.where(used, jnp.exp(below), 0.0)
    total = share.sum((2, 3))
    mean = (below * share).sum((2, 3)) if entropy else jnp.zeros_like(top)
    return gold, top, total, mean

  if pieces.shape[0] == 1:  # its logits are kept, not computed again
    found = jax.tree.map(lambda x: x[None], visit(pieces[0], numbers[0]))
  else:
    body = jax.checkpoint(visit)
    _, found = lax.scan(lambda _, x: (None, body(*x)), None, (pieces, numbers))
  return _scores(*found, entropy)


def _scores(gold, top, total, mean, entropy: bool) -> Scores:
  """Puts together what chunks know, each [chunks, B, L].

  Args:
    gold: the target's logit, or 0.
    top: the largest logit; a constant.
    total: sum of exp(logit - top).
    mean: sum of (logit - top) exp(logit - top).
    entropy: whether to compute it.
  """
  highest = top.max(0)
  weight = jnp.exp(top - highest[None])
  whole = (weight * total).sum(0)
  log_whole = jnp.log(whole)
  logp = (gold.sum(0) - highest) - log_whole
  if not entropy:
    return Scores(logp, jnp.zeros_like(highest))
  lowered = (top - highest[None]) * total + mean
  return Scores(logp, log_whole - (weight * lowered).sum(0) / whole)


def _check(field: str, value: int, most: int | None, what: str) -> None:
  if value < 1 or (most is not None and value > most):
    expected = "at least 1" if most is None else f"1 to {most}"
    raise ValueError(
      f"{field}={value!r}: expected {expected} {what}; change it"
    )


def _slices(kernel, chunk: int):
  """The kernel as [chunks, D, T, W], padded, and the columns of each.

  Where the mesh divides the vocabulary, a chunk takes as many columns of each
  of its T parts, so that logits stay where their columns are. Numbers
  [chunks, T, W] of columns that pad are V.
  """
  d, vocabulary = kernel.shape
  parts = sharding.pieces(axes.VOCAB)
  parts = parts if vocabulary % parts == 0 else 1
  own = vocabulary // parts
  chunks = -(-vocabulary // chunk)
  width = -(-own // chunks)
  pad = chunks * width - own
  pieces = jnp.pad(kernel.reshape(d, parts, own), ((0, 0), (0, 0), (0, pad)))
  pieces = pieces.reshape(d, parts, chunks, width).transpose(2, 0, 1, 3)
  numbers = jnp.arange(vocabulary, dtype=jnp.int32).reshape(parts, own)
  numbers = jnp.pad(numbers, ((0, 0), (0, pad)), constant_values=vocabulary)
  numbers = numbers.reshape(parts, chunks, width).swapaxes(0, 1)
  names = (None, axes.EMBED, axes.VOCAB, None)
  return nn.with_logical_constraint(pieces, names), numbers


def _dot(x, y, x_axes, y_axes, dtype):
  dimensions = ((x_axes, y_axes), ((), ()))
  return lax.dot_general(x, y, dimensions, preferred_element_type=dtype)


def _whole(piece):
  """`piece` [D, T, W] with D whole on every device."""
  return nn.with_logical_constraint(piece, (None, axes.VOCAB, None))


@jax.custom_vjp
def _product(hidden, piece):
  """Logits float32 [B, L, T, W]; backward in the dtype of `hidden`."""
  logits = _dot(hidden, _whole(piece), (2,), (0,), jnp.float32)
  names = (axes.BATCH, axes.LENGTH, axes.ACT_VOCAB, None)
  return nn.with_logical_constraint(logits, names)


def _product_forward(hidden, piece):
  return _product(hidden, piece), (hidden, piece)


def _product_backward(residuals, d):
  hidden, piece = residuals
  d = d.astype(hidden.dtype)
  d_hidden = _dot(d, _whole(piece), (2, 3), (1, 2), hidden.dtype)
  d_hidden = nn.with_logical_constraint(d_hidden, _HIDDEN)
  d_piece = _dot(hidden, d, (0, 1), (0, 1), piece.dtype)
  # Summed to where D lies.
  names = (axes.EMBED, axes.VOCAB, None)
  return d_hidden, nn.with_logical_constraint(d_piece, names)


_product.defvjp(_product_forward, _product_backward)
