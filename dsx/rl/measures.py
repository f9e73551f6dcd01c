"""What is measured of a step: the answers, their rewards and their groups.

A step's record in `metrics.jsonl` is of kind `reinforcement`:

  step rollout problems epoch         updates, rollouts and problems so far
  answer_tokens                       drawn so far
  reward reward_PART                  means over answers that were graded;
                                      parts before their weights
  pass_1 pass_k                       of the training problems, k = group size:
                                      share of right answers, and of problems
                                      with any
  zero_std all_right all_wrong        shares of groups with equal rewards, ...
  errors                              share of answers that were not graded
  answers length longest truncated repetition
                                      how many, tokens, shares
  entropy kl clipped ratio loss       means over answer tokens
  mismatch_* importance_*             sampler and trainer, see `mismatch.py`
  refused                             1 if these had a rollout refused
  grad_norm learning_rate finite skipped tokens
                                      of the update, its answer tokens
  mtp_loss balance_loss max_violation if they are asked for
  age reference_step                  updates since the answers were drawn; and
                                      when the reference was renewed
  recompute_filled update_filled      share of columns that hold a token
  seconds seconds_generate seconds_score seconds_recompute seconds_update
                                      a rollout's shared among its updates
  tokens_per_second                   while generating

All but the update's own are those of the whole rollout. Records of kind
`reasoning` come from `evals/reasoning.py`, those of kind `alarm` (rule, words)
from `alarms.py`.
"""

from collections.abc import Sequence
import math

import numpy as np

from dsx.rl import repetition
from dsx.rl import sample as sample_lib

STEP = "reinforcement"
EVALUATION = "reasoning"
ALARM = "alarm"


def of_samples(
  samples: Sequence[sample_lib.Sample], texts: Sequence[str]
) -> dict[str, float]:
  """Lengths, truncation and repetition of answers, and what they say."""
  lengths = np.asarray([len(sample.tokens) for sample in samples])
  return {
    "length": float(lengths.mean()),
    "longest": float(lengths.max()),
    "truncated": float(np.mean([sample.truncated for sample in samples])),
    "repetition": float(np.mean([repetition.share(t) for t in texts])),
  }


def of_rewards(
  total: np.ndarray,
  parts: dict[str, np.ndarray],
  counted: np.ndarray,
  group_size: int,
) -> dict[str, float]:
  """Means of rewards, and how many groups teach something.

  Args:
    total: float [N], groups beside each other.
    parts: float [N] by name, NaN where an answer has no such part; `accuracy`
      among them, 1 for right answers, NaN where no rule can tell.
    counted: bool [N], answers that were graded.
    group_size: G.
  """

  def mean(values: np.ndarray) -> float:
    values = values[counted & ~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan

  accuracy = parts["accuracy"]
  among = counted.reshape(-1, group_size)
  told = (counted & ~np.isnan(accuracy)).reshape(-1, group_size)
  right = (counted & (accuracy == 1)).reshape(-1, group_size)
  groups = total.reshape(-1, group_size)
  low = np.where(among, groups, np.inf).min(1)
  high = np.where(among, groups, -np.inf).max(1)
  equal = high - low <= 1e-5 * np.maximum(np.abs(high), 1.0)

  def share(of: np.ndarray, all_groups: np.ndarray) -> float:
    n = int(all_groups.sum())
    return float((of & all_groups).sum() / n) if n else math.nan

  known = np.any(told, axis=1)
  return {
    "reward": mean(total),
    **{f"reward_{name}": mean(values) for name, values in parts.items()},
    "pass_1": mean(accuracy),
    "pass_k": share(np.any(right, axis=1), known),
    "zero_std": share(equal, np.any(among, axis=1)),
    "all_right": share(np.all(right | ~told, axis=1), known),
    "all_wrong": share(~np.any(right, axis=1), known),
    "errors": float(1.0 - counted.mean()),
  }
