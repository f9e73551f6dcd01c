"""Whether answers are right, each by the rule of its problem.

What may hang or do harm (mathematics, code) runs in processes that are killed
at a deadline. An error there is neither right nor wrong.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsx.data import problems as problems_lib
from dsx.evals import grading
from dsx.rl import code_reward
from dsx.rl import countdown
from dsx.rl import pool as pool_lib
from dsx.rl import sandbox

# What a program's sandbox may take beyond the program's own time, in seconds.
_SANDBOX_SECONDS = 45.0


class Judge:
  """Compares answers with references; a context manager."""

  def __init__(
    self,
    *,
    processes: int,
    seconds: float,
    memory_bytes: int | None,
    limits: sandbox.Limits,
  ):
    """Starts nothing yet.

    Args:
      processes: that compare mathematics and run code at a time.
      seconds: for one answer in mathematics.
      memory_bytes: of address space, each of these processes.
      limits: of a program, in each of its test cases.
    """
    self._seconds = seconds
    self._limits = limits
    self._pool = pool_lib.Pool(
      processes, seconds=seconds, memory_bytes=memory_bytes
    )

  def __enter__(self) -> "Judge":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends its processes. Judging starts them again."""
    self._pool.close()

  def judge(
    self, asked: Sequence[tuple[problems_lib.Problem, str | None]]
  ) -> tuple[np.ndarray, list[str]]:
    """Judges N answers.

    Args:
      asked: problems and answers; None and empty answers are wrong, whatever
        the question was.

    Returns:
      (float32 [N], 1 for right, 0 for wrong, NaN if that is not known; [N],
      errors, empty if there is none. No rule tells about open problems, which
      is no error.)
    """
    right = np.zeros(len(asked), np.float32)
    errors = [""] * len(asked)
    waiting: dict[str, dict[int, tuple]] = {kind: {} for kind in _COSTLY}
    for i, (problem, answer) in enumerate(asked):
      if problem.kind == "open":
        right[i] = np.nan
      elif not answer:
        continue
      elif problem.kind in _CHEAP:
        right[i] = _CHEAP[problem.kind](answer, problem.answer)
      elif problem.kind == "math":
        waiting["math"][i] = (answer, problem.answer)
      else:
        program = code_reward.program_in(answer)
        if program is not None:
          cases = [code_reward.Case(**case) for case in problem.answer]
          waiting["code"][i] = (program, cases, self._limits)
    for kind, calls in waiting.items():
      outcomes = self._pool.map(
        _COSTLY[kind], list(calls.values()), seconds=self._deadline(kind, calls)
      )
      for i, outcome in zip(calls, outcomes, strict=True):
        errors[i] = outcome.error
        right[i] = np.nan if outcome.error else float(outcome.value)
    return right, errors

  def _deadline(self, kind: str, calls: dict[int, tuple]) -> float:
    """Seconds for a call; a program that is slow is wrong, and no error."""
    if kind != "code" or not calls:
      return self._seconds
    most = max(len(cases) for _, cases, _ in calls.values())
    return most * (self._limits.seconds + _SANDBOX_SECONDS)

  def check(self, problems: Iterable[problems_lib.Problem]) -> None:
    """Refuses problems about which no answer could ever be judged.

    Raises:
      ValueError: a reference is no number, no mathematics, or not equal to
        itself; names the problem.
      sandbox.Unavailable: there is code to run, and no sandbox.
    """
    mathematics, programs = [], False
    for problem in problems:
      programs = programs or problem.kind == "code"
      if problem.kind == "math":
        mathematics.append(problem)
      elif problem.kind in _CHEAP:
        try:
          _CHEAP[problem.kind]("", problem.answer)
        except ValueError as error:
          raise ValueError(f"problem {problem.name!r}: {error}") from None
    outcomes = self._pool.map(
      grading.mathematics, [(p.answer, p.answer) for p in mathematics]
    )
    for problem, outcome in zip(mathematics, outcomes, strict=True):
      if outcome.error or not outcome.value:
        why = outcome.error or "it does not equal itself"
        raise ValueError(
          f"problem {problem.name!r}: answer={problem.answer!r}: expected"
          f" mathematics that answers can be compared with ({why}); change it,"
          " or the problem's kind"
        )
    if programs:
      sandbox.check()


def _solves(answer: str, reference: dict[str, Any]) -> bool:
  return countdown.solves(answer, reference["numbers"], reference["target"])


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
