"""What a few samples say of a model: pass@k, cons@k and how sure that is.

DeepSeek-R1 section 3 reports pass@1 as the mean over several samples at
temperature 0.6, and cons@64, the answer of the majority. pass@k is the chance
that at least one of k samples is right; from n >= k samples of which c are
right its unbiased estimate is 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).
"""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
  """A mean over prompts with a confidence interval.

  Attributes:
    mean: the estimate.
    low: lower end.
    high: upper end.
  """

  mean: float
  low: float
  high: float


def pass_at_k(samples: int, right: int, k: int) -> float:
  """Unbiased estimate of pass@k for one prompt.

  Args:
    samples: n, how many were drawn.
    right: c, how many of these are right.
    k: at most n.

  >>> pass_at_k(4, 1, 2)
  0.5
  """
  if not 0 <= right <= samples or not 1 <= k <= samples:
    raise ValueError(
      f"samples={samples}, right={right}, k={k}: expected 0 <= right <= samples"
      " and 1 <= k <= samples; draw more samples"
    )
  return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def consensus(answers: Sequence[Hashable | None]) -> Hashable | None:
  """The most frequent answer; the first of equals; None if there is none.

  Args:
    answers: of one prompt; None for a sample without one.
  """
  votes: dict[Hashable, int] = {}
  for answer in answers:
    if answer is not None:
      votes[answer] = votes.get(answer, 0) + 1
  return max(votes, key=lambda a: votes[a]) if votes else None


def consensus_at_k(
  answers: Sequence[Hashable | None],
  right: Callable[[Hashable], bool],
  k: int,
  *,
  draws: int = 200,
  seed: int = 0,
) -> float:
  """cons@k (maj@k) for one prompt: how often the majority of k is right.

  Args:
    answers: n of them, n >= k, equal ones comparing equal.
    right: grades an answer.
    k: voters.
    draws: of k out of n without replacement where n > k, in fixed random
      order, so that the estimate is the same every time.
    seed: of these.
  """
  if not 1 <= k <= len(answers):
    raise ValueError(
      f"k={k}: expected 1 to {len(answers)}, the number of samples; draw more"
    )
  if k == len(answers):
    chosen = consensus(answers)
    return float(chosen is not None and right(chosen))
  rng, total = np.random.default_rng(seed), 0
  for _ in range(draws):
    places = np.sort(rng.choice(len(answers), k, replace=False))
    chosen = consensus([answers[i] for i in places])
    total += chosen is not None and right(chosen)
  return total / draws


def bootstrap(
  scores: Sequence[float],
  *,
  level: float = 0.95,
  resamples: int = 10_000,
  seed: int = 0,
) -> Interval:
  """The mean of prompts' scores, and its percentile bootstrap interval.

  Prompts are resampled, not samples: it is other prompts that the score should
  hold for.

  Args:
    scores: one a prompt.
    level: of confidence.
    resamples: how many.
    seed: of these.
  """
  values = np.asarray(scores, np.float64)
  if not values.size:
    raise ValueError("scores=[]: expected at least one prompt's score")
  rng = np.random.default_rng(seed)
  means = np.empty(resamples)
  for i in range(resamples):
    means[i] = values[rng.integers(values.size, size=values.size)].mean()
  tail = (1 - level) / 2
  low, high = np.quantile(means, (tail, 1 - tail))
  return Interval(float(values.mean()), float(low), float(high))
