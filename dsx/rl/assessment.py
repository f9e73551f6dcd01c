"""What an examination of a finished model is, and taking it.

DeepSeek-R1 section 3: several answers to each held-out problem at temperature
0.6 and top-p 0.95; pass@1, pass@k and cons@k with intervals over problems.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from dsx.data import prompt_template
from dsx.evals import reasoning
from dsx.inference import decoding as decoding_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import examiner
from dsx.rl import exercises
from dsx.rl import rewards as rewards_lib
from dsx.rl import rollout
from dsx.training import pretrained
from dsx.training import start as start_lib
from dsx.training import workdir as workdir_lib

ANSWERS = "answers.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assessment:
  """Everything that an examination is.

  Attributes:
    policy: the model.
    problems: the held-out side of them is put; the other is looked at only to
      find that they differ.
    template: how a problem is put.
    rewards: how an answer is verified; its weights mean nothing here.
    evaluation: how answers are drawn, and how many.
    max_new_tokens: longest answer, unless `evaluation` says.
    decoding: how many at once.
    dtype: of parameters and products; None for the model's own.
    mesh: devices along each axis.
    sharding: where parameters live.
    shown_problems: whose first answers are written down; 0 for those of all.
    seed: of the draws.
  """

  policy: start_lib.Start
  problems: exercises.Exercises
  template: prompt_template.Template = prompt_template.Template()
  rewards: rewards_lib.Rewards = rewards_lib.Rewards()
  evaluation: reasoning.Evaluation = reasoning.Evaluation()
  max_new_tokens: int = 1024
  decoding: decoding_lib.Decoding = rollout.DECODING
  dtype: str | None = None
  mesh: mesh_lib.MeshShape = mesh_lib.MeshShape()
  sharding: sharding_lib.Sharding = sharding_lib.Sharding()
  shown_problems: int = 0
  seed: int = 0

  def __post_init__(self):
    for field, least in (
      ("max_new_tokens", 1),
      ("shown_problems", 0),
      ("seed", 0),
    ):
      if getattr(self, field) < least:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected at least {least};"
          " raise it"
        )
    if self.evaluation.seed:
      raise ValueError(
        f"evaluation.seed={self.evaluation.seed!r}: expected 0; set"
        " Assessment.seed"
      )

  def find(self) -> pretrained.Pretrained:
    """The model, of which only descriptions are read."""
    policy = self.policy
    return pretrained.find(
      policy.path, step=policy.step, average=policy.average, dtype=self.dtype
    )


def describe(assessment: Assessment) -> str:
  """What would be examined with what."""
  held_out = assessment.problems.held_out()
  n = min(assessment.evaluation.problems or len(held_out), len(held_out))
  evaluation = assessment.evaluation
  return (
    f"policy: {assessment.find().description}\n"
    f"problems: {n:,} held out, {evaluation.samples} answers to each at"
    f" temperature {evaluation.temperature:g} and top-p {evaluation.top_p:g}"
  )


def assess(assessment: Assessment, workdir: pathlib.Path) -> dict[str, Any]:
  """Examines, and writes `summary.json` and `answers.jsonl`.

  Args:
    assessment: what and how.
    workdir: where to; it exists.

  Returns:
    The summary: the fields of `reasoning.Score.record`, and what was examined.

  Raises:
    ValueError: in one line, what is wrong with the files.
  """
  found = assessment.find()
  evaluation = dataclasses.replace(assessment.evaluation, seed=assessment.seed)
  mesh = mesh_lib.make(assessment.mesh)
  with (
    sharding_lib.use(mesh, assessment.sharding),
    rewards_lib.Grader(
      assessment.rewards, opened=assessment.template.opens_thought
    ) as grader,
  ):
    problems = assessment.problems.held_out()
    grader.check(problems)
    examination = examiner.Examiner(
      problems,
      evaluation=evaluation,
      template=assessment.template,
      vocabulary=found.vocabulary,
      grader=grader,
      form=assessment.rewards.form,
      shown=assessment.shown_problems or len(problems),
    ).examine(
      _roller(assessment, found, mesh),
      max_new_tokens=assessment.max_new_tokens,
    )
  lines = [json.dumps(x, ensure_ascii=False) for x in examination.shown]
  summary = {
    **examination.score.record(),
    "policy": found.description,
    "problems_digest": exercises.digest(problems)[:16],
  }
  files = {
    ANSWERS: "\n".join(lines) + "\n",
    workdir_lib.SUMMARY: json.dumps(summary, indent=1),
  }
  workdir_lib.describe(workdir, **files)
  print(examination.score.table(), flush=True)
  return summary


def _roller(
  assessment: Assessment,
  found: pretrained.Pretrained,
  mesh: jax.sharding.Mesh,
) -> rollout.Roller:
  """A sampler with the model's weights."""
  alone = mesh.size == 1
  roller = rollout.Roller(
    found.config,
    found.dtypes,
    decoding=assessment.decoding,
    eos=found.vocabulary.special["eos"],
    vocab_size=found.vocabulary.size,
    mesh=None if alone else mesh,
    sharding=assessment.sharding,
  )
  variables = found.read(
    layout="layers",
    mtp=assessment.decoding.drafts > 0,
    mesh=mesh,
    sharding=assessment.sharding,
  )
  roller.load(variables, version=0)
  return roller
