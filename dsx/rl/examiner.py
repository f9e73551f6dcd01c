"""A policy's examination on held-out problems, and answers to be read.

The same draws every time: only the policy differs from one examination to the
next.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from dsx.data import problems as problems_lib
from dsx.data import prompt_template
from dsx.data import vocab as vocab_lib
from dsx.evals import reasoning
from dsx.rl import response
from dsx.rl import rewards as rewards_lib
from dsx.rl import rollout as rollout_lib

# Draws of training have steps from 0.
_STEP = -1
# Prompts whose answers are in memory at once.
_AT_ONCE = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
  """How a policy did.

  Attributes:
    score: the numbers.
    shown: first answers to the first problems, `problem`, `prompt`, `answer`
      (text), `right` and `tokens` of each, as JSON data.
  """

  score: reasoning.Score
  shown: list[dict[str, Any]]


class Examiner:
  """Examines policies on one set of problems."""

  def __init__(
    self,
    problems: Sequence[problems_lib.Problem],
    *,
    evaluation: reasoning.Evaluation,
    template: prompt_template.Template,
    vocabulary: vocab_lib.Vocabulary,
    grader: rewards_lib.Grader,
    form: response.Form,
    shown: int = 0,
  ):
    """Holds what every examination has in common.

    Args:
      problems: held out; the first `evaluation.problems` of them are put, of
        those that a rule can decide.
      evaluation: how.
      template: of prompts.
      vocabulary: of the policies.
      grader: of answers; their accuracy alone counts.
      form: where an answer is, for the consensus.
      shown: problems whose first answers are handed out.
    """
    told = [problem for problem in problems if problem.kind != "open"]
    if not told:
      raise ValueError(
        "problems: expected at least one held-out problem that a rule can"
        " decide; give held_out_files, or generated ones"
      )
    self._problems = told[: evaluation.problems or None]
    self._evaluation, self._template = evaluation, template
    self._vocabulary, self._grader = vocabulary, grader
    self._form: response.Form = form
    self._shown = shown

  def examine(
    self, roller: rollout_lib.Roller, *, max_new_tokens: int
  ) -> Examination:
    """Examines the policy that a roller has loaded.

    Args:
      roller: with weights.
      max_new_tokens: longest answer, for want of `Evaluation.max_new_tokens`.
    """
    answered, shown = [], []
    for first in range(0, len(self._problems), _AT_ONCE):
      some = self._problems[first : first + _AT_ONCE]
      answers, texts = self._answers(roller, some, first, max_new_tokens)
      answered += answers
      for problem, own, text in zip(some, answers, texts, strict=True):
        if len(shown) < self._shown:
          shown.append(_shown(problem, own[0], text))
    domains = [problem.domain for problem in self._problems]
    score = reasoning.score(answered, self._evaluation, domains)
    return Examination(score=score, shown=shown)

  def _answers(self, roller, problems, first: int, max_new_tokens: int):
    """Answers to some problems, [problems][samples], and the first's text."""
    n = self._evaluation.samples
    samples = roller.sample(
      [self._template.tokens(self._vocabulary, p.prompt) for p in problems],
      group_size=n,
      sampling=self._evaluation.sampling(max_new_tokens),
      run_seed=self._evaluation.seed,
      step=_STEP,
      first_prompt=first,
    )
    texts = [
      prompt_template.response_text(self._vocabulary, sample.tokens.tolist())
      for sample in samples
    ]
    grades = self._grader.grade(
      [
        (problems[i // n], text, len(sample.tokens), sample.truncated)
        for i, (sample, text) in enumerate(zip(samples, texts, strict=True))
      ]
    )
    right = np.nan_to_num(grades.parts["accuracy"]) == 1
    opened = self._template.opens_thought
    answers = [
      reasoning.Answered(
        right=bool(right[i]),
        answer=response.parse(text, opened=opened, form=self._form).answer,
        length=len(sample.tokens),
        truncated=sample.truncated,
        error=grades.error[i],
      )
      for i, (sample, text) in enumerate(zip(samples, texts, strict=True))
    ]
    return [answers[i : i + n] for i in range(0, len(answers), n)], texts[::n]


def _shown(
  problem: problems_lib.Problem, answer: reasoning.Answered, text: str
) -> Mapping[str, Any]:
  return {
    "problem": problem.name,
    "prompt": problem.prompt,
    "answer": text,
    "right": answer.right,
    "tokens": answer.length,
  }
