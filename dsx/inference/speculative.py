"""Speculative decoding, lossless: which drafts stand, and what follows them.

DeepSeek-V3 section 2.2 keeps its MTP modules to speed up decoding. A module
proposes tokens; the model reads them all at once and keeps as many as it would
have said itself. Leviathan et al. 2023 and Chen et al. 2023: a draft x from q
stands with probability min(1, p(x) / q(x)); the first that falls is replaced
by a draw from max(p - q, 0), normalised. What comes out has the distribution
p, whatever q is; at temperature 0, it is the best token every time.

Legend (parallel/axes.py): B batch, V vocabulary; J drafts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Verdict(NamedTuple):
  """What became of the drafts.

  Attributes:
    accepted: int32 [B], how many stand, 0 to J.
    tokens: int32 [B, J + 1], the drafts that stand, then one token more;
      what lies behind it means nothing.
  """

  accepted: jax.Array
  tokens: jax.Array


def verify(drafts, log_q, log_p, uniform, draw) -> Verdict:
  """Accepts a prefix of the drafts and draws the token after it.

  Args:
    drafts: int32 [B, J], J may be 0.
    log_q: float32 [B, J, V], log-distributions that they were drawn from.
    log_p: float32 [B, J + 1, V], those of the model at the same places, and
      at the place behind.
    uniform: float32 [B, J], in [0, 1), one for each draft.
    draw: function of log-probabilities [B, V] (unnormalised) and the number
      accepted [B] that draws tokens int32 [B].

  Returns:
    The `Verdict`.
  """
  n = drafts.shape[1]
  places = jnp.arange(n + 1, dtype=jnp.int32)[None, :]
  if n:
    index = drafts[:, :, None]
    p = jnp.take_along_axis(log_p[:, :n], index, axis=2)[:, :, 0]
    q = jnp.take_along_axis(log_q, index, axis=2)[:, :, 0]
    stands = jnp.log(uniform) < p - q
    accepted = jnp.cumprod(stands.astype(jnp.int32), axis=1).sum(1)
  else:
    accepted = jnp.zeros(drafts.shape[:1], jnp.int32)
  # Behind the last draft nothing was proposed: q is zero there.
  nothing = jnp.full((*log_p.shape[:1], 1, log_p.shape[2]), -jnp.inf)
  log_q = jnp.concatenate([log_q, nothing], axis=1)
  log_p, log_q = (_at(x, accepted) for x in (log_p, log_q))
  rest = jnp.maximum(jnp.exp(log_p) - jnp.exp(log_q), 0.0)
  # p = q to the last bit, and yet refused: by rounding of the division.
  empty = rest.sum(-1, keepdims=True) == 0
  rest = jnp.where(empty, log_p, jnp.log(rest))
  last = draw(rest, accepted)
  padded = jnp.pad(drafts, ((0, 0), (0, 1)))
  tokens = jnp.where(places < accepted[:, None], padded, last[:, None])
  return Verdict(accepted, tokens)


def verify_greedy(drafts, best) -> Verdict:
  """As `verify` at temperature 0, where distributions are one token each.

  Args:
    drafts: int32 [B, J].
    best: int32 [B, J + 1], the model's best tokens at the same places, and at
      the place behind.

  Returns:
    The `Verdict`: the drafts that stand are the best tokens.
  """
  stands = drafts == best[:, : drafts.shape[1]]
  return Verdict(jnp.cumprod(stands.astype(jnp.int32), axis=1).sum(1), best)


def _at(x, place):
  """Row `place` [B] of each x [B, J + 1, V]."""
  return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
