"""The loop of reinforcement learning, from a `Reinforcement` to its report.

DeepSeek-R1 section 2.2.1. `reinforce` goes on from the newest good checkpoint
of its workdir, takes every step, examines the policy on held-out problems, and
leaves `summary.json`, checkpoints, completions and `report/`.

A run that was killed at any moment and gone on with ends as one that was not,
bit for bit: everything that changes is in a checkpoint (`keeper.Progress`),
and every draw has a key that follows from its place.
"""

from collections.abc import Sequence
import json
import math
import os
import pathlib
from typing import Any
from typing import cast

from dsx.parallel import sharding as sharding_lib
from dsx.rl import alarms as alarms_lib
from dsx.rl import completions
from dsx.rl import keeper as keeper_lib
from dsx.rl import learner as learner_lib
from dsx.rl import observer as observer_lib
from dsx.rl import reinforcement
from dsx.rl import report
from dsx.rl import rewards as rewards_lib
from dsx.training import preemption as preemption_lib
from dsx.training import progress as progress_lib
from dsx.training import workdir as workdir_lib


def claim(
  workdir: str | os.PathLike[str], run: reinforcement.Reinforcement
) -> pathlib.Path:
  """Makes the folder of a run, or finds that it holds this very run.

  Raises:
    WorkdirError: it cannot be written, has no room, or holds another run.
  """
  # It asks for an identity, a model and an optimizer, which this has, too.
  return workdir_lib.claim(workdir, cast(Any, run))


def reinforce(
  run: reinforcement.Reinforcement,
  workdir: str | os.PathLike[str],
  *,
  resume_command: str = "",
) -> dict[str, Any]:
  """Learns to the end of a run, or until asked to stop.

  Args:
    run: what to learn.
    workdir: where everything goes; a run found there is gone on with.
    resume_command: what a person types to go on, for the summary.

  Returns:
    The summary, as it is in `summary.json`.

  Raises:
    ValueError: in one line, what is wrong with settings, files or numbers.
  """
  mesh = run.devices()
  workdir = claim(workdir, run)
  with (
    sharding_lib.use(mesh, run.sharding),
    rewards_lib.Grader(
      run.rewards, opened=run.template.opens_thought
    ) as grader,
  ):
    learner = learner_lib.Learner(run, workdir, grader, mesh)
    with learner.keeper.checkpoints:
      return _reinforced(learner, resume_command)


def _reinforced(learner: learner_lib.Learner, resume_command: str):
  """Takes the steps that are left; returns the summary."""
  run = learner.run
  progress, note = learner.begin()
  show = observer_lib.Observer(
    learner.workdir,
    total_steps=run.steps,
    first_step=progress.step,
    log_every=run.log_every,
    max_skipped_in_a_row=run.max_skipped_in_a_row,
    skipped_in_a_row=int(progress.state.skipped_in_a_row),
  )
  with show:
    show.say(learner.describe(note))
    ended = _steps(learner, progress, show)
    if learner.keeper.saved != progress.step:
      learner.keeper.save(progress)
    learner.keeper.checkpoints.wait()
    if ended:
      show.say(ended)
    summary = _summary(learner, progress, show, ended)
    summary["resume_command"] = resume_command
    text = json.dumps(summary, indent=1)
    workdir_lib.describe(learner.workdir, **{workdir_lib.SUMMARY: text})
  progress_lib.summary(summary)
  return summary


def _steps(
  learner: learner_lib.Learner,
  progress: keeper_lib.Progress,
  show: observer_lib.Observer,
) -> str:
  """Takes steps; returns why they ended early, or nothing."""
  run = learner.run
  stop = _examine_if_due(learner, progress, show)
  with preemption_lib.Preemption() as preemption:
    if progress.step < run.steps:
      show.doing("compiling")
    while progress.step < run.steps and not stop:
      learner.explore(progress)
      if preemption.requested():
        # Drawing takes longest: the answers are saved, to be learnt from later.
        stop = _stopped(preemption, progress.step)
        break
      record = learner.take(progress)
      record["step"] = step = progress.step
      record["skipped"] = int(progress.state.skipped)
      show.took(record)
      stop = _alarm(progress, show, progress.watch.trained(record))
      if preemption.requested():
        stop = _stopped(preemption, step)
      else:
        stop = _examine_if_due(learner, progress, show) or stop
      if run.checkpoint_every and step % run.checkpoint_every == 0:
        learner.keeper.save(progress)
  return "" if progress.step == run.steps else stop


def _stopped(preemption: preemption_lib.Preemption, step: int) -> str:
  assert preemption.signal is not None
  return f"stopped by {preemption.signal.name} after step {step:,}"


def _examine_if_due(learner, progress, show: observer_lib.Observer) -> str:
  """Examines first, last and every so often; a reason to stop, if any."""
  run, step = learner.run, progress.step
  often = run.evaluate_every and step % run.evaluate_every == 0
  if progress.examined == step or not (often or step in (0, run.steps)):
    return ""
  examination = learner.examine(progress)
  if examination is None:
    return ""
  record = show.examined(step, run.steps, examination.score)
  completions.write(learner.workdir, step, examination.shown)
  return _alarm(progress, show, progress.watch.evaluated(record))


def _alarm(progress, show, alarms: Sequence[alarms_lib.Alarm]) -> str:
  """Says what there is to say; a reason to stop, if there is one."""
  for alarm in alarms:
    show.alarmed(alarm)
  stopping = progress.watch.stopping(alarms)
  if stopping is None:
    return ""
  return (
    f"stopped by alarm {stopping.rule!r} after step {stopping.step:,}:"
    f" {stopping.words}"
  )


def _summary(learner, progress, show, ended: str) -> dict[str, Any]:
  """Draws the report of a run that is finished; returns the summary."""
  run, workdir = learner.run, learner.workdir
  finished = progress.step == run.steps
  drawn = report.write(workdir, title=workdir.name)
  completions.compare(workdir)
  examinations = report.read(workdir).examinations
  summary: dict[str, Any] = {
    "steps": progress.step,
    "finished": finished,
    "ended": ended or None,
    "answer_tokens": progress.tokens,
    "parameters": learner.parameters,
    "reward": _number(show.last.get("reward")),
  }
  if examinations:
    first, last = examinations[0], examinations[-1]
    summary |= {
      "accuracy_before": _number(first.get("pass_1")),
      "accuracy": _number(last.get("pass_1")),
      "accuracy_low": _number(last.get("pass_1_low")),
      "accuracy_high": _number(last.get("pass_1_high")),
      "k": int(last["k"]),
      "pass_at_k_before": _number(first.get("pass_k")),
      "pass_at_k": _number(last.get("pass_k")),
      "consensus_at_k": _number(last.get("cons_k")),
    }
  raised = progress.watch.raised
  return summary | {
    "seconds_per_step": _number(show.last.get("seconds")),
    "alarms": ", ".join(f"{k} at step {v:,}" for k, v in raised.items())
    or None,
    "wall_seconds": learner.keeper.wall_seconds(),
    "report": str(drawn[0]) if drawn else None,
    "state_digest": progress.digest() if finished else None,
  }


def _number(value: float | None) -> float | None:
  """`value`, or None where JSON has no word for it."""
  if value is None or not math.isfinite(value):
    return None
  return float(value)
