"""The training schedule of DeepSeek-V3 as functions of tokens consumed.

Report section 4.2 for pretraining, section 4.3 for the two phases of context
extension (`constant`). Everything here is plain arithmetic on the host: the
training step receives the numbers of a `Phase` as scalars, so that a schedule
may change without compiling anything anew, and a resumed run finds its place
from the step number alone.

Why tokens and not steps: the batch grows fivefold in the first 469B tokens,
and every boundary but the warm-up is published in tokens. The boundaries are
fields, given at the report's scale of 14.8T tokens; `total_tokens` is the one
number that shrinks them all in proportion.
"""

import bisect
from collections.abc import Iterator
import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

_BILLION = 10**9
_TRILLION = 10**12


class Phase(NamedTuple):
  """What one optimizer step is taken with.

  Attributes:
    learning_rate: factor of the optimizer's direction.
    batch_size: sequences in the global batch.
    bias_update_speed: gamma, step of the router biases (section 2.1.2).
    balance_weight: alpha, weight of the sequence-wise balance loss (eq. 17).
    mtp_weight: lambda, weight of the mean MTP loss (eq. 25).
  """

  learning_rate: float
  batch_size: int
  bias_update_speed: float
  balance_weight: float
  mtp_weight: float


class Position(NamedTuple):
  """Where a step stands in the data.

  Attributes:
    step: optimizer steps taken before it.
    sequence: sequences consumed before it; the step reads
      `sequence ... sequence + batch_size - 1`.
    batch_size: sequences it consumes.
  """

  step: int
  sequence: int
  batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """Section 4.2 in numbers; without arguments, the run of the report.

  A small run sets `total_tokens`, `sequence_length`, the batch sizes and the
  learning rates. Boundaries in tokens keep the report's scale and are
  multiplied by `total_tokens / full_tokens`, rounded down.

  Attributes:
    total_tokens: length of this run, in tokens. The last step may pass it by
      less than one batch.
    sequence_length: tokens of one sequence (predictions, without the one
      extra token that targets need).
    learning_rate: rate after the warm-up.
    decayed_learning_rate: rate at the end of the cosine.
    final_learning_rate: rate of the last stretch.
    warmup_steps: steps of linear warm-up. None: 2000 (the report's 2K), but
      never more than a twentieth of the run.
    batch_size_start: sequences of the first batch.
    batch_size: sequences of a batch after the ramp.
    batch_multiple: batch sizes on the ramp are the straight line from
      `batch_size_start` to `batch_size`, rounded down to a multiple of this.
      None: the largest divisor of both that divides 128, the report's number
      of data-parallel ranks (2048 GPUs in 16 pipeline stages).
    bias_update_speed: gamma until `bias_update_tokens`, 0 after.
    balance_weight: alpha throughout.
    mtp_weight: lambda until `mtp_tokens`.
    final_mtp_weight: lambda after it.
    full_tokens: the scale in which the boundaries below are given.
    decay_start_tokens: where the constant rate ends and the cosine begins.
    decay_end_tokens: where the cosine ends.
    final_tokens: where `final_learning_rate` begins.
    batch_ramp_tokens: where the batch has grown to `batch_size`.
    bias_update_tokens: where the router biases freeze.
    mtp_tokens: where lambda drops.
  """

  total_tokens: int = 14_800 * _BILLION
  sequence_length: int = 4096
  learning_rate: float = 2.2e-4
  decayed_learning_rate: float = 2.2e-5
  final_learning_rate: float = 7.3e-6
  warmup_steps: int | None = None
  batch_size_start: int = 3072
  batch_size: int = 15360
  batch_multiple: int | None = None
  bias_update_speed: float = 0.001
  balance_weight: float = 0.0001
  mtp_weight: float = 0.3
  final_mtp_weight: float = 0.1
  full_tokens: int = 14_800 * _BILLION
  decay_start_tokens: int = 10 * _TRILLION
  decay_end_tokens: int = 14_300 * _BILLION
  final_tokens: int = 14_633 * _BILLION
  batch_ramp_tokens: int = 469 * _BILLION
  bias_update_tokens: int = 14_300 * _BILLION
  mtp_tokens: int = 10 * _TRILLION

  def __post_init__(self):
    _check_numbers(self)
    _check_batches(self)
    _check_order(self)

  def scaled(self, tokens: int) -> int:
    """A boundary of the report, in tokens of this run (exact, rounded down)."""
    return tokens * self.total_tokens // self.full_tokens

  def at(self, *, step: int, tokens: int) -> Phase:
    """The hyper-parameters of a step.

    Args:
      step: optimizer steps taken so far (only the warm-up depends on it).
      tokens: tokens consumed so far.

    Returns:
      The `Phase` of the step that follows. The first step is taken with
      `learning_rate / warmup`, because a rate of 0 would waste its batch; the
      rate at the boundary between two stretches belongs to the later one.
    """
    if step < 0 or tokens < 0:
      raise ValueError(
        f"step={step}, tokens={tokens}: expected neither to be negative; "
        "pass what has been consumed so far"
      )
    learning = tokens < self.scaled(self.bias_update_tokens)
    early = tokens < self.scaled(self.mtp_tokens)
    return Phase(
      learning_rate=self._warmup(step) * self._learning_rate(tokens),
      batch_size=self._batch_size(tokens),
      bias_update_speed=self.bias_update_speed if learning else 0.0,
      balance_weight=self.balance_weight,
      mtp_weight=self.mtp_weight if early else self.final_mtp_weight,
    )

  def phase(self, step: int) -> Phase:
    """`at` for a step of this schedule's own plan."""
    sequence = self.position(step).sequence
    return self.at(step=step, tokens=sequence * self.sequence_length)

  def position(self, step: int) -> Position:
    """Where any step stands in the data, without walking there.

    Steps past the end of the run continue with the last batch size.
    """
    if step < 0:
      raise ValueError(f"step={step}: expected 0 or more; count from 0")
    index = bisect.bisect_right(self._plateaus, step, key=lambda p: p.step) - 1
    first = self._plateaus[index]
    sequence = first.sequence + (step - first.step) * first.batch_size
    return Position(step, sequence, first.batch_size)

  def plan(self, start: int = 0) -> Iterator[Position]:
    """Yields the position of every step from `start` to the end of the run."""
    for step in range(start, self.total_steps()):
      yield self.position(step)

  def total_steps(self) -> int:
    """Steps until `total_tokens` are consumed."""
    first = self._plateaus[-1]
    left = self.total_tokens - first.sequence * self.sequence_length
    return first.step + _ceil_div(left, first.batch_size * self.sequence_length)

  @functools.cached_property
  def resolved_warmup_steps(self) -> int:
    """`warmup_steps`, or the rule that stands in for it."""
    if self.warmup_steps is not None:
      return self.warmup_steps
    return max(1, min(2000, self.total_steps() // 20))

  @functools.cached_property
  def resolved_batch_multiple(self) -> int:
    """`batch_multiple`, or the rule that stands in for it."""
    if self.batch_multiple is not None:
      return self.batch_multiple
    return math.gcd(self.batch_size_start, self.batch_size, 128)

  def _warmup(self, step: int) -> float:
    steps = self.resolved_warmup_steps
    return 1.0 if step + 1 >= steps else (step + 1) / steps

  def _learning_rate(self, tokens: int) -> float:
    start = self.scaled(self.decay_start_tokens)
    end = self.scaled(self.decay_end_tokens)
    if tokens >= self.scaled(self.final_tokens):
      return self.final_learning_rate
    if tokens >= end:
      return self.decayed_learning_rate
    if tokens <= start:
      return self.learning_rate
    cosine = math.cos(math.pi * (tokens - start) / (end - start))
    span = self.learning_rate - self.decayed_learning_rate
    return self.decayed_learning_rate + span * (1 + cosine) / 2

  def _batch_size(self, tokens: int) -> int:
    ramp = self.scaled(self.batch_ramp_tokens)
    if tokens >= ramp:
      return self.batch_size
    multiple = self.resolved_batch_multiple
    grown = (self.batch_size - self.batch_size_start) * tokens
    return self.batch_size_start + grown // (ramp * multiple) * multiple

  @functools.cached_property
  def _plateaus(self) -> tuple[Position, ...]:
    """The first step of every batch size: at most one entry a multiple."""
    ramp = self.scaled(self.batch_ramp_tokens)
    span = self.batch_size - self.batch_size_start
    plateaus = [Position(0, 0, self._batch_size(0))]
    while plateaus[-1].batch_size < self.batch_size:
      last = plateaus[-1]
      # The batch grows at the first token count where `_batch_size` does.
      grown = last.batch_size + self.resolved_batch_multiple
      growth = _ceil_div((grown - self.batch_size_start) * ramp, span)
      left = growth - last.sequence * self.sequence_length
      steps = _ceil_div(left, last.batch_size * self.sequence_length)
      sequence = last.sequence + steps * last.batch_size
      tokens = sequence * self.sequence_length
      if tokens >= self.total_tokens:
        break
      plateaus.append(
        Position(last.step + steps, sequence, self._batch_size(tokens))
      )
    return tuple(plateaus)


def constant(
  *,
  steps: int,
  learning_rate: float,
  batch_size: int,
  sequence_length: int,
  warmup_steps: int = 0,
  bias_update_speed: float = 0.0,
  balance_weight: float = 0.0001,
  mtp_weight: float = 0.1,
) -> Schedule:
  """A schedule that changes nothing, such as a phase of context extension.

  The report extends the context after pretraining in two such phases (section
  4.3): `steps=1000, learning_rate=7.3e-6` with `sequence_length=32768,
  batch_size=1920`, and then `sequence_length=131072, batch_size=480`.

  NOTE(paper): section 4.3 says nothing of gamma, alpha and lambda; the
  defaults keep what the last stretch of pretraining used (section 4.2).

  Args:
    steps: optimizer steps.
    learning_rate: rate of every step after the warm-up.
    batch_size: sequences of every batch.
    sequence_length: tokens of one sequence.
    warmup_steps: steps of linear warm-up, by default none.
    bias_update_speed: gamma.
    balance_weight: alpha.
    mtp_weight: lambda.

  Returns:
    The schedule of exactly `steps` steps.
  """
  counts = {
    "steps": steps,
    "batch_size": batch_size,
    "sequence_length": sequence_length,
  }
  for field, value in counts.items():
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise ValueError(f"{field}={value!r}: expected a positive int; change it")
  return Schedule(
    total_tokens=steps * batch_size * sequence_length,
    sequence_length=sequence_length,
    learning_rate=learning_rate,
    decayed_learning_rate=learning_rate,
    final_learning_rate=learning_rate,
    warmup_steps=warmup_steps,
    batch_size_start=batch_size,
    batch_size=batch_size,
    bias_update_speed=bias_update_speed,
    balance_weight=balance_weight,
    mtp_weight=mtp_weight,
    final_mtp_weight=mtp_weight,
    # Without this, gamma would still drop to 0 for the last 3% of the phase.
    bias_update_tokens=14_800 * _BILLION,
  )


def _ceil_div(numerator: int, denominator: int) -> int:
  return -(-numerator // denominator)


def _check_numbers(schedule: Schedule) -> None:
  """Refuses wrong types, because gin would let `total_tokens = 1e9` pass."""
  optional = ("warmup_steps", "batch_multiple")
  positive = (
    "total_tokens sequence_length batch_size_start batch_size full_tokens "
    "batch_multiple"
  ).split()
  for field in dataclasses.fields(schedule):
    value = getattr(schedule, field.name)
    if value is None and field.name in optional:
      continue
    whole = field.type in (int, int | None)
    allowed = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
      raise ValueError(
        f"{field.name}={value!r}: expected "
        f"{'an int' if whole else 'a number'}; write it as "
        f"{'digits, for example 1_000_000' if whole else 'a float'}"
      )
    least = 1 if field.name in positive else 0
    if not value >= least or not math.isfinite(value):
      raise ValueError(
        f"{field.name}={value!r}: expected a finite number of at least "
        f"{least}; raise it"
      )


def _check_batches(schedule: Schedule) -> None:
  if schedule.batch_size < schedule.batch_size_start:
    raise ValueError(
      f"batch_size={schedule.batch_size}: expected at least "
      f"batch_size_start={schedule.batch_size_start}; raise it, or lower "
      "batch_size_start, because the batch only grows"
    )
  multiple = schedule.resolved_batch_multiple
  for field in ("batch_size_start", "batch_size"):
    if getattr(schedule, field) % multiple:
      raise ValueError(
        f"{field}={getattr(schedule, field)}: expected a multiple of "
        f"batch_multiple={multiple}; change either"
      )


def _check_order(schedule: Schedule) -> None:
  """Boundaries follow each other, and rates do not rise along them."""
  boundaries = "decay_start_tokens decay_end_tokens final_tokens full_tokens"
  rates = "final_learning_rate decayed_learning_rate learning_rate"
  for low, high in (
    *itertools.pairwise(boundaries.split()),
    *itertools.pairwise(rates.split()),
  ):
    if getattr(schedule, low) > getattr(schedule, high):
      raise ValueError(
        f"{low}={getattr(schedule, low)}: expected at most "
        f"{high}={getattr(schedule, high)}; lower it or raise {high}"
      )
  for field in ("batch_ramp_tokens", "bias_update_tokens", "mtp_tokens"):
    if getattr(schedule, field) > schedule.full_tokens:
      raise ValueError(
        f"{field}={getattr(schedule, field)}: expected at most "
        f"full_tokens={schedule.full_tokens}; boundaries are given at the "
        "report's scale, total_tokens shrinks them"
      )
