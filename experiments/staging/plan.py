"""The commands of a road, each with a folder that bears what decides it.

A folder's name ends with a digest of the binary, of all that is bound, of the
files read, and so, through the names of the folders that it takes from, of
every stage before it. What has been done under the same digest is done: another
learning rate of the last stage runs the last stage alone.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import pathlib

from experiments import preflight
from experiments.bindings import problems
from experiments.bindings import sources
from experiments.staging import stage as stage_lib

STAGES = "stages"
EVALUATIONS = "evaluations"
# Changes when the same settings would make something else.
_FORMAT = 1
# The class that each binary's gin files describe, here because to import the
# binaries would define the flags of all of them.
TARGETS: Mapping[str, str] = {
  "pretrain": "dsx.training.pretraining.Pretraining",
  "sft": "dsx.training.pretraining.Pretraining",
  "grpo": "dsx.rl.reinforcement.Reinforcement",
  "make_problems": "dsx.data.problem_files.ProblemFiles",
  "rejection_sample": "dsx.rl.rejection_sampling.RejectionSampling",
  "reward_model": "dsx.rl.reward_training.RewardTraining",
  "evaluate_reasoning": "dsx.rl.assessment.Assessment",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """One run of a binary.

  Attributes:
    stage: the stage that it is, or whose model it evaluates.
    evaluates: whether it evaluates.
    binary: `experiments.<binary>`.
    arguments: its flags.
    folder: its workdir.
    digest: of all that decides what it does.
    needs: folders that it takes from.
  """

  stage: stage_lib.Stage
  evaluates: bool
  binary: str
  arguments: tuple[str, ...]
  folder: pathlib.Path
  digest: str
  needs: tuple[pathlib.Path, ...]

  @property
  def label(self) -> str:
    """For a line on the screen."""
    return (
      f"{self.stage.name}, evaluated" if self.evaluates else self.stage.name
    )


def commands(road: stage_lib.Road, workdir: pathlib.Path) -> list[Command]:
  """Everything that there is to run, in order, checked before any of it is.

  Args:
    road: the stages.
    workdir: of the road, absolute.

  Raises:
    problems.Refused: a stage binds something wrong.
    ValueError: a file to be read is not there.
  """
  planner = _Planner(workdir)
  found = []
  for stage in road.stages:
    found.append(planner.stage(stage, road.seed))
    if stage.evaluate and road.evaluation is not None:
      found.append(planner.evaluation(stage, road.evaluation, road.seed))
  if planner.wrong:
    raise problems.Refused(planner.wrong)
  return found


class _Planner:
  """Names folders, and checks what is bound, in order."""

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir
    self._index = sources.Sources(preflight.PACKAGES)
    self._names: dict[str, str] = {}  # of stages' folders, below workdir
    self.wrong: list[problems.Problem] = []

  def stage(self, stage: stage_lib.Stage, seed: int) -> Command:
    command = self._command(
      stage, stage.binary, stage, seed, place=STAGES, names=self._names
    )
    self._names[stage.name] = str(command.folder.relative_to(self._workdir))
    return command

  def evaluation(
    self,
    stage: stage_lib.Stage,
    evaluation: stage_lib.Evaluation,
    seed: int,
  ) -> Command:
    return self._command(
      stage,
      "evaluate_reasoning",
      evaluation,
      seed,
      place=EVALUATIONS,
      names={**self._names, stage_lib.EVALUATED: self._names[stage.name]},
    )

  def _command(
    self, stage, binary: str, settings, seed: int, *, place: str, names
  ) -> Command:
    """A command; `settings` is a stage's or the evaluation's."""
    used: dict[str, None] = {}

    def filled(root: str) -> list[str]:
      def folder(match) -> str:
        used[names[match[1]]] = None
        return f"{root}{names[match[1]]}"

      return [
        stage_lib.PLACEHOLDER.sub(folder, binding)
        for binding in settings.gin_bindings
      ]

    # What counts are folders below the workdir, wherever that is.
    bound = self._bound(stage, binary, settings.gin_files, filled(""), seed)
    content = json.dumps(
      [_FORMAT, binary, bound, [_file_digest(f) for f in settings.reads]]
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    folder = self._workdir / place / f"{stage.name}-{digest[:10]}"
    arguments = [f"--gin_file={name}" for name in settings.gin_files]
    arguments += [
      f"--gin_bindings={binding}" for binding in filled(f"{self._workdir}/")
    ]
    arguments += [f"--seed={seed}", f"--workdir={folder}"]
    return Command(
      stage=stage,
      evaluates=place == EVALUATIONS,
      binary=binary,
      arguments=tuple(arguments),
      folder=folder,
      digest=digest,
      needs=tuple(self._workdir / name for name in used),
    )

  def _bound(self, stage, binary, files, bindings, seed) -> list[str]:
    """All that is bound, without where, once it has been found right."""
    target = TARGETS[binary]
    try:
      program = preflight.check(
        files, bindings, target=target, seed=seed, index=self._index
      )
    except problems.Refused as error:
      self.wrong += [
        problems.Problem(
          problem.place, f"stage {stage.name!r}: {problem.message}"
        )
        for problem in error.problems
      ]
      return []
    lines = program.text([target]).splitlines()
    return sorted(line.rpartition("  # ")[0] or line for line in lines)


def _file_digest(name: str) -> str:
  path = pathlib.Path(name).expanduser()
  try:
    with path.open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise ValueError(
      f"reads={name!r}: {error.strerror}: expected a file that can be read;"
      " correct the path"
    ) from None
