"""What an answer is worth, by rule.

DeepSeek-R1 sections 2.2.2 and 2.3.2: accuracy and format, with equal weight,
and the share of the chain of thought that is in the right language. Added up
with weights:

  accuracy    1 for the right answer where an answer belongs, else 0
  format      1 for a response of the right form, else 0
  language    share of words in the problem's language, in the chain of thought
  length      0 down to -1 over the last `margin` tokens (DAPO)
  repetition  minus the share of repeated n-grams
  preference  of open problems: what a reward model makes of the response
              (section 2.3.4), on its own scale

`accuracy` tells what is right. Where it can't (a comparison that hangs, no
sandbox for a program), that is an error of its own and no wrong answer: the
sample has no reward, and is to be left out of the update.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Literal
from typing import NamedTuple

import numpy as np

from dsx.data import problems as problems_lib
from dsx.rl import accuracy
from dsx.rl import advantages
from dsx.rl import language
from dsx.rl import preference_judge
from dsx.rl import repetition
from dsx.rl import response
from dsx.rl import reward_scorer
from dsx.rl import sandbox

_WEIGHTS = (
  "accuracy",
  "format",
  "language",
  "length",
  "repetition",
  "preference",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewards:
  """Weights of rewards, and how they are found.

  Attributes:
    accuracy: weight of it.
    format: likewise.
    language: likewise; 0 leaves it, and the next two, unmeasured.
    length: likewise, of a penalty.
    repetition: likewise, of a penalty.
    preference: likewise, of a reward model's score; no rule tells about open
      problems, which have this alone beside the rewards of form.
    reward_model: workdir of its training, for `preference`.
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
  preference: float = 0.0
  reward_model: str = ""
  form: response.Form = "tags"
  unended: Literal["wrong", "masked", "graded"] = "wrong"
  longest: int = 0
  margin: int = 0
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
    if self.preference and not self.reward_model:
      raise ValueError(
        f"preference={self.preference}: expected a reward_model, the workdir of"
        " experiments.reward_model, as well; give it"
      )
    if self.length:
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

  def __init__(
    self,
    rewards: Rewards,
    *,
    opened: bool = False,
    judge: preference_judge.Judge | None = None,
  ):
    """Starts no process yet; reads the reward model, if there is one.

    Args:
      rewards: which.
      opened: whether prompts end with `<think>` (`Template.opens_thought`).
      judge: of open problems, instead of `rewards.reward_model`.

    Raises:
      ValueError: the reward model can't be read.
    """
    self._rewards = rewards
    self._opened = opened
    self._preference = judge
    if judge is None and rewards.preference:
      self._preference = reward_scorer.RewardScorer(rewards.reward_model)
    self._judge = accuracy.Judge(
      processes=rewards.processes,
      seconds=rewards.seconds,
      memory_bytes=rewards.memory_bytes,
      limits=rewards.limits,
    )

  def __enter__(self) -> "Grader":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends its processes. Grading starts them again."""
    self._judge.close()

  def check(self, problems: Sequence[problems_lib.Problem]) -> None:
    """Refuses problems whose answers could never be graded.

    Args:
      problems: that will be put.

    Raises:
      ValueError: a reference can't be compared with, or a language is unknown;
        names the problem.
      sandbox.Unavailable: there is code to run, and no sandbox.
    """
    if self._rewards.language:
      for problem in problems:
        try:
          language.consistency("", problem.language)
        except ValueError as error:
          raise ValueError(f"problem {problem.name!r}: {error}") from None
    self._judge.check(problems)

  def grade(
    self,
    responses: Sequence[Response | tuple[problems_lib.Problem, str, int, bool]],
  ) -> Grades:
    """Grades N responses."""
    rewards = self._rewards
    given = [Response(*r) for r in responses]
    parsed = [self._parsed(r) for r in given]
    right, error = self._judge.judge(
      [(r.problem, p.answer) for r, p in zip(given, parsed, strict=True)]
    )
    if rewards.unended == "masked":
      cut = [r.truncated for r in given]
      right[np.array(cut, bool)] = np.nan
      error = ["cut off" if c else e for c, e in zip(cut, error, strict=True)]
    preference = self._preferences(given, error)
    parts = {
      "accuracy": right,
      "format": np.array([p.well_formed for p in parsed], np.float32),
      **self._measured(given, parsed),
      **preference,
    }
    total = np.zeros(len(given), np.float32)
    for name, values in parts.items():
      total += np.float32(getattr(rewards, name)) * np.nan_to_num(values)
    total[np.array([bool(e) for e in error], bool)] = np.nan
    return Grades(total, parts, error)

  def _preferences(
    self, given: Sequence[Response], error: list[str]
  ) -> dict[str, np.ndarray]:
    """The judge's scores of open problems' responses, NaN elsewhere.

    Adds to `error` where there should be one and is not.
    """
    if self._preference is None or not self._rewards.preference:
      return {}
    found = np.full(len(given), np.nan, np.float32)
    groups: dict[str, list[int]] = {}
    for i, one in enumerate(given):
      if one.problem.kind == "open" and not error[i]:
        groups.setdefault(one.problem.prompt, []).append(i)
    if groups:
      scores = self._preference.scores(
        list(groups), [[given[i].text for i in own] for own in groups.values()]
      )
      for own, values in zip(groups.values(), scores, strict=True):
        found[own] = values
        for i in own:
          error[i] = "no score could be had" if np.isnan(found[i]) else ""
    return {"preference": found}

  def _parsed(self, given: Response) -> response.Response:
    if given.truncated and self._rewards.unended != "graded":
      return response.Response("", None)
    return response.parse(
      given.text, opened=self._opened, form=self._rewards.form
    )

  def _measured(
    self, given: Sequence[Response], parsed: Sequence[response.Response]
  ) -> dict[str, np.ndarray]:
    """The rewards that are no question of right or wrong."""
    rewards = self._rewards
    found: dict[str, Any] = {}
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
    return {name: np.array(v, np.float32) for name, v in found.items()}


def _one_of(field: str, value: Any, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise ValueError(
      f"{field}={value!r}: expected one of {', '.join(allowed)}; change it"
    )
