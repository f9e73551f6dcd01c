"""The exploration of a rollout: problems, answers to them, and their rewards.

With dynamic sampling (DAPO; Yu et al. 2025, section 3.2) groups whose rewards
are all equal, which teach nothing, give way to further problems. What is
measured is measured of all answers that were drawn.

Legend: P problems, G answers to each, N = P G.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import time
from typing import NamedTuple

import numpy as np

from dsx.data import problems as problems_lib
from dsx.data import prompt_template
from dsx.data import vocab as vocab_lib
from dsx.rl import advantages
from dsx.rl import curriculum as curriculum_lib
from dsx.rl import measures
from dsx.rl import reinforcement
from dsx.rl import rewards as rewards_lib
from dsx.rl import rollout as rollout_lib
from dsx.rl import sample as sample_lib


class Place(NamedTuple):
  """Where a run stands in what it draws from.

  Attributes:
    draws: how often answers were drawn; each draw has keys of its own.
    problems: how many problems were met.
    general: how many of the general ones.
  """

  draws: int = 0
  problems: int = 0
  general: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explored:
  """The answers that a rollout learns from.

  Attributes:
    samples: N of them, groups beside each other.
    rewards: float32 [P, G]; any where not counted.
    counted: bool [P, G], answers that have a reward.
    facts: of all answers drawn, see `measures.py`.
    place: where the next rollout goes on.
  """

  samples: list[sample_lib.Sample]
  rewards: np.ndarray
  counted: np.ndarray
  facts: Mapping[str, float]
  place: Place


class _Groups(NamedTuple):
  """Some groups of answers: samples G at a time, and arrays [groups, G]."""

  samples: list[list[sample_lib.Sample]]
  rewards: np.ndarray
  counted: np.ndarray
  parts: dict[str, np.ndarray]
  texts: list[str]
  seconds: tuple[float, float]


class Explorer:
  """Draws and grades answers."""

  def __init__(
    self,
    run: reinforcement.Reinforcement,
    vocabulary: vocab_lib.Vocabulary,
    roller: rollout_lib.Roller,
    grader: rewards_lib.Grader,
    train: Sequence[problems_lib.Problem],
    general: Sequence[problems_lib.Problem],
  ):
    """Puts together what is drawn from.

    Args:
      run: of which.
      vocabulary: of the policy.
      roller: with the policy's weights.
      grader: of answers.
      train: problems.
      general: further ones, for the last steps; may be empty.
    """
    self._run, self._vocabulary = run, vocabulary
    self._roller, self._grader = roller, grader
    self._train = curriculum_lib.Curriculum(train, run.seed)
    self._general = None
    if general:
      self._general = curriculum_lib.Curriculum(general, run.seed)

  def explore(self, step: int, place: Place) -> Explored:
    """Draws the answers of a rollout.

    Args:
      step: updates taken.
      place: from which problem on.
    """
    run, n = self._run, self._run.prompts_per_rollout
    drawn: list[_Groups] = []
    kept: list[tuple[int, int]] = []  # of which draw, which group
    equal: list[tuple[int, int]] = []
    for turn in range(1 + run.dynamic_sampling):
      problems, place = self._next(step, place, n - len(kept))
      groups = self._draw(step, place, problems)
      place = place._replace(draws=place.draws + 1)
      drawn.append(groups)
      varied = np.asarray(
        advantages.advantages(groups.rewards, groups.counted)[1]
      )
      if not run.dynamic_sampling:
        varied = np.ones_like(varied)
      for group, teaches in enumerate(varied):
        (kept if teaches else equal).append((turn, group))
      if len(kept) == n:
        break
    chosen = [*kept, *equal][:n]
    samples = [
      dataclasses.replace(sample, prompt_number=number)
      for number, (turn, group) in enumerate(chosen)
      for sample in drawn[turn].samples[group]
    ]
    return Explored(
      samples=samples,
      rewards=np.stack([drawn[t].rewards[g] for t, g in chosen]),
      counted=np.stack([drawn[t].counted[g] for t, g in chosen]),
      facts=self._facts(drawn) | {"epoch": self._train.epoch(place.problems)},
      place=place,
    )

  def _next(self, step: int, place: Place, n: int):
    """The next n problems, and the place after them."""
    run, general = self._run, 0
    if self._general and step >= run.steps - run.general_steps:
      general = round(run.general_share * n)
    problems = self._train.take(place.problems, n - general)
    if self._general and general:
      problems += self._general.take(place.general, general)
    return problems, place._replace(
      problems=place.problems + n - general, general=place.general + general
    )

  def _draw(self, step: int, place: Place, problems) -> _Groups:
    """Answers to some problems, graded."""
    run, size = self._run, self._run.group_size
    longest = run.longest(step)
    began = time.monotonic()
    samples = self._roller.sample(
      [run.template.tokens(self._vocabulary, p.prompt) for p in problems],
      group_size=size,
      sampling=dataclasses.replace(run.sampling, max_new_tokens=longest),
      run_seed=run.seed,
      step=place.draws,
    )
    drawn = time.monotonic()
    texts = [
      prompt_template.response_text(self._vocabulary, sample.tokens.tolist())
      for sample in samples
    ]
    grades = self._grader.grade(
      [
        (problems[s.prompt_number], text, len(s.tokens), s.truncated)
        for s, text in zip(samples, texts, strict=True)
      ]
    )
    counted = grades.counted
    total = np.where(counted, grades.total, 0.0).astype(np.float32)
    parts = dict(grades.parts)
    if run.overlong_margin:
      parts["overlong"] = run.overlong_penalty * np.asarray(
        advantages.overlong_penalty(
          np.asarray([len(s.tokens) for s in samples]),
          longest=longest,
          margin=run.overlong_margin,
        )
      )
      total = total + parts["overlong"]
    shape = (len(problems), size)
    return _Groups(
      samples=[samples[i : i + size] for i in range(0, len(samples), size)],
      rewards=total.reshape(shape),
      counted=counted.reshape(shape),
      parts=parts,
      texts=texts,
      seconds=(drawn - began, time.monotonic() - drawn),
    )

  def _facts(self, drawn: Sequence[_Groups]) -> dict[str, float]:
    """What is measured of all answers drawn."""
    samples = [s for groups in drawn for group in groups.samples for s in group]

    def joined(name: str) -> np.ndarray:
      return np.concatenate([getattr(g, name).reshape(-1) for g in drawn])

    facts = measures.of_rewards(
      joined("rewards"),
      {
        name: np.concatenate([groups.parts[name] for groups in drawn])
        for name in drawn[0].parts
      },
      joined("counted"),
      self._run.group_size,
    )
    texts = [text for groups in drawn for text in groups.texts]
    facts |= measures.of_samples(samples, texts)
    tokens = sum(len(sample.tokens) for sample in samples)
    generate, score = (
      sum(g.seconds[i] for g in drawn) for i in range(len(drawn[0].seconds))
    )
    return facts | {
      "answers": len(samples),
      "answer_tokens": tokens,
      "seconds_generate": generate,
      "seconds_score": score,
    }
