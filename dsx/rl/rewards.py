"""What an answer is worth, by rule.

DeepSeek-R1 sections 2.2.2 and 2.3.2: accuracy and format, with equal weight,
and the share of the chain of thought that is in the right language. Added up
with weights:

  accuracy    1 for the right answer where an answer belongs, else 0
  format      1 for a response of the right form, else 0
  language    share of words in the problem's language, in the chain of thought
  length      0 down to -1 over the last `margin` tokens (DAPO)
  repetition  minus the share of repeated n-grams

Answers are compared by `evals.grading`. What may hang or do harm (mathematics,
code) runs in processes that are killed at a deadline. An error there is neither
right nor wrong: the sample has no reward, and is to be left out of the update.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Literal
from typing import NamedTuple

import numpy as np

from dsx.data import problems as problems_lib
from dsx.evals import grading
from dsx.rl import advantages
from dsx.rl import code_reward
from dsx.rl import countdown
from dsx.rl import language
from dsx.rl import pool
from dsx.rl import repetition
from dsx.rl import response
from dsx.rl import sandbox

_WEIGHTS = ("accuracy", "format", "language", "length", "repetition")
# What a program's sandbox may take beyond the program's own time, in seconds.
_SANDBOX_SECONDS = 45.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewards:
  """Weights of rewards, and how they are found.

  Attributes:
    accuracy: weight of it.
    format: likewise.
    language: likewise; 0 leaves it, and the next two, unmeasured.
    length: likewise, of a penalty.
    repetition: likewise, of a penalty.
    form: of a response, see `response`.
    unended: what becomes of answers that were cut off: `wrong` gives accuracy
      and format 0 whatever they say, `masked` no reward, `graded` reads them
      as they are.
    longest: tokens allowed, for `length`.
    margin: tokens before `longest` from which `length` counts.
    repetition_words: n of the n-grams.
    processes: that grade mathematics and code at a time.
    seconds: for one answer in mathematics; then it is an error.
    memory_bytes: of address space, each of these processes.
    limits: of a program, in each of its test cases.
  """

  accuracy: float = 1.0
  format: float = 1.0
  language: float = 0.0
  length: float = 0.0
  repetition: float = 0.0
  form: response.Form = "tags"
  unended: Literal["wrong", "masked", "graded"] = "wrong"
  longest: int | None = None
  margin: int | None = None
  repetition_words: int = 8
  processes: int = 2
  seconds: float = 10.0
  memory_bytes: int = 4 * 2**30
  limits: sandbox.Limits = sandbox.Limits()

  def __post_init__(self):
    for field in _WEIGHTS:
      value = getattr(self, field)
      if not (math.isfinite(value) and value >= 0):
        raise ValueError(
          f"{field}={value!r}: expected a weight of at least 0 (penalties are"
          " negative by themselves); change it"
        )
    _one_of("form", self.form, response.FORMS)
    _one_of("unended", self.unended, ("wrong", "masked", "graded"))
    for field in ("processes", "seconds", "memory_bytes", "repetition_words"):
      if not getattr(self, field) > 0:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected more than 0; raise it"
        )
    bounds = (self.longest, self.margin)
    if self.length and None in bounds:
      raise ValueError(
        f"longest={self.longest}, margin={self.margin}: expected numbers of"
        f" tokens with length={self.length}; give both"
      )
    if None not in bounds:
      advantages.overlong_penalty(0, longest=self.longest, margin=self.margin)


class Response(NamedTuple):
  """What is to be graded.

  Attributes:
    problem: that was put.
    text: without prompt and EOS, as `prompt_template.response_text` has it.
    n_tokens: of it, EOS included.
    truncated: whether it was cut off before it ended.
  """

  problem: problems_lib.Problem
  text: str
  n_tokens: int
  truncated: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Grades:
  """Rewards of N responses.

  Attributes:
    total: float32 [N], NaN where there is an error, so that one who forgets
      about errors will notice.
    parts: of each reward that was measured, float32 [N], without its weight;
      accuracy is NaN where there is an error, or no rule that could tell.
    error: [N], what went wrong, empty if nothing did.
  """

  total: np.ndarray
  parts: dict[str, np.ndarray]
  error: list[str]

  @property
  def counted(self) -> np.ndarray:
    """Bool [N]: responses that have a reward."""
    return np.array([not error for error in self.error], bool)

  def mean(self, name: str = "total") -> float:
    """Mean of `total` or of a part over the responses that have it.

    NaN if none has.
    """
    values = self.total if name == "total" else self.parts[name]
    values = values[self.counted & ~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


class Grader:
  """Grades responses; a context manager that ends its processes."""

  def __init__(self, rewards: Rewards, *, opened: bool = False):
    """Starts nothing yet.

    Args:
      rewards: which.
      opened: whether prompts end with `<think>` (`Template.opens_thought`).
    """
    self._rewards = rewards
    self._opened = opened
    self._pool = pool.Pool(
      rewards.processes,
      seconds=rewards.seconds,
      memory_bytes=rewards.memory_bytes,
    )

  def __enter__(self) -> "Grader":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends its processes. Grading starts them again."""
    self._pool.close()

  def check(self, problems: Iterable[problems_lib.Problem]) -> None:
    """Refuses problems whose answers could never be graded.

    Args:
      problems: that will be put.

    Raises:
      ValueError: a reference is no number or mathematics, or a language is
        unknown; names the problem.
      sandbox.Unavailable: there is code to run and no sandbox.
    """
    mathematics = []
    programs = False
    for problem in problems:
      try:
        if self._rewards.language:
          language.consistency("", problem.language)
        if problem.kind in _CHEAP:
          _CHEAP[problem.kind]("", problem.answer)
      except ValueError as error:
        raise ValueError(f"problem {problem.name!r}: {error}") from None
      if problem.kind == "math":
        mathematics.append(problem)
      programs = programs or problem.kind == "code"
    outcomes = self._pool.map(
      grading.mathematics, [(p.answer, p.answer) for p in mathematics]
    )
    for problem, outcome in zip(mathematics, outcomes, strict=True):
      if outcome.error or not outcome.value:
        raise ValueError(
          f"problem {problem.name!r}: answer={problem.answer!r}: expected"
          " mathematics that equals itself, got"
          f" {outcome.error or 'False'}; change it, or the problem's kind"
        )
    if programs:
      sandbox.check()

  def grade(
    self,
    responses: Sequence[Response | tuple[problems_lib.Problem, str, int, bool]],
  ) -> Grades:
    """Grades responses.

    Args:
      responses: N of them.
    """
    rewards = self._rewards
    given = [Response(*r) for r in responses]
    parsed = [
      response.parse(r.text, opened=self._opened, form=rewards.form)
      for r in given
    ]
    wrong = rewards.unended == "wrong"
    parsed = [
      response.Response("", None) if r.truncated and wrong else p
      for r, p in zip(given, parsed, strict=True)
    ]
    masked = rewards.unended == "masked"
    error = ["cut off" if r.truncated and masked else "" for r in given]
    parts = {
      "accuracy": self._accuracy(given, parsed, error),
      "format": np.array([p.well_formed for p in parsed], np.float32),
      **self._measured(given, parsed),
    }
    failed = np.array([bool(e) for e in error], bool)
    total = np.zeros(len(given), np.float32)
    for name, values in parts.items():
      known = np.nan_to_num(values, nan=0.0)
      total += np.float32(getattr(rewards, name)) * known
    total[failed] = np.nan
    return Grades(total, parts, error)

  def _measured(self, given, parsed) -> dict[str, np.ndarray]:
    """The rewards that are no question of right or wrong."""
    rewards = self._rewards
    found = {}
    if rewards.language:
      found["language"] = [
        language.consistency(p.thought, r.problem.language)
        for r, p in zip(given, parsed, strict=True)
      ]
    if rewards.length:
      found["length"] = advantages.overlong_penalty(
        np.array([r.n_tokens for r in given], np.int32),
        longest=rewards.longest,
        margin=rewards.margin,
      )
    if rewards.repetition:
      found["repetition"] = [
        -repetition.share(r.text, rewards.repetition_words) for r in given
      ]
    return {k: np.array(v, np.float32) for k, v in found.items()}

  def _accuracy(self, given, parsed, error: list[str]) -> np.ndarray:
    """Float32 [N]; writes into `error` what could not be told."""
    accuracy = np.zeros(len(given), np.float32)
    waiting: dict[str, list[tuple[int, tuple]]] = {"math": [], "code": []}
    for i, (one, parts) in enumerate(zip(given, parsed, strict=True)):
      problem = one.problem
      if error[i] or problem.kind == "open":
        accuracy[i] = np.nan
      elif not parts.answer:
        continue  # a wrong form or no answer is wrong, whatever the question
      elif problem.kind in _CHEAP:
        accuracy[i] = _CHEAP[problem.kind](parts.answer, problem.answer)
      elif problem.kind == "math":
        waiting["math"].append((i, (parts.answer, problem.answer)))
      else:
        program = code_reward.program_in(parts.answer)
        if program is not None:
          cases = [code_reward.Case(**case) for case in problem.answer]
          call = (program, cases, self._rewards.limits)
          waiting["code"].append((i, call))
    for kind, function in _COSTLY.items():
      calls = [call for _, call in waiting[kind]]
      outcomes = self._pool.map(
        function, calls, seconds=self._seconds(kind, calls)
      )
      for (i, _), outcome in zip(waiting[kind], outcomes, strict=True):
        error[i] = outcome.error
        accuracy[i] = np.nan if outcome.error else float(outcome.value)
    return accuracy

  def _seconds(self, kind: str, calls: Sequence[tuple]) -> float:
    """For a call; a program that is slow is wrong, and no error."""
    if kind != "code" or not calls:
      return self._rewards.seconds
    most = max(len(cases) for _, cases, _ in calls)
    return most * (self._rewards.limits.seconds + _SANDBOX_SECONDS)


def _solves(answer: str, reference: dict[str, Any]) -> bool:
  return countdown.solves(answer, reference["numbers"], reference["target"])


def _one_of(field: str, value: Any, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise ValueError(
      f"{field}={value!r}: expected one of {', '.join(allowed)}; change it"
    )


# By kind of problem: what tells at once, and what needs a process of its own.
_CHEAP: dict[str, Callable[[str, Any], bool]] = {
  "number": grading.number,
  "set": grading.number_set,
  "choice": grading.choice,
  "countdown": _solves,
}
_COSTLY: dict[str, Callable[..., Any]] = {
  "math": grading.mathematics,
  "code": code_reward.grade,
}
