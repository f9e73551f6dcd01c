"""The training loop, from a `Pretraining` to a trained model and its report.

`train` goes on from the newest good checkpoint of its workdir, takes every
step of the schedule, shows how it goes, and leaves `summary.json`,
checkpoints and `report/`.
"""

import contextlib
import json
import math
import os
import pathlib

import jax

from dsx.parallel import distributed
from dsx.parallel import sharding as sharding_lib
from dsx.training import fp8_health
from dsx.training import history
from dsx.training import metrics as metrics_lib
from dsx.training import observer
from dsx.training import preemption as preemption_lib
from dsx.training import pretraining
from dsx.training import progress as progress_lib
from dsx.training import report
from dsx.training import state as state_lib
from dsx.training import step as step_lib
from dsx.training import trainer as trainer_lib
from dsx.training import workdir as workdir_lib


def train(
  run: pretraining.Pretraining,
  workdir: str | os.PathLike[str],
  *,
  resume_command: str = "",
) -> dict:
  """Trains to the end of the schedule, or until asked to stop.

  Args:
    run: what to train.
    workdir: where everything goes; a run found there is gone on with.
    resume_command: what a person types to go on, for the summary.

  Returns:
    The summary, as it is in `summary.json`.

  Raises:
    WorkdirError: the workdir cannot be used, or holds another run.
    TrainingError: the vocabulary does not fit, or too many updates in a row
      were not finite.
  """
  workdir = workdir_lib.claim(workdir, run)
  trainer = trainer_lib.Trainer(run, workdir)
  # Whatever ends the run, a save that has begun is finished.
  with sharding_lib.use(trainer.mesh, run.sharding), trainer.checkpoints:
    state, note = trainer.begin()
    first = int(state.step)
    with trainer.observer(state) as show:
      show.say(trainer.describe(note))
      state, last = _steps(trainer, state, first, show)
      with show.pause():
        if trainer.saved != last:
          trainer.save(state, last)
        trainer.checkpoints.wait()
      summary = _finish(trainer, state, last, show)
      if first == last:
        summary |= _recorded(workdir)
      summary["resume_command"] = resume_command
      text_of_summary = json.dumps(summary, indent=1)
      workdir_lib.describe(workdir, **{workdir_lib.SUMMARY: text_of_summary})
  if jax.process_index() == 0:
    progress_lib.summary(summary)
  return summary


def _steps(
  trainer: trainer_lib.Trainer, state, first: int, show: observer.Observer
):
  """Takes steps from `first` on; returns the state and the steps taken."""
  run, step = trainer.run, first
  take = step_lib.compiled(trainer.model, trainer.optimizer, trainer.placement)
  evaluator = trainer.evaluator(run.evaluation_records)
  health = trainer.fp8_health()
  batches = trainer.batches(first)
  if first < trainer.total_steps:
    show.doing("compiling")
  with contextlib.closing(batches), preemption_lib.Preemption() as preemption:
    for position, batch in batches:
      phase = trainer.schedule.phase(position.step)
      scalars = trainer.scalars(phase)
      distributed.arrived(f"step {position.step:,}")
      if position.step == first:
        take = distributed.compiled(take, state, batch, scalars)
      state, metrics = take(state, batch, scalars)
      step = position.step + 1
      if trainer.ema is not None:
        trainer.ema.update(state.params, step)
      show.took(position, phase, metrics, batches.wait_seconds)
      if health.due(step):
        show.flush()
        distributed.arrived(f"FP8's statistics after step {step:,}")
        with show.pause():
          seen = health.measure(step, state, batch, scalars)
        show.note(seen, fp8_health.warning(seen))
      stopping = preemption.requested()
      last = stopping or step == trainer.total_steps
      if run.evaluate_every and step % run.evaluate_every == 0 and not last:
        show.flush()
        distributed.arrived(f"the validation after step {step:,}")
        with show.pause():
          score = evaluator.score(state.params, state.router_bias)
        show.validated(trainer.schedule.position(step), score)
      if run.checkpoint_every and step % run.checkpoint_every == 0:
        show.flush()
        distributed.arrived(f"the checkpoint of step {step:,}")
        with show.pause():
          trainer.save(state, step)
      if stopping:
        break
    show.flush()
    if preemption.signal is not None:
      show.say(f"stopped by {preemption.signal.name} after step {step:,}")
  return state, step


def _finish(
  trainer: trainer_lib.Trainer, state, step: int, show: observer.Observer
):
  """Validates, samples, draws the report; returns the summary.

  A run that was stopped early does none of these, because who stops a run
  does not wait.
  """
  run, position = trainer.run, trainer.schedule.position(step)
  sequences = position.sequence
  finished = step == trainer.total_steps
  digest = None
  if finished:
    show.doing("validating")
    distributed.arrived("the last validation")
    evaluator = trainer.evaluator(run.final_evaluation_records)
    score = evaluator.score(state.params, state.router_bias)
    more = {}
    if trainer.ema is not None:
      averaged = evaluator.score(
        trainer.ema.arrays(on_device=True), state.router_bias
      )
      more["ema_bits_per_byte"] = averaged.bits_per_byte
    show.validated(position, score, **more)
    digest = state_lib.digest(state, sequences)
    if run.sample_tokens:
      sample = trainer.sample(state)
      show.say(f"a sample:\n{sample}\n")
      if jax.process_index() == 0:
        (trainer.workdir / "sample.txt").write_text(sample)
  bigram = trainer.source.metadata.get("bigram_bits_per_byte")
  if finished and jax.process_index() == 0:
    report.write(trainer.workdir, title=trainer.workdir.name, bigram=bigram)
  speed = show.tokens_per_second()
  bits = None if show.validation is None else show.validation.bits_per_byte
  return {
    "steps": step,
    "tokens": sequences * trainer.schedule.sequence_length,
    "train_loss": _number(show.train_loss),
    "validation_bits_per_byte": bits,
    "bigram_bits_per_byte": bigram,
    "tokens_per_second": _number(speed),
    "mfu": _number(trainer.mfu(speed)),
    "parameters": trainer.parameters,
    "max_violation": _number(show.max_violation),
    "wall_seconds": trainer.wall_seconds(),
    "state_digest": digest,
  }


def _recorded(workdir: pathlib.Path) -> dict:
  """What the metrics know of a run that had no step left to take."""
  records = [r for r in metrics_lib.read(workdir) if r["kind"] == "train"]
  names = {"train_loss": "loss"} | {
    name: name for name in ("tokens_per_second", "mfu", "max_violation")
  }
  return {
    name: _number(history.number(record, field))
    for record in records[-1:]
    for name, field in names.items()
  }


def _number(value: float) -> float | None:
  """`value`, or None where JSON has no word for it."""
  return float(value) if math.isfinite(value) else None
