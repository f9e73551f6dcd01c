"""Answers to problems, judged and selected: a part of rejection sampling."""

from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax

from dsx.data import problems as problems_lib
from dsx.data import prompt_template
from dsx.data import special_tokens
from dsx.inference import decoding as decoding_lib
from dsx.rl import rejection
from dsx.rl import rejection_sampling
from dsx.rl import rewards as rewards_lib
from dsx.rl import rollout
from dsx.rl import sample as sample_lib
from dsx.training import pretrained
from dsx.training import starting

# Draws of training have steps from 0, those of an examination have -1.
_STEP = -2
_SHOWN = 3  # refused answers to be read, for each reason and part


class Part(NamedTuple):
  """What came of some problems.

  Attributes:
    kept: lines to learn from.
    counts: answers by domain, and there by what became of them.
    refused: some, with reasons, to be read.
  """

  kept: list[dict[str, Any]]
  counts: dict[str, dict[str, int]]
  refused: list[dict[str, Any]]


class Sampler:
  """A policy, and who grades its answers.

  Attributes:
    policy: `path`, `step` and `digest` of its weights.
    note: the same, for people.
  """

  def __init__(
    self,
    settings: rejection_sampling.RejectionSampling,
    grader: rewards_lib.Grader,
    mesh: jax.sharding.Mesh,
  ):
    """Reads the policy.

    Args:
      settings: of the run.
      grader: of answers.
      mesh: the devices.
    """
    self._settings, self._grader = settings, grader
    found = pretrained.find(
      settings.policy.path,
      step=settings.policy.step,
      average=settings.policy.average,
    )
    self._vocabulary = found.vocabulary
    decoding_lib.check_model(found.config, vocabulary=found.vocabulary)
    dtypes = settings.dtypes or found.dtypes
    started = starting.load(
      settings.policy,
      found.config,
      dtypes,
      mesh=mesh,
      sharding=settings.sharding,
    )
    self.policy, self.note = started.record, started.note
    self._roller = rollout.Roller(
      found.config,
      dtypes,
      decoding=settings.decoding,
      eos=found.vocabulary.special["eos"],
      vocab_size=found.vocabulary.size,
      mesh=None if mesh.size == 1 else mesh,
      sharding=settings.sharding,
    )
    self._roller.load(started.variables, version=0)

  def sample(
    self, problems: Sequence[problems_lib.Problem], first: int
  ) -> Part:
    """Answers problems, and selects.

    Args:
      problems: some.
      first: how many came before them in the run.
    """
    settings, n = self._settings, self._settings.answers
    samples = self._roller.sample(
      [
        settings.template.tokens(self._vocabulary, problem.prompt)
        for problem in problems
      ],
      group_size=n,
      sampling=settings.sampling,
      run_seed=settings.seed,
      step=_STEP,
      first_prompt=first,
    )
    groups = [samples[i : i + n] for i in range(0, len(samples), n)]
    result = Part([], {}, [])
    shown: dict[str, int] = {}
    for problem, candidates in zip(
      problems, self._judged(problems, groups), strict=True
    ):
      kept, refused = rejection.select(
        problem, candidates, settings.filters, settings.rewards.form
      )
      counts = result.counts.setdefault(problem.domain, {})
      rate = sum(c.right == 1 for c in candidates) / n
      for candidate in kept:
        counts["kept"] = counts.get("kept", 0) + 1
        result.kept.append(self._line(problem, candidate, rate))
      for candidate, why in refused:
        counts[why] = counts.get(why, 0) + 1
        shown[why] = shown.get(why, 0) + 1
        if shown[why] <= _SHOWN:
          line = self._line(problem, candidate, rate)
          result.refused.append({"reason": why, **line})
    return result

  def _judged(
    self,
    problems: Sequence[problems_lib.Problem],
    groups: Sequence[Sequence[sample_lib.Sample]],
  ) -> list[list[rejection.Candidate]]:
    """Answers with what is known about them."""
    texts = [
      [
        prompt_template.response_text(self._vocabulary, sample.tokens.tolist())
        for sample in group
      ]
      for group in groups
    ]
    grades = self._grader.grade(
      [
        (problem, text, len(sample.tokens), sample.truncated)
        for problem, group, said in zip(problems, groups, texts, strict=True)
        for sample, text in zip(group, said, strict=True)
      ]
    )
    scores = grades.parts.get("preference")
    opened = self._settings.template.opens_thought
    opening = special_tokens.STRINGS["think"] + "\n" if opened else ""
    found, at = [], 0
    for group, said in zip(groups, texts, strict=True):
      candidates = []
      for sample, text in zip(group, said, strict=True):
        candidates.append(
          rejection.Candidate(
            number=sample.number,
            text=opening + text,
            tokens=len(sample.tokens),
            truncated=sample.truncated,
            right=float(grades.parts["accuracy"][at]),
            error=grades.error[at],
            reward=float(grades.total[at]),
            logprob=float(sample.logprob.mean()),
            score=math.nan if scores is None else float(scores[at]),
          )
        )
        at += 1
      found.append(candidates)
    return found

  def _line(
    self,
    problem: problems_lib.Problem,
    candidate: rejection.Candidate,
    rate: float,
  ) -> dict[str, Any]:
    """A line of the samples: prompt and response, and where it is from."""
    numbers = {
      "reward": candidate.reward,
      "logprob": candidate.logprob,
      "score": candidate.score,
    }
    return {
      "prompt": problem.prompt,
      "response": candidate.text,
      "problem": problem.name,
      "domain": problem.domain,
      "language": problem.language,
      "source": f"policy {self.policy['digest'][:12]}",
      "answer": candidate.number,
      "tokens": candidate.tokens,
      "share_right": round(rate, 4),
      **{
        name: round(value, 4)
        for name, value in numbers.items()
        if math.isfinite(value)
      },
    }
