"""Group relative policy optimization, as a function of log-probabilities.

DeepSeek-R1 section 2.2.1, eq. 1 and 2; DeepSeek-V3 section 5.2.2, eq. 26 to 28;
DeepSeekMath eq. 3 and 4. No critic: an answer's advantage is over its group's
mean. `objective.py` lists the variants.

Tokens come in rows of any layout, padded or packed; `sequence` says whose each
is. What a sum is divided by is given from outside and is that of the whole
global batch, so that micro-batches, packing and devices change nothing.

Legend (parallel/axes.py): B rows, L tokens of a row; N answers.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dsx.rl import objective as objective_lib

# Of logarithms of ratios: exp of more means nothing and ends in infinity.
_LIMIT = 20.0


class Answers(NamedTuple):
  """What was sampled, and what is known of it before the update.

  Attributes:
    sequence: int32 [B, L], the answer that each token belongs to, 0 to N - 1;
      any where `mask` is false.
    mask: bool [B, L], tokens of answers (never of prompts or padding) that
      count.
    old: float32 [B, L], log-probabilities under the policy that sampled, as
      the trainer computes them.
    reference: float32 [B, L], under the reference policy.
    importance: float32 [B, L], weights that make up for a sampler whose
      numbers differ from the trainer's (`mismatch.py`); ones for none.
    advantage: float32 [N].
    length: int32 [N], counted tokens of each answer, wherever they are.
  """

  sequence: jax.Array
  mask: jax.Array
  old: jax.Array
  reference: jax.Array
  importance: jax.Array
  advantage: jax.Array
  length: jax.Array


def denominator(length, objective: objective_lib.Objective):
  """What the global batch's sum is divided by, float32 [].

  Args:
    length: int32 [N], counted tokens of all answers of the global batch; 0 for
      one that does not count.
    objective: which.
  """
  answers = (length > 0).sum()
  if objective.divide_by == "token":
    total = length.sum()
  elif objective.divide_by == "constant":
    assert objective.longest is not None  # checked by Objective
    total = answers * objective.longest
  else:
    total = answers
  return jnp.maximum(total, 1).astype(jnp.float32)


def loss(
  logp,
  answers: Answers,
  objective: objective_lib.Objective,
  divisor,
  entropy=None,
):
  """The share of some answers in the global batch's loss.

  Args:
    logp: float32 [B, L], log-probabilities of the tokens under the policy that
      is trained; the gradient goes through these (and `entropy`).
    answers: the rest.
    objective: which.
    divisor: `denominator` of the global batch.
    entropy: float32 [B, L] of each token's distribution, where
      `entropy_coefficient` asks for it.

  Returns:
    (loss, sums): sums over counted tokens, which add up over micro-batches:
    `tokens`, `kl` (k3), `clipped` (tokens whose ratio was cut off, so that
    they have no gradient), `ratio`, `entropy` (0 if not given).
  """
  mask = answers.mask
  logp = jnp.where(mask, logp, 0.0)
  moved = jnp.where(mask, logp - answers.old, 0.0)
  away = jnp.where(mask, answers.reference - logp, 0.0)
  n = answers.advantage.shape[0]

  def per_answer(x):
    """Sums [N] of tokens [B, L]."""
    x = jnp.where(mask, x, 0.0).reshape(-1)
    places = jnp.where(mask, answers.sequence, n).reshape(-1)
    return jax.ops.segment_sum(x, places, n + 1)[:n]

  def of_tokens(x):
    """An answer's number [N] at each of its tokens [B, L]."""
    return jnp.where(mask, x[jnp.where(mask, answers.sequence, 0)], 0.0)

  length = jnp.maximum(answers.length, 1).astype(jnp.float32)
  if objective.ratio == "token":
    log_ratio = moved
  elif objective.ratio == "sequence":
    log_ratio = of_tokens(per_answer(moved))
  else:
    log_ratio = of_tokens(per_answer(moved) / length)
  advantage = of_tokens(answers.advantage)
  ratio = jnp.exp(jnp.clip(log_ratio, -_LIMIT, _LIMIT))
  low, high = 1.0 - objective.clip_low, 1.0 + objective.clip_high
  cut = jnp.clip(ratio, low, high)
  gain = jnp.minimum(ratio * advantage, cut * advantage)
  # Printed with one ratio for the whole answer, eq. 1 has one term an answer:
  # each of its tokens brings an equal part of it.
  share = objective.divide_by == "sequence"
  weight = of_tokens(1.0 / length) if share else jnp.where(mask, 1.0, 0.0)
  terms = -gain * answers.importance
  if objective.kl != "none" and objective.kl_coefficient:
    whole = objective.ratio == "sequence"
    apart = of_tokens(per_answer(away)) if whole else away
    terms += objective.kl_coefficient * divergence(apart, objective.kl)
  if objective.entropy_coefficient:
    if entropy is None:
      raise ValueError(
        f"entropy_coefficient={objective.entropy_coefficient}: expected the"
        " tokens' entropy as well; give it"
      )
    terms -= objective.entropy_coefficient * entropy
  total = jnp.where(mask, terms * weight, 0.0).sum() / divisor
  clipped = ratio * advantage > cut * advantage
  sums = {
    "tokens": mask.sum().astype(jnp.float32),
    "kl": jnp.where(mask, divergence(away, "k3"), 0.0).sum(),
    "clipped": (mask & clipped).sum().astype(jnp.float32),
    "ratio": jnp.where(mask, ratio, 0.0).sum(),
    "entropy": jnp.zeros(())
    if entropy is None
    else jnp.where(mask, entropy, 0.0).sum(),
  }
  return total, lax.stop_gradient(sums)


def divergence(away, estimator: str):
  """Estimates of KL(policy || reference) from samples of the policy.

  k3 (eq. 2) is never negative; its gradient under the policy's samples is that
  of KL(reference || policy) to first order. k2 has the gradient of the
  divergence itself. k1 = -away is the unbiased one; as a loss its expected
  gradient is zero, so it is used in rewards alone.

  Args:
    away: log reference - log policy, any shape.
    estimator: `k1`, `k2` or `k3`.
  """
  if estimator == "k1":
    return -away
  if estimator == "k2":
    return 0.5 * jnp.square(away)
  if estimator == "k3":
    away = jnp.clip(away, -_LIMIT, _LIMIT)
    return jnp.exp(away) - away - 1.0
  raise ValueError(f"estimator={estimator!r}: expected k1, k2 or k3")
