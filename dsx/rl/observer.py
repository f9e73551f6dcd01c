"""What a person sees of reinforcement learning: records, a line, alarms.

The line says what to look at first: rewards, accuracy, entropy, length, and how
long a step takes and what it takes it for.
"""

from collections.abc import Mapping
import logging
import sys
from typing import Any

from dsx.evals import reasoning
from dsx.rl import alarms as alarms_lib
from dsx.rl import measures
from dsx.training import metrics as metrics_lib
from dsx.training import observer
from dsx.training import progress as progress_lib

_WORDS = (
  ("reward", "reward", "reward {:.3f}"),
  ("pass_1", "pass_1", "right {:.3f}"),
  ("entropy", "entropy", "entropy {:.3f}"),
  ("length", "length", "length {:.4g}"),
  # The names by which a narrow line lets go of them.
  ("grad", "grad_norm", "grad {:.2f}"),
  ("bits/byte", "zero_std", "equal {:.0%}"),
  ("data", "kl", "kl {:.3g}"),
  ("MFU", "truncated", "truncated {:.0%}"),
  ("seconds", "seconds", "{:.2f} s"),
)


class _Line(progress_lib.Progress):
  """The progress line, with the words of this kind of training."""

  def step(self, record: Mapping[str, Any]) -> None:
    """Shows a step's record."""
    now = self._clock()
    eta = self._time_left(record, now)
    self._step = int(record["step"])
    self._words = {
      name: form.format(record[field])
      for name, field, form in _WORDS
      if record.get(field) is not None
    }
    if eta is not None:
      self._words["ETA"] = f"ETA {progress_lib.duration(eta)}"
    if self._live is None:
      words = [self._position(record), *self._words.values()]
      self._unprinted = "  ".join(words)
      if self._is_due(now):
        self._last_line = now
        self.say(self._unprinted)
        self._unprinted = ""


class Observer:
  """A context manager around the steps of one process."""

  def __init__(
    self,
    workdir,
    *,
    total_steps: int,
    first_step: int,
    log_every: int,
    max_skipped_in_a_row: int,
    skipped_in_a_row: int = 0,
  ):
    """Opens the records of a run.

    Args:
      workdir: of the run.
      total_steps: of the run.
      first_step: steps that a restored checkpoint has taken.
      log_every: steps between records.
      max_skipped_in_a_row: refused updates that end the run.
      skipped_in_a_row: how many of the latest were refused.
    """
    self._total, self._log_every = total_steps, log_every
    self._most = max_skipped_in_a_row
    self._skipped = skipped_in_a_row
    self._writer = metrics_lib.Writer(workdir, first_step or None)
    self._line = _Line(total_steps, sys.stdout)
    self.last: dict[str, Any] = {}

  def __enter__(self) -> "Observer":
    self._line.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._line.close()
    self._writer.close()

  def say(self, words: str) -> None:
    """Prints a line of its own."""
    self._line.say(words)

  def doing(self, words: str) -> None:
    """Says what takes time now."""
    self._line.doing(words)

  def took(self, record: dict[str, Any]) -> None:
    """Notes a step.

    Args:
      record: of `Learner.take`, with `step`.

    Raises:
      TrainingError: too many updates in a row were refused.
    """
    step = record["step"]
    self.last = record
    if step % self._log_every == 0 or step in (1, self._total):
      self._writer.write({"kind": measures.STEP, **record})
    self._line.step(record)
    self._skipped = 0 if record["finite"] else self._skipped + 1
    if self._skipped >= self._most:
      raise observer.TrainingError(
        f"{self._skipped} updates in a row up to step {step} were refused; the"
        " parameters are those before them: lower learning_rate, or look at"
        " the mismatch of sampler and trainer"
      )

  def examined(
    self, step: int, total: int, score: reasoning.Score
  ) -> dict[str, Any]:
    """Notes an examination; returns its record."""
    record = {"kind": measures.EVALUATION, "step": step, **score.record()}
    self._writer.write(record)
    interval = score.accuracy
    words = [
      f"step {step:,}/{total:,}  held out: pass@1 {interval.mean:.3f}"
      f" [{interval.low:.3f}, {interval.high:.3f}]"
    ]
    words += [f"pass@{k} {s.mean:.3f}" for k, s in score.pass_at.items()]
    words += [f"cons@{k} {s.mean:.3f}" for k, s in score.consensus_at.items()]
    self.say("  ".join(words))
    return record

  def alarmed(self, alarm: alarms_lib.Alarm) -> None:
    """Notes an alarm, and warns of it."""
    record = {"kind": measures.ALARM, "step": alarm.step}
    self._writer.write({**record, "rule": alarm.rule, "words": alarm.words})
    logging.warning("ALARM %s, step %d: %s", *alarm)
