"""How well a model reasons: several answers to each held-out problem.

DeepSeek-R1 section 3: greedy decoding repeats itself and varies much between
checkpoints, so k answers are drawn at temperature 0.6 and top-p 0.95; pass@1 is
the mean over them, cons@k the majority's answer. Intervals are over problems.
"""

from collections.abc import Hashable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np

from dsx.evals import estimates
from dsx.inference import sampling as sampling_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """How to evaluate.

  Attributes:
    problems: held-out problems, the first of their file; 0 for all.
    samples: n, answers to each.
    k: of pass@k and cons@k beside pass@1; at most `samples`.
    temperature: of sampling; the report's unless given.
    top_p: likewise.
    max_new_tokens: longest answer; None for that of the run.
    seed: of the draws.
    level: of confidence, of the intervals.
  """

  problems: int = 0
  samples: int = 16
  k: tuple[int, ...] = (8,)
  temperature: float = 0.6
  top_p: float = 0.95
  max_new_tokens: int | None = None
  seed: int = 0
  level: float = 0.95

  def __post_init__(self):
    object.__setattr__(self, "k", tuple(self.k))
    if self.problems < 0:
      raise ValueError(
        f"problems={self.problems!r}: expected at least 0, which is all of"
        " them; raise it"
      )
    if self.samples < 1:
      raise ValueError(
        f"samples={self.samples!r}: expected at least 1; raise it"
      )
    for k in self.k:
      if not 1 <= k <= self.samples:
        raise ValueError(
          f"k={k!r}: expected 1 to samples={self.samples}; raise samples"
        )
    if not 0 < self.level < 1:
      raise ValueError(
        f"level={self.level!r}: expected a number between 0 and 1; change it"
      )
    self.sampling(1)  # which checks temperature and top_p

  def sampling(self, max_new_tokens: int) -> sampling_lib.Sampling:
    """How answers are drawn.

    Args:
      max_new_tokens: of the run, for want of an own number.
    """
    return sampling_lib.Sampling(
      max_new_tokens=self.max_new_tokens or max_new_tokens,
      temperature=self.temperature,
      top_p=self.top_p,
    )


class Answered(NamedTuple):
  """One answer to a held-out problem.

  Attributes:
    right: whether the verifier accepts it.
    answer: what it comes down to, equal for equal answers; None for none.
    length: tokens.
    truncated: whether it had no room to end.
    error: why it could not be verified; counts as wrong, and is counted.
  """

  right: bool
  answer: Hashable | None
  length: int
  truncated: bool
  error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """How well held-out problems were solved.

  Attributes:
    problems: how many.
    samples: answers to each.
    accuracy: pass@1, the mean over all answers.
    pass_at: pass@k by k.
    consensus_at: cons@k by k.
    by_group: accuracy by the problems' groups, where there are several.
    length: mean tokens of an answer.
    truncated: share of answers.
    errors: share of answers that could not be verified.
  """

  problems: int
  samples: int
  accuracy: estimates.Interval
  pass_at: dict[int, estimates.Interval]
  consensus_at: dict[int, estimates.Interval]
  by_group: dict[str, estimates.Interval]
  length: float
  truncated: float
  errors: float

  def record(self) -> dict[str, Any]:
    """Fields of a metrics record; `k` is the largest."""
    found: dict[str, Any] = {
      "problems": self.problems,
      "samples": self.samples,
      "length": self.length,
      "truncated": self.truncated,
      "errors": self.errors,
    }
    largest = max(self.pass_at, default=1)
    named = {
      "pass_1": self.accuracy,
      "pass_k": self.pass_at.get(largest, self.accuracy),
      "cons_k": self.consensus_at.get(largest, self.accuracy),
    }
    named |= {f"accuracy_{g}": s for g, s in self.by_group.items()}
    for name, interval in named.items():
      found[name] = interval.mean
      found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {"k": largest, **found}

  def table(self) -> str:
    """The score in lines to be read."""
    rows = [("pass@1", self.accuracy)]
    rows += [(f"pass@{k}", score) for k, score in self.pass_at.items()]
    rows += [(f"cons@{k}", score) for k, score in self.consensus_at.items()]
    rows += [(f"  {name}", score) for name, score in self.by_group.items()]
    width = max(len(name) for name, _ in rows)
    lines = [
      f"{name.ljust(width)}  {score.mean:.3f}  [{score.low:.3f},"
      f" {score.high:.3f}]"
      for name, score in rows
    ]
    lines.append(
      f"{self.problems} problems, {self.samples} answers each, of"
      f" {self.length:.1f} tokens; {self.truncated:.1%} truncated,"
      f" {self.errors:.1%} not verified"
    )
    return "\n".join(lines)


def score(
  answered: Sequence[Sequence[Answered]],
  evaluation: Evaluation,
  groups: Sequence[str] = (),
) -> Score:
  """Scores the answers to some problems.

  Args:
    answered: `evaluation.samples` answers for each problem.
    evaluation: how they were drawn.
    groups: of each problem, its domain say; empty for one.

  Raises:
    ValueError: there is no problem, or a problem has another number of
      answers.
  """
  if not answered:
    raise ValueError(
      "answered=[]: expected answers to at least one problem; give problems"
    )
  n = evaluation.samples
  for number, answers in enumerate(answered):
    if len(answers) != n:
      raise ValueError(
        f"answered[{number}] has {len(answers)} answers: expected samples={n}"
        " to each problem; draw the rest"
      )

  def interval(scores) -> estimates.Interval:
    return estimates.bootstrap(list(scores), level=evaluation.level)

  right = np.asarray([[a.right for a in answers] for answers in answered])
  counts = right.sum(1)
  means = right.mean(1)
  kinds = sorted(set(groups)) if len(set(groups)) > 1 else []
  flat = [answer for answers in answered for answer in answers]
  return Score(
    problems=len(answered),
    samples=n,
    accuracy=interval(means),
    pass_at={
      k: interval(estimates.pass_at_k(n, int(c), k) for c in counts)
      for k in evaluation.k
      if k > 1
    },
    consensus_at={
      k: interval(_consensus(answers, k) for answers in answered)
      for k in evaluation.k
      if k > 1
    },
    by_group={
      kind: interval(
        m for m, group in zip(means, groups, strict=True) if group == kind
      )
      for kind in kinds
    },
    length=float(np.mean([answer.length for answer in flat])),
    truncated=float(np.mean([answer.truncated for answer in flat])),
    errors=float(np.mean([bool(answer.error) for answer in flat])),
  )


def _consensus(answers: Sequence[Answered], k: int) -> float:
  """cons@k of one problem."""
  right = {a.answer: a.right for a in answers if a.answer is not None}
  return estimates.consensus_at_k(
    [answer.answer for answer in answers], lambda found: right[found], k
  )
