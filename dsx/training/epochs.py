"""A fine-tuning schedule: a cosine over a few passes through the data.

DeepSeek-R1 report, supplementary 4.3: 2 to 3 epochs, a rate that falls from
5e-5 to 5e-6 as a cosine, batches of 128 sequences of 32,768 tokens.

How many steps that is, the prepared data alone can say: `Epochs.over` makes
the `Schedule` that training follows.
"""

import dataclasses
import math

from dsx.training import schedules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epochs:
  """The report's fine-tuning in numbers.

  Attributes:
    count: passes through the data; a part of one, too.
    sequence_length: tokens of one sequence.
    learning_rate: where the cosine begins.
    final_learning_rate: where it ends.
    warmup_steps: steps of linear warm-up. NOTE(paper): none is mentioned.
    batch_size: sequences of a batch. NOTE(paper): whether the batch of 128
      counts samples or packed sequences is not said; here the latter.
    bias_update_speed: gamma. NOTE(paper): not said; the last stretch of
      pretraining has 0 (DeepSeek-V3 section 4.2), as this has.
    balance_weight: alpha, as in pretraining.
    mtp_weight: lambda, as at the end of pretraining.
  """

  count: float = 2
  sequence_length: int = 32768
  learning_rate: float = 5e-5
  final_learning_rate: float = 5e-6
  warmup_steps: int = 0
  batch_size: int = 128
  bias_update_speed: float = 0.0
  balance_weight: float = 0.0001
  mtp_weight: float = 0.1

  def __post_init__(self):
    count = self.count
    if isinstance(count, bool) or not isinstance(count, int | float):
      raise ValueError(f"count={count!r}: expected a number; write 2 or 1.5")
    if not 0 < count < math.inf:
      raise ValueError(
        f"count={count!r}: expected more than 0 epochs; raise it"
      )
    for field in ("learning_rate", "final_learning_rate"):
      if not isinstance(getattr(self, field), int | float):
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected a number; write 5e-5"
        )
    if self.final_learning_rate > self.learning_rate:
      raise ValueError(
        f"final_learning_rate={self.final_learning_rate}: expected at most "
        f"learning_rate={self.learning_rate}; lower it, or raise "
        "learning_rate"
      )
    self.over(1)  # refuses the other fields as `Schedule` does

  @property
  def batch_size_start(self) -> int:
    """Sequences of the first batch: they are all of one size."""
    return self.batch_size

  @property
  def resolved_batch_multiple(self) -> int:
    """There is no ramp."""
    return self.batch_size

  def over(self, sequences: int) -> schedules.Schedule:
    """The schedule over data of a size.

    The last batch goes on into one more epoch, so that it is whole.

    Args:
      sequences: that the data have.
    """
    total = math.ceil(self.count * sequences) * self.sequence_length
    return schedules.Schedule(
      total_tokens=total,
      sequence_length=self.sequence_length,
      learning_rate=self.learning_rate,
      decayed_learning_rate=self.final_learning_rate,
      final_learning_rate=self.final_learning_rate,
      warmup_steps=self.warmup_steps,
      batch_size_start=self.batch_size,
      batch_size=self.batch_size,
      bias_update_speed=self.bias_update_speed,
      balance_weight=self.balance_weight,
      mtp_weight=self.mtp_weight,
      final_mtp_weight=self.mtp_weight,
      # Boundaries in tokens of this very run: the cosine is all there is.
      full_tokens=total,
      decay_start_tokens=0,
      decay_end_tokens=total,
      final_tokens=total,
      batch_ramp_tokens=0,
      bias_update_tokens=total,
      mtp_tokens=total,
    )
