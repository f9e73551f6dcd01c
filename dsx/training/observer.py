"""What a person sees of a run: metrics, progress line, samples, summary.

The observer reads a step's metrics only after the next step has been
dispatched, so that looking never holds up training. It also counts updates
that were refused, and ends a run that only produces those.
"""

import contextlib
import math
import sys
import time

import jax
import numpy as np

from dsx.training import metrics as metrics_lib
from dsx.training import progress as progress_lib
from dsx.training import schedules


class TrainingError(ValueError):
  """A run that cannot go on; the message says why and what to do."""


class Observer:
  """A context manager around the steps of one process.

  Attributes:
    train_loss: mean loss over the latest interval, in nats per token.
    validation: the latest validation score, or None.
    max_violation: largest MaxVio over layers at the latest step.
    seconds: time spent training by this process, without its first step
      (compilation), validation and pauses.
  """

  def __init__(
    self,
    workdir,
    *,
    schedule: schedules.Schedule,
    first_step: int,
    skipped: int,
    skipped_in_a_row: int,
    bytes_per_token: float,
    mfu,
    layers: list[str],
    log_every: int,
    max_skipped_in_a_row: int,
  ):
    """Opens the metrics of a run.

    Args:
      workdir: of the run.
      schedule: of the run.
      first_step: steps that a restored checkpoint has taken.
      skipped: how many of them were refused.
      skipped_in_a_row: how many of the latest.
      bytes_per_token: of the training data, for bits per byte.
      mfu: from tokens per second to a share of the devices' peak.
      layers: names of the rows of `load`.
      log_every: steps between records.
      max_skipped_in_a_row: refused updates that end the run.
    """
    self._schedule, self._mfu, self._layers = schedule, mfu, layers
    self._bytes_per_token = bytes_per_token
    self._log_every, self._max_skipped = log_every, max_skipped_in_a_row
    self._total_steps = schedule.total_steps()
    self._main = jax.process_index() == 0
    self._writer = None
    if self._main:
      self._writer = metrics_lib.Writer(workdir, first_step or None)
    # Other processes are silent; what they would say is the same.
    self._progress = progress_lib.Progress(
      self._total_steps,
      sys.stdout if self._main else open("/dev/null", "w"),
      total_tokens=schedule.total_tokens,
    )
    self._pending = None
    self._skipped, self._skipped_in_a_row = skipped, skipped_in_a_row
    self._losses: list[dict] = []
    self._mark = time.monotonic()
    self._mark_wait = self._paused = 0.0
    self._measured_tokens = self._all_tokens = 0
    self._first_step = first_step
    self.train_loss = math.nan
    self.validation = None
    self.max_violation = math.nan
    self.seconds = 0.0

  def tokens_per_second(self) -> float:
    """Over all steps of this process but the first, pauses excluded."""
    return self._all_tokens / self.seconds if self.seconds else math.nan

  def __enter__(self) -> "Observer":
    self._progress.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._progress.close()
    if self._writer is not None:
      self._writer.close()

  def say(self, words: str) -> None:
    """Prints a line of its own."""
    self._progress.say(words)

  def doing(self, words: str) -> None:
    """Says what takes time now."""
    self._progress.doing(words)

  @contextlib.contextmanager
  def pause(self):
    """Time spent inside is not training time."""
    start = time.monotonic()
    yield
    self._paused += time.monotonic() - start

  def took(self, position, phase, metrics, wait_seconds: float) -> None:
    """Notes a dispatched step and reads the one before.

    Args:
      position: the step's `schedules.Position`.
      phase: the step's `schedules.Phase`.
      metrics: device arrays of `step.train_step`.
      wait_seconds: how long training has waited for data so far.
    """
    self.flush()
    self._pending = (position, phase, metrics, wait_seconds)

  def flush(self) -> None:
    """Reads the metrics of the latest dispatched step."""
    if self._pending is None:
      return
    position, phase, metrics, wait = self._pending
    self._pending = None
    # Every process can read these: they are replicated.
    metrics = jax.tree.map(np.asarray, metrics)
    step = position.step + 1
    self._count_refused(bool(metrics["finite"]), step)
    if metrics["finite"]:
      self._losses.append(metrics)
    now_tokens = position.batch_size * self._schedule.sequence_length
    if position.step == self._first_step:
      self._restart_clock(wait)  # the first step includes compilation
    else:
      self._measured_tokens += now_tokens
    last = step == self._total_steps
    if step % self._log_every == 0 or last or step <= 2:
      self._record(position, phase, metrics, wait)

  def _restart_clock(self, wait: float) -> None:
    self._mark, self._mark_wait, self._paused = time.monotonic(), wait, 0.0
    self._measured_tokens = 0

  def _count_refused(self, finite: bool, step: int) -> None:
    if finite:
      self._skipped_in_a_row = 0
      return
    self._skipped += 1
    self._skipped_in_a_row += 1
    if self._skipped_in_a_row >= self._max_skipped:
      raise TrainingError(
        f"{self._skipped_in_a_row} updates in a row up to step {step} were "
        "not finite and were refused; the parameters are those before them: "
        "lower schedule.learning_rate, or look at the data of these steps"
      )

  def _record(self, position, phase, metrics, wait: float) -> None:
    step = position.step + 1
    sequences = position.sequence + position.batch_size
    loads = metrics["load"]
    violation = metrics["max_violation"]
    elapsed = max(time.monotonic() - self._mark - self._paused, 1e-9)
    measured = self._measured_tokens > 0
    speed = self._measured_tokens / elapsed if measured else math.nan
    waited = (wait - self._mark_wait) / elapsed if measured else math.nan

    def mean(name):
      if not self._losses:
        return metrics[name]
      return np.mean([m[name] for m in self._losses], axis=0)

    self.train_loss = float(mean("loss"))
    self.max_violation = float(violation.max()) if violation.size else 0.0
    record = {
      "kind": "train",
      "step": step,
      "tokens": sequences * self._schedule.sequence_length,
      "loss": self.train_loss,
      "mtp_loss": mean("mtp_loss"),
      "balance_loss": mean("balance_loss"),
      "learning_rate": phase.learning_rate,
      "batch_size": position.batch_size,
      "grad_norm": metrics["grad_norm"],
      "max_violation": self.max_violation,
      "max_violation_by_layer": violation,
      "bits_per_byte": self.train_loss / math.log(2) / self._bytes_per_token,
      "tokens_per_second": speed,
      "mfu": self._mfu(speed),
      "data_wait": waited,
      "mtp_weight": phase.mtp_weight,
      "bias_update_speed": phase.bias_update_speed,
      "skipped": self._skipped,
      "dropped": mean("dropped") / np.maximum(loads.sum(), 1.0),
    }
    share = loads / np.maximum(loads.mean(-1, keepdims=True), 1e-9)
    self._write(record)
    if loads.size:
      self._write(
        {"kind": "load", "step": step, "layers": self._layers, "load": share}
      )
    self._progress.update(record)
    self.seconds += elapsed if measured else 0.0
    self._all_tokens += self._measured_tokens
    self._losses = []
    self._restart_clock(wait)

  def validated(self, position: schedules.Position, score, **more) -> None:
    """Records a `evals.text.TextScore` at a position.

    Args:
      position: steps and sequences so far.
      score: the result.
      **more: further numbers of the record.
    """
    self.validation = score
    record = {
      "kind": "validation",
      "step": position.step,
      "tokens": position.sequence * self._schedule.sequence_length,
      "loss": score.loss,
      "mtp_loss": score.mtp_loss,
      "bits_per_byte": score.bits_per_byte,
      **more,
    }
    self._write(record)
    self._progress.update(record)

  def note(self, record, words: str | None = None) -> None:
    """Writes a record of another kind, and says a line about it if given."""
    self._write(record)
    if words:
      self.say(words)

  def _write(self, record) -> None:
    if self._writer is not None:
      self._writer.write(record)
