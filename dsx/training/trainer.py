"""One run in one process: its model, state, data and files, put together.

`loop.py` takes the steps; this is what it takes them with.
"""

import dataclasses
import pathlib
import time

import jax
import numpy as np

from dsx import cost
from dsx.data import pipeline
from dsx.data import vocab as vocab_lib
from dsx.evals import text
from dsx.inference import completion
from dsx.inference import sampling
from dsx.models import language_model
from dsx.parallel import sharding as sharding_lib
from dsx.training import batches as batches_lib
from dsx.training import checkpoint as checkpoint_lib
from dsx.training import ema as ema_lib
from dsx.training import fp8_health
from dsx.training import host_memory
from dsx.training import observer
from dsx.training import pretraining
from dsx.training import schedules
from dsx.training import start as start_lib
from dsx.training import starting
from dsx.training import state as state_lib
from dsx.training import workdir as workdir_lib


class Trainer:
  """One run in one process: the pieces, and what it has done so far."""

  def __init__(self, run: pretraining.Pretraining, workdir: pathlib.Path):
    """Builds the model, its state, the data and the files of `workdir`.

    Args:
      run: what to train.
      workdir: where checkpoints, metrics and the report go.
    """
    self.workdir, self._identity = workdir, run.identity()
    if jax.default_backend() == "cpu":
      host_memory.keep_freed()
    self.mesh = run.devices()
    self.source = pipeline.open_split(run.data, "train", shuffle=True)
    # Over epochs of the data, now that their size is known.
    self.schedule = run.schedule_over(len(self.source))
    self.run = run = dataclasses.replace(run, schedule=self.schedule)
    self.held_out = pipeline.open_split(run.data, "validation", shuffle=False)
    self._check_vocabulary()
    self.model = language_model.build(run.config, run.dtypes, run.execution)
    self.optimizer = run.optimizer.transformation()
    boxed = state_lib.abstract(self.model, self.optimizer)
    self.placement = state_lib.shardings(boxed, run.sharding, self.mesh)
    self.target = state_lib.restorable(boxed, self.placement)
    self.checkpoints = checkpoint_lib.Checkpointer(
      workdir / workdir_lib.CHECKPOINTS, max_to_keep=run.keep_checkpoints
    )
    self.total_steps = run.schedule.total_steps()
    # Made in place: a copy could not leave this process.
    self.key = jax.jit(
      lambda: jax.random.key(run.seed),
      out_shardings=sharding_lib.replicated(self.mesh),
    )()
    self.ema: ema_lib.Ema | None = None
    self.start: dict | None = None  # which weights the run began with
    self.saved: int | None = None  # the newest good checkpoint's step
    self.wall_before = 0.0
    self.started = time.monotonic()
    self._peak = peak_flops(self.mesh, run.dtypes.compute)
    # Router biases and MTP modules count as well.
    self.parameters = cost.parameters(run.config)
    self.parameters += cost.mtp_parameters(run.config)
    self._flops = cost.flops_per_token(
      run.config, run.data.sequence_length, mtp=True
    )

  def _check_vocabulary(self) -> None:
    size = self.source.metadata["vocab_size"]
    if size > self.run.config.vocab_size:
      raise observer.TrainingError(
        f"config.vocab_size={self.run.config.vocab_size}: expected at least "
        f"{size}, the size of vocabulary {self.run.data.vocabulary!r}; raise "
        "config.DeepSeekConfig.vocab_size"
      )

  def _check_data(self, digest: str) -> None:
    """Refuses to go on with other text: the globs may match it by now."""
    found = self.source.metadata["digest"]
    if found != digest:
      raise observer.TrainingError(
        f"workdir {self.workdir} was trained on data with digest "
        f"{digest[:12]}, the same gin files name {found[:12]} now: bring the "
        "old files back, or give another --workdir"
      )

  # What a checkpoint holds.

  def _arrays(self, state) -> dict:
    arrays = {"state": state, "key": self.key}
    if self.ema is not None:
      arrays["ema"] = self.ema.arrays()
    return arrays

  def _target(self) -> dict:
    target = {"state": self.target, "key": self.key}
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
      restored = self.checkpoints.restore(self._target())
      self._check_data(restored.metadata["data"])
      self.start = restored.metadata.get("start")
      if self.run.init is not None and self.start is not None:
        starting.check_same(self.run.init, self.start)
      state = restored.arrays["state"]
      self.key = restored.arrays["key"]
      self.wall_before = restored.metadata["wall_seconds"]
      self.saved = restored.step
      note = "; ".join([f"resumed at step {restored.step:,}", *restored.notes])
    elif self.run.init is not None:
      started = self._started(self.run.init)
      self.start, note = started.record, started.note
      state = state_lib.started(
        self.model, self.optimizer, self.placement, started.variables
      )
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

  def _started(self, start: start_lib.Start) -> starting.Started:
    """The weights to start from."""
    run = self.run
    starting.check(start, run.config, run.data.vocabulary)
    return starting.load(
      start, run.config, run.dtypes, mesh=self.mesh, sharding=run.sharding
    )

  def save(self, state, step: int) -> None:
    """Starts saving a checkpoint of `state` after `step` steps."""
    sequences = self.schedule.position(step).sequence
    metadata = {
      "step": step,
      "sequences": sequences,
      "tokens": sequences * self.schedule.sequence_length,
      "wall_seconds": self.wall_seconds(),
      "run": self._identity,
      "start": self.start,
      "data": self.source.metadata["digest"],
    }
    self.checkpoints.save(step, self._arrays(state), metadata)
    self.saved = step

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
      self.schedule.plan(first_step),
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

  def fp8_health(self) -> fp8_health.Health:
    """What measures the run's FP8 layers."""
    return fp8_health.Health(
      self.model,
      self.mesh,
      every=self.run.fp8_health_every,
      total_steps=self.total_steps,
    )

  def sample(self, state) -> str:
    """A text that the model continues from the run's prompt."""
    said = completion.complete(
      self.model,
      {"params": state.params, "router_bias": state.router_bias},
      vocab_lib.load(self.run.data.vocabulary),
      self.run.sample_prompt,
      sampling.Sampling(
        max_new_tokens=self.run.sample_tokens,
        temperature=self.run.sample_temperature,
        seed=self.run.seed,
      ),
      window=self.run.data.sequence_length,
    )
    return self.run.sample_prompt + said.text

  def observer(self, state) -> observer.Observer:
    """What a person sees of the steps that follow `state`."""
    run, metadata = self.run, self.source.metadata
    config = run.config
    return observer.Observer(
      self.workdir,
      schedule=self.schedule,
      first_step=int(state.step),
      skipped=int(state.skipped),
      skipped_in_a_row=int(state.skipped_in_a_row),
      bytes_per_token=metadata["bytes"] / metadata["tokens"],
      mfu=self.mfu,
      layers=config.expert_layers,
      log_every=run.log_every,
      max_skipped_in_a_row=run.max_skipped_in_a_row,
    )

  def describe(self, note: str) -> str:
    """The run in a few lines, before its first step."""
    config, length = self.run.config, self.run.data.sequence_length
    devices = self.mesh.devices.flat
    steps, tokens = self.total_steps, self.schedule.total_tokens
    return (
      f"model: {self.parameters:,} parameters, "
      f"{cost.active_parameters(config):,} active, "
      f"{self._flops / 1e6:,.1f} MFLOPs per token\n"
      f"data: {len(self.source):,} sequences of {length} tokens "
      f"({self.run.data.task})\n"
      f"run: {steps:,} steps, {tokens:,} tokens, on {len(devices)} "
      f"{devices[0].device_kind} device(s), {note}"
    )

  def mfu(self, tokens_per_second: float) -> float:
    """Share of the devices' peak that `tokens_per_second` amounts to."""
    return tokens_per_second * self._flops / self._peak


def peak_flops(mesh: jax.sharding.Mesh, dtype: str) -> float:
  """FLOP/s of all devices together: as published, or measured where not.

  The CPU devices of one process share one machine, so its measured rate is
  counted once a process.
  """
  device = mesh.devices.flat[0]
  published = cost.device_peak_flops(device.device_kind, dtype)
  if published is not None:
    return published * mesh.size
  measured = cost.measure_peak_flops()
  if device.platform == "cpu":
    return measured * jax.process_count()
  return measured * mesh.size
