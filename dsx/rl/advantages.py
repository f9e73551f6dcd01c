"""How much better than its group an answer is.

DeepSeek-R1 eq. 3, DeepSeek-V3 eq. 28: A = (r - mean) / std over the G answers
to one prompt. The reports say nothing of equal rewards; there A is 0.

Legend: P prompts, G answers to each.
"""

import jax.numpy as jnp

# A deviation below this share of the largest reward is rounding (equal sums of
# unequal parts), and would be blown up to advantages of any size.
_ROUNDING = 1e-5


def advantages(rewards, counted, *, standardise: bool = True):
  """Advantages of answers over their groups.

  Args:
    rewards: float32 [P, G].
    counted: bool [P, G]; the rest (rewards that could not be had) neither gets
      an advantage nor moves its group's mean.
    standardise: whether to divide by the group's standard deviation (of the
      population, ddof 0); Dr. GRPO does not.

  Returns:
    (advantages float32 [P, G], zero where not counted; varied bool [P], groups
    whose counted rewards differ).
  """
  rewards = jnp.where(counted, rewards, 0.0).astype(jnp.float32)
  n = jnp.maximum(counted.sum(1, keepdims=True), 1).astype(jnp.float32)
  mean = rewards.sum(1, keepdims=True) / n
  centred = jnp.where(counted, rewards - mean, 0.0)
  deviation = jnp.sqrt(jnp.square(centred).sum(1, keepdims=True) / n)
  largest = jnp.abs(rewards).max(1, keepdims=True)
  varied = deviation > _ROUNDING * jnp.maximum(largest, 1.0)
  if standardise:
    centred = centred / jnp.where(varied, deviation, 1.0)
  return jnp.where(varied, centred, 0.0), varied[:, 0]


def overlong_penalty(lengths, *, longest: int, margin: int):
  """DAPO's soft penalty on length (Yu et al. 2025, eq. 13).

  Args:
    lengths: int32 [...], tokens of answers.
    longest: tokens allowed.
    margin: the last tokens of these, over which the penalty grows.

  Returns:
    float32 [...], 0 up to longest - margin, then falling linearly to -1 at
    `longest` and beyond.
  """
  if not 0 < margin <= longest:
    raise ValueError(
      f"margin={margin}: expected 1 to longest={longest} tokens; change it"
    )
  over = (lengths - (longest - margin)) / margin
  return -jnp.clip(over, 0.0, 1.0).astype(jnp.float32)
