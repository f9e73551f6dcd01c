"""Reading prompts: their entries go into the cache, and nothing is drawn.

All of a prompt but its last token is read here, many prompts at once and each
from its beginning; the last token is the first that `decode` reads. So logits
are computed here only for whoever asks what the model thought of the prompt.

Legend (parallel/axes.py): B batch, L length, V vocabulary; n pages per prompt,
M expert layers, K experts per token.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dsx.models import cache
from dsx.models import decoder

# Rows whose logits are held at once.
_ROWS = 256


class Scores(NamedTuple):
  """What the model thought of tokens.

  Attributes:
    logprob: float32 [...].
    top: int32 [..., n], the best tokens.
    top_logprob: float32 [..., n].
  """

  logprob: jax.Array
  top: jax.Array
  top_logprob: jax.Array


def scores(logits, tokens, n_top: int) -> Scores:
  """Scores of tokens int32 [...] under logits float32 [..., V]."""
  total = jax.nn.logsumexp(logits, axis=-1)
  own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  if n_top:
    best, top = lax.top_k(logits, n_top)
  else:
    best, top = (jnp.zeros((*tokens.shape, 0), t) for t in ("float32", "int32"))
  return Scores(own - total, top.astype(jnp.int32), best - total[..., None])


@functools.partial(
  jax.jit,
  static_argnames=("model", "score", "n_top", "vocab_size", "records"),
  donate_argnames=("pages",),
)
def prefill(
  model: decoder.Decoder,
  variables,
  pages,
  numbers,
  tokens,
  following,
  length,
  *,
  score: bool,
  n_top: int,
  vocab_size: int,
  records: bool,
):
  """Reads prompts and writes their entries into pages.

  Args:
    model: the model.
    variables: in the layout `layers`, with `absorbed`.
    pages: [P, N, page, W], donated.
    numbers: int32 [B, n], the pages of each prompt; those past P are dropped.
    tokens: int32 [B, n * page], padded at the end.
    following: int32 [B, n * page], the token after each.
    length: int32 [B], tokens that are no padding.
    score: whether to score `following`.
    n_top: how many best tokens to report with each score.
    vocab_size: ids from here on only pad the model's vocabulary.
    records: whether to record experts.

  Returns:
    (pages, `Scores` [B, n * page] or None, experts [B, n * page, M, K] of
    `decoder.apply` or None).
  """
  valid = jnp.arange(tokens.shape[1])[None, :] < length[:, None]
  (hidden, entries), experts = decoder.apply(
    model,
    variables,
    tokens,
    following,
    valid,
    method="prefill",
    records=records,
  )
  pages = cache.write_pages(pages, numbers, entries)
  if not score:
    return pages, None, experts
  rows = hidden.reshape(-1, hidden.shape[-1])
  unit = min(_ROWS, rows.shape[0])
  missing = -rows.shape[0] % unit
  rows = jnp.pad(rows, ((0, missing), (0, 0)))
  targets = jnp.pad(following.reshape(-1), (0, missing))

  def some(part):
    rows, targets = part
    logits = model.apply(variables, rows[None], method="logits")[0]
    return scores(logits[:, :vocab_size], targets, n_top)

  parts = (rows.reshape(-1, unit, rows.shape[1]), targets.reshape(-1, unit))
  found = lax.map(some, parts)

  def whole(x):
    x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[: tokens.size]
    return x.reshape(*tokens.shape, *x.shape[1:])

  return pages, jax.tree.map(whole, found), experts
