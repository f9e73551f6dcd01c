"""What changes as a run goes on, saved and brought back.

A checkpoint has the policy's training state, the reference and, in its
metadata, all the rest; answers that wait are in a file beside it
(`pending.py`).
"""

import dataclasses
import hashlib
import pathlib
import time
from typing import Any

from absl import logging

from dsx.rl import alarms as alarms_lib
from dsx.rl import explorer as explorer_lib
from dsx.rl import pending as pending_lib
from dsx.rl import reinforcement
from dsx.training import checkpoint as checkpoint_lib
from dsx.training import observer
from dsx.training import starting
from dsx.training import state as state_lib
from dsx.training import step_directory
from dsx.training import workdir as workdir_lib


@dataclasses.dataclass(kw_only=True)
class Progress:
  """All that changes as a run goes on, and so all that is saved.

  Attributes:
    state: of training.
    reference: variables of the reference policy, or None.
    reference_step: updates that it had taken.
    place: in problems and draws.
    tokens: of answers that were drawn.
    rollout: whose answers are being learnt from; None before the first.
    rollout_step: updates taken when they were drawn.
    examined: updates taken at the latest examination; -1 for none yet.
    watch: what alarms have seen.
  """

  state: state_lib.TrainState
  reference: Any
  reference_step: int = 0
  place: explorer_lib.Place = explorer_lib.Place()
  tokens: int = 0
  rollout: pending_lib.Rollout | None = None
  rollout_step: int = 0
  examined: int = -1
  watch: alarms_lib.Watch

  @property
  def step(self) -> int:
    """Updates taken, refused ones included."""
    return int(self.state.step)

  @property
  def variables(self) -> dict[str, Any]:
    """The policy's."""
    return {"params": self.state.params, "router_bias": self.state.router_bias}

  def digest(self) -> str:
    """sha256 over all that must be equal after a resume."""
    parts = {"policy": self.state.params, "reference": self.reference or {}}
    sha = hashlib.sha256()
    whole = self.state.replace(params=parts)
    sha.update(state_lib.digest(whole, self.place.problems).encode())
    sha.update(repr((self.reference_step, *self.place, self.tokens)).encode())
    return sha.hexdigest()


class Keeper:
  """The checkpoints of a run.

  Attributes:
    checkpoints: of the run's workdir.
    start: which weights the run began with, of `starting.Started`; or None.
    saved: the newest good checkpoint's step, or None.
  """

  def __init__(
    self,
    run: reinforcement.Reinforcement,
    workdir: pathlib.Path,
    *,
    target: state_lib.TrainState,
    needs_reference: bool,
    problems: str,
  ):
    """Opens them.

    Args:
      run: whose.
      workdir: of the run.
      target: of a restore, `state.restorable`.
      needs_reference: whether a reference is saved, too.
      problems: digest of what is learnt from.
    """
    self._run, self._workdir, self._target = run, workdir, target
    self._needs_reference, self._problems = needs_reference, problems
    self.checkpoints = checkpoint_lib.Checkpointer(
      workdir / workdir_lib.CHECKPOINTS, max_to_keep=run.keep_checkpoints
    )
    self.start: dict | None = None
    self.saved: int | None = None
    self._wall_before, self._started = 0.0, time.monotonic()
    self._digests: dict[int, str] = {}  # of rollouts' files
    self._needed: dict[int, int | None] = {}  # rollouts by checkpoint

  def restored(self) -> tuple[Progress, str]:
    """The newest checkpoint that is good and has its rollout."""
    notes, incomplete = [], []
    for step in self.checkpoints.steps()[::-1]:
      try:
        found = self._restore(step, notes)
      except pending_lib.PendingError as error:
        incomplete.append(step)
        notes.append(f"step {step} is passed over: {error}")
      except checkpoint_lib.CheckpointError as error:
        notes.append(f"step {step} is passed over: {error}")
      else:
        for lost in incomplete:  # its number is needed again
          step_directory.StepDirectory(
            self._workdir / workdir_lib.CHECKPOINTS
          ).set_aside(lost)
        return found
      logging.warning("%s", notes[-1])
    raise checkpoint_lib.CheckpointError(
      f"no good step in {self._workdir / workdir_lib.CHECKPOINTS}:"
      f" {'; '.join(notes)}"
    )

  def _restore(self, step: int, notes: list[str]) -> tuple[Progress, str]:
    metadata = self.checkpoints.metadata(step)
    rollout = None
    if metadata["rollout"] is not None:
      rollout = pending_lib.read(self._workdir, **metadata["rollout"])
      self._digests[rollout.number] = metadata["rollout"]["digest"]
    target: dict[str, Any] = {"state": self._target}
    if self._needs_reference:
      target["reference"] = {
        "params": self._target.params,
        "router_bias": self._target.router_bias,
      }
    restored = self.checkpoints.restore(target, step=step)
    self._check_same(metadata)
    self.start = metadata["start"]
    self.saved = step
    self._wall_before = metadata["wall_seconds"]
    progress = Progress(
      state=restored.arrays["state"],
      reference=restored.arrays.get("reference"),
      reference_step=metadata["reference_step"],
      place=explorer_lib.Place(**metadata["place"]),
      tokens=metadata["tokens"],
      rollout=rollout,
      rollout_step=metadata["rollout_step"],
      examined=metadata["examined"],
      watch=alarms_lib.Watch(self._run.alarms, metadata["watch"]),
    )
    words = [f"resumed at step {step:,}", *notes, *restored.notes]
    return progress, "; ".join(words)

  def _check_same(self, metadata: dict) -> None:
    """Refuses to go on with other problems or another beginning."""
    if metadata["problems"] != self._problems:
      raise observer.TrainingError(
        f"workdir {self._workdir} was trained on problems with digest"
        f" {metadata['problems'][:12]}, the same settings name"
        f" {self._problems[:12]} now: bring the old files back, or give"
        " another --workdir"
      )
    if self._run.init is not None and metadata["start"] is not None:
      starting.check_same(self._run.init, metadata["start"])

  def save(self, progress: Progress) -> None:
    """Starts saving a checkpoint."""
    step, rollout = progress.step, self._waiting(progress)
    kept = None
    if rollout is not None:
      # The file of a rollout never changes: one serves several checkpoints.
      if rollout.number not in self._digests:
        self._digests[rollout.number] = pending_lib.write(
          self._workdir, rollout
        )
      digest = self._digests[rollout.number]
      kept = {"number": rollout.number, "digest": digest}
    arrays = {"state": progress.state}
    if progress.reference is not None:
      arrays["reference"] = progress.reference
    metadata = {
      "step": step,
      "sequences": progress.place.problems,
      "tokens": progress.tokens,
      "wall_seconds": self.wall_seconds(),
      "run": self._run.identity(),
      "start": self.start,
      "data": self._problems,
      "problems": self._problems,
      "place": progress.place._asdict(),
      "reference_step": progress.reference_step,
      "rollout": kept,
      "rollout_step": progress.rollout_step,
      "examined": progress.examined,
      "watch": progress.watch.state(),
    }
    self.checkpoints.save(step, arrays, metadata)
    self.saved = step
    self._forget(step, rollout)

  def _waiting(self, progress: Progress) -> pending_lib.Rollout | None:
    """The rollout, if any of its answers were not learnt from yet."""
    used = progress.step - progress.rollout_step
    left = used < self._run.updates_per_rollout
    return progress.rollout if left else None

  def _forget(self, step: int, rollout: pending_lib.Rollout | None) -> None:
    """Removes rollouts of checkpoints that are gone."""
    self._needed[step] = None if rollout is None else rollout.number
    for old in set(self.checkpoints.steps()) - self._needed.keys():
      kept = self.checkpoints.metadata(old)["rollout"]
      self._needed[old] = None if kept is None else kept["number"]
    # The save has only begun: what the older steps need stays for now.
    alive = {step, *self.checkpoints.steps()}
    self._needed = {s: n for s, n in self._needed.items() if s in alive}
    numbers = [n for n in self._needed.values() if n is not None]
    pending_lib.keep_only(self._workdir, numbers)
    self._digests = {n: d for n, d in self._digests.items() if n in numbers}

  def wall_seconds(self) -> float:
    """Seconds that this run has taken, earlier processes included."""
    return self._wall_before + time.monotonic() - self._started
