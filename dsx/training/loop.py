"""The training loop, from a `Pretraining` to a trained model and its report.

`train` goes on from the newest good checkpoint of its workdir, takes every
step of the schedule, shows how it goes, and leaves `summary.json`,
checkpoints and `report/`.
"""

import json
import logging
import math
import os
import pathlib
import time

import jax
import numpy as np

from dsx import cost
from dsx.data import pipeline
from dsx.data import vocab as vocab_lib
from dsx.evals import text
from dsx.inference import generate
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import batches as batches_lib
from dsx.training import checkpoint as checkpoint_lib
from dsx.training import ema as ema_lib
from dsx.training import metrics as metrics_lib
from dsx.training import preemption as preemption_lib
from dsx.training import pretraining
from dsx.training import progress as progress_lib
from dsx.training import report
from dsx.training import schedules
from dsx.training import state as state_lib
from dsx.training import step as step_lib


class TrainingError(ValueError):
  """A run that cannot go on; the message says why and what to do."""


class Trainer:
  """One run in one process: the pieces, and what it has done so far."""

  def __init__(self, run: pretraining.Pretraining, workdir: pathlib.Path):
    """Builds the model, its state, the data and the files of `workdir`.

    Args:
      run: what to train.
      workdir: where checkpoints, metrics and the report go.
    """
    self.run, self.workdir = run, workdir
    self.mesh = mesh_lib.make(run.mesh)
    run.check_mesh(self.mesh)
    self.source = pipeline.open_split(run.data, "train", shuffle=True)
    self.held_out = pipeline.open_split(run.data, "validation", shuffle=False)
    self._check_vocabulary()
    self.model = deepseek.DeepSeek(run.config, run.dtypes, run.execution)
    self.optimizer = run.optimizer.transformation()
    boxed = state_lib.abstract(self.model, self.optimizer)
    self.placement = state_lib.shardings(boxed, run.sharding, self.mesh)
    self.target = state_lib.restorable(boxed, self.placement)
    self.checkpoints = checkpoint_lib.Checkpointer(
      workdir / "checkpoints", max_to_keep=run.keep_checkpoints
    )
    self.total_steps = run.schedule.total_steps()
    self.key = jax.random.key(run.seed)
    self.ema: ema_lib.Ema | None = None
    self.wall_before = 0.0
    self.started = time.monotonic()
    self._flops = cost.flops_per_token(
      run.config, run.data.sequence_length, mtp=True
    )

  def _check_vocabulary(self) -> None:
    size = self.source.metadata["vocab_size"]
    if size > self.run.config.vocab_size:
      raise TrainingError(
        f"config.vocab_size={self.run.config.vocab_size}: expected at least "
        f"{size}, the size of vocabulary {self.run.data.vocabulary!r}; raise "
        "config.DeepSeekConfig.vocab_size"
      )

  # What a checkpoint holds.

  def _arrays(self, state) -> dict:
    arrays = {"state": state, "key": jax.random.key_data(self.key)}
    if self.ema is not None:
      self.ema.wait()
      arrays["ema"] = self.ema.arrays()
    return arrays

  def _target(self) -> dict:
    key = jax.eval_shape(jax.random.key_data, self.key)
    placed = sharding_lib.replicated(self.mesh)
    target = {
      "state": self.target,
      "key": jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=placed),
    }
    if self.run.ema_decay is not None:
      target["ema"] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
          x.shape, np.float32, sharding=x.sharding
        ),
        self.target.params,
      )
    return target

  def begin(self):
    """The state to go on from, and a note on where it comes from."""
    state, note = None, "from scratch"
    if self.checkpoints.steps():
      self._check_identity()
      restored = self.checkpoints.restore(self._target())
      state = restored.arrays["state"]
      self.key = jax.random.wrap_key_data(restored.arrays["key"])
      self.wall_before = restored.metadata["wall_seconds"]
      note = "; ".join([f"resumed at step {restored.step:,}", *restored.notes])
    else:
      state = state_lib.initialise(
        self.model, self.optimizer, self.placement, self.run.seed
      )
    if self.run.ema_decay is not None:
      self.ema = ema_lib.Ema(
        state.params, self.run.ema_decay, self.run.ema_every
      )
      if "resumed" in note:
        self.ema.load(restored.arrays["ema"])
    return state, note

  def _check_identity(self) -> None:
    """Refuses a workdir that holds another run."""
    path = self.workdir / "run.json"
    if not path.exists():
      return
    differing = difference(
      json.loads(path.read_text()), self.run.identity()
    )
    if differing:
      name, old, new = differing
      raise TrainingError(
        f"workdir {self.workdir} holds a run with {name}={old!r}, this one "
        f"has {new!r}; give another --workdir, or the old value to resume"
      )

  def save(self, state, step: int) -> None:
    """Starts saving a checkpoint of `state` after `step` steps."""
    sequences = self.run.schedule.position(step).sequence
    metadata = {
      "step": step,
      "sequences": sequences,
      "tokens": sequences * self.run.schedule.sequence_length,
      "wall_seconds": self.wall_seconds(),
      "run": self.run.identity(),
    }
    self.checkpoints.save(step, self._arrays(state), metadata)

  def wall_seconds(self) -> float:
    """Seconds that this run has taken, earlier processes included."""
    return self.wall_before + time.monotonic() - self.started

  # One step.

  def scalars(self, phase: schedules.Phase) -> dict:
    """The numbers of a phase, as the compiled step takes them."""
    return {
      "learning_rate": np.float32(phase.learning_rate),
      "bias_update_speed": np.float32(phase.bias_update_speed),
      "balance_weight": np.float32(phase.balance_weight),
      "mtp_weight": np.float32(phase.mtp_weight),
      "micro_batches": np.int32(phase.batch_size // self.run.micro_batch),
    }

  def batches(self, first_step: int) -> batches_lib.Batches:
    """Batches from `first_step` to the end of the run."""
    return batches_lib.Batches(
      self.source,
      self.run.schedule.plan(first_step),
      self.mesh,
      micro_batch=self.run.micro_batch,
      micro_batches=self.run.micro_batches,
    )

  def evaluator(self, records: int) -> text.Evaluator:
    """A scorer of the first `records` validation sequences."""
    return text.Evaluator(
      self.model,
      self.held_out,
      self.mesh,
      batch_size=self.run.micro_batch,
      records=records,
    )

  def sample(self, state) -> str:
    """A text that the model continues from the run's prompt."""
    vocabulary = vocab_lib.load(self.run.data.vocabulary)
    prompt = [vocabulary.special["bos"]]
    prompt += vocabulary.encode(self.run.sample_prompt)
    tokens = generate.generate(
      self.model,
      {"params": state.params, "router_bias": state.router_bias},
      prompt,
      n_tokens=self.run.sample_tokens,
      window=self.run.data.sequence_length,
      temperature=self.run.sample_temperature,
      key=jax.random.fold_in(self.key, self.total_steps),
    )
    return self.run.sample_prompt + vocabulary.decode(tokens)

  def mfu(self, tokens_per_second: float) -> float:
    """Share of the devices' peak that `tokens_per_second` amounts to."""
    peak = cost.peak_flops(self.run.dtypes.compute) * len(self.mesh.devices.flat)
    return tokens_per_second * self._flops / peak


def difference(old, new, name: str = "run"):
  """The first (name, old, new) in which two JSON values differ, or None."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted(old.keys() | new.keys()):
      found = difference(old.get(key), new.get(key), f"{name}.{key}")
      if found:
        return found
    return None
  return None if old == new else (name, old, new)


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
    The summary; also in `summary.json`, unless the run was stopped early.

  Raises:
    TrainingError: the workdir holds another run, the vocabulary does not fit,
      or too many updates in a row were not finite.
  """
  workdir = pathlib.Path(workdir)
  trainer = Trainer(run, workdir)
  with sharding_lib.use(trainer.mesh, run.sharding):
    state, note = trainer.begin()
    first = int(state.step)
    if jax.process_index() == 0:
      (workdir / "run.json").write_text(json.dumps(run.identity(), indent=1))
    with (
      preemption_lib.Preemption() as preemption,
      _Show(trainer, first, note) as show,
    ):
      state, last = _steps(trainer, state, first, preemption, show)
      show.say(f"saving step {last:,}")
      if last not in trainer.checkpoints.steps():
        trainer.save(state, last)
      trainer.checkpoints.wait()
      summary = _summary(trainer, state, last, show, resume_command)
  trainer.checkpoints.close()
  return summary


def _steps(trainer: Trainer, state, first: int, preemption, show: "_Show"):
  """Takes steps from `first` on; returns the state and the steps taken."""
  run, step = trainer.run, first
  take = step_lib.compiled(trainer.model, trainer.optimizer, trainer.placement)
  evaluator = trainer.evaluator(run.evaluation_records)
  batches = trainer.batches(first)
  try:
    for position, batch in batches:
      phase = run.schedule.phase(position.step)
      state, metrics = take(state, batch, trainer.scalars(phase))
      step = position.step + 1
      if trainer.ema is not None and step % run.ema_every == 0:
        trainer.ema.update(state.params)
      # The metrics of the step before: reading them now does not hold up the
      # step that has just been dispatched.
      show.took(position, phase, metrics, batches.wait_seconds)
      stopping = preemption.requested(step)
      last = stopping or step == trainer.total_steps
      if run.evaluate_every and step % run.evaluate_every == 0 and not last:
        show.flush()
        show.validated(step, evaluator.score(state.params, state.router_bias))
      if run.checkpoint_every and step % run.checkpoint_every == 0:
        with show.pause():
          trainer.save(state, step)
      if stopping:
        show.flush()
        show.say(f"stopping after step {step:,}: {preemption.signal.name}")
        break
    show.flush()
  finally:
    batches.close()
  return state, step
