"""The schedule against the report's own numbers (sections 4.2 and 4.3)."""

import dataclasses
import math
import pickle

from absl.testing import absltest
from absl.testing import parameterized

from dsx.training import schedules

_B = 10**9
_T = 10**12


def _walk(schedule: schedules.Schedule) -> list[schedules.Position]:
  """The plan by its definition: take steps until the tokens are consumed."""
  positions = []
  sequence = 0
  while sequence * schedule.sequence_length < schedule.total_tokens:
    tokens = sequence * schedule.sequence_length
    batch_size = schedule.at(step=len(positions), tokens=tokens).batch_size
    positions.append(schedules.Position(len(positions), sequence, batch_size))
    sequence += batch_size
  return positions


class ReportTest(parameterized.TestCase):
  """Schedule() is the run of the report."""

  @parameterized.parameters(
    (0, 2.2e-4 / 2000),
    (999, 1.1e-4),
    (1998, 2.2e-4 * 1999 / 2000),
    (1999, 2.2e-4),
    (2000, 2.2e-4),
  )
  def test_warms_up_over_2000_steps(self, step, rate):
    phase = schedules.Schedule().at(step=step, tokens=0)
    self.assertAlmostEqual(phase.learning_rate, rate, delta=1e-18)

  @parameterized.parameters(
    (25_165_824_000, 2.2e-4),
    (10 * _T - 1, 2.2e-4),
    (10 * _T, 2.2e-4),
    # A quarter, the half and three quarters of the cosine's 4.3T tokens.
    (11_075 * _B, 2.2e-5 + 1.98e-4 * (1 + math.sqrt(0.5)) / 2),
    (12_150 * _B, 1.21e-4),
    (13_225 * _B, 2.2e-5 + 1.98e-4 * (1 - math.sqrt(0.5)) / 2),
    (14_300 * _B, 2.2e-5),
    (14_633 * _B - 1, 2.2e-5),
    (14_633 * _B, 7.3e-6),
    (14_800 * _B, 7.3e-6),
    (15_000 * _B, 7.3e-6),
  )
  def test_learning_rate(self, tokens, rate):
    phase = schedules.Schedule().at(step=2000, tokens=tokens)
    self.assertAlmostEqual(phase.learning_rate, rate, delta=1e-12 * rate)

  def test_cosine_leaves_the_constant_and_meets_the_next_one(self):
    schedule = schedules.Schedule()
    after = schedule.at(step=2000, tokens=10 * _T + _B).learning_rate
    before = schedule.at(step=2000, tokens=14_300 * _B - _B).learning_rate
    self.assertLess(after, 2.2e-4)
    self.assertAlmostEqual(after, 2.2e-4, delta=1e-10)
    self.assertGreater(before, 2.2e-5)
    self.assertAlmostEqual(before, 2.2e-5, delta=1e-10)

  @parameterized.parameters(
    (0, 3072),
    (469 * _B // 96 - 1, 3072),  # 96 multiples of 128 lie between the two
    (469 * _B // 96 + 1, 3072 + 128),
    (469 * _B // 2, 9216),
    (469 * _B - 1, 15360 - 128),
    (469 * _B, 15360),
    (14_800 * _B, 15360),
  )
  def test_batch_size(self, tokens, batch_size):
    phase = schedules.Schedule().at(step=0, tokens=tokens)
    self.assertEqual(phase.batch_size, batch_size)

  @parameterized.parameters(
    (0, 0.001, 0.3),
    (10 * _T - 1, 0.001, 0.3),
    (10 * _T, 0.001, 0.1),
    (14_300 * _B - 1, 0.001, 0.1),
    (14_300 * _B, 0.0, 0.1),
    (14_800 * _B, 0.0, 0.1),
  )
  def test_gamma_and_lambda(self, tokens, gamma, mtp_weight):
    phase = schedules.Schedule().at(step=5000, tokens=tokens)
    self.assertEqual(phase.bias_update_speed, gamma)
    self.assertEqual(phase.mtp_weight, mtp_weight)
    self.assertEqual(phase.balance_weight, 0.0001)

  def test_plan_agrees_with_walking_through_all_the_steps(self):
    schedule = schedules.Schedule()
    walked = _walk(schedule)
    self.assertEqual(schedule.total_steps(), 242_940)
    self.assertLen(walked, 242_940)
    self.assertEqual([schedule.position(p.step) for p in walked], walked)

  def test_phase_of_a_step_uses_the_tokens_before_it(self):
    schedule = schedules.Schedule()
    for step in (0, 1, 15_000, 120_000, 242_939):
      tokens = schedule.position(step).sequence * 4096
      self.assertEqual(
        schedule.phase(step), schedule.at(step=step, tokens=tokens)
      )
    self.assertEqual(schedule.phase(0).learning_rate, 2.2e-4 / 2000)
    self.assertEqual(schedule.phase(242_939).learning_rate, 7.3e-6)

  @parameterized.parameters((32 * 1024, 1920), (128 * 1024, 480))
  def test_context_extension(self, sequence_length, batch_size):
    schedule = schedules.constant(
      steps=1000,
      learning_rate=7.3e-6,
      sequence_length=sequence_length,
      batch_size=batch_size,
    )
    self.assertEqual(schedule.total_steps(), 1000)
    self.assertEqual(schedule.total_tokens, 62_914_560_000)
    for step in (0, 1, 500, 980, 999):
      self.assertEqual(
        schedule.phase(step),
        schedules.Phase(7.3e-6, batch_size, 0.0, 0.0001, 0.1),
      )


class SmallRunTest(parameterized.TestCase):
  """One number shrinks the run."""

  def test_boundaries_shrink_with_total_tokens(self):
    schedule = schedules.Schedule(
      total_tokens=14_800_000,
      sequence_length=100,
      learning_rate=1e-3,
      batch_size_start=8,
      batch_size=40,
      batch_multiple=8,
    )

    def at(tokens):
      return schedule.at(step=10**6, tokens=tokens)

    self.assertEqual(at(10_000_000).learning_rate, 1e-3)
    self.assertEqual(at(14_300_000).learning_rate, 2.2e-5)
    self.assertEqual(at(14_633_000).learning_rate, 7.3e-6)
    self.assertEqual(at(9_999_999).mtp_weight, 0.3)
    self.assertEqual(at(10_000_000).mtp_weight, 0.1)
    self.assertEqual(at(14_299_999).bias_update_speed, 0.001)
    self.assertEqual(at(14_300_000).bias_update_speed, 0.0)
    sizes = [at(tokens).batch_size for tokens in range(0, 469_001, 67_000)]
    self.assertEqual(sizes, [8, 8, 16, 16, 24, 24, 32, 40])

  @parameterized.parameters(
    dict(total_tokens=1),
    dict(total_tokens=14_800_000, batch_size_start=3, batch_size=17),
    dict(total_tokens=999_983, batch_size_start=4, batch_size=64),
    dict(total_tokens=50_000, batch_size_start=2, batch_size=64),
    dict(total_tokens=50_000, batch_size_start=8, batch_size=8),
    dict(
      total_tokens=400_000,
      batch_size_start=1,
      batch_size=29,
      batch_multiple=1,
      batch_ramp_tokens=14_800 * _B,
    ),
    dict(total_tokens=400_000, batch_ramp_tokens=0),
  )
  def test_plan_agrees_with_walking(self, **settings):
    schedule = schedules.Schedule(sequence_length=37, **settings)
    walked = _walk(schedule)
    self.assertEqual(list(schedule.plan()), walked)
    self.assertEqual(schedule.total_steps(), len(walked))
    half = len(walked) // 2
    self.assertEqual(list(schedule.plan(half)), walked[half:])
    last = walked[-1]
    self.assertEqual(
      schedule.position(len(walked)).sequence, last.sequence + last.batch_size
    )

  @parameterized.parameters((1_000, 50), (20, 1), (3, 1), (100_000, 2000))
  def test_warm_up_is_at_most_a_twentieth_of_the_run(self, steps, warmup):
    schedule = schedules.Schedule(
      total_tokens=steps * 8 * 64,
      sequence_length=64,
      batch_size_start=8,
      batch_size=8,
    )
    self.assertEqual(schedule.total_steps(), steps)
    self.assertEqual(schedule.resolved_warmup_steps, warmup)
    self.assertEqual(schedule.phase(0).learning_rate, 2.2e-4 / warmup)
    self.assertEqual(schedule.phase(warmup - 1).learning_rate, 2.2e-4)

  def test_warm_up_can_be_set_and_left_out(self):
    ten = schedules.Schedule(warmup_steps=10)
    self.assertEqual(ten.phase(4).learning_rate, 2.2e-4 * 5 / 10)
    none = schedules.Schedule(warmup_steps=0)
    self.assertEqual(none.phase(0).learning_rate, 2.2e-4)

  @parameterized.parameters((3072, 15360, 128), (8, 24, 8), (16, 16, 16))
  def test_batch_multiple_has_a_rule(self, start, end, multiple):
    schedule = schedules.Schedule(batch_size_start=start, batch_size=end)
    self.assertEqual(schedule.resolved_batch_multiple, multiple)

  def test_ramp_never_exceeds_the_line_nor_falls(self):
    schedule = schedules.Schedule(batch_multiple=1024)
    previous = 0
    for tokens in range(0, 469 * _B, 7 * _B):
      size = schedule.at(step=0, tokens=tokens).batch_size
      line = 3072 + 12288 * tokens / (469 * _B)
      self.assertEqual(size % 1024, 0)
      self.assertBetween(size, line - 1024, line)
      self.assertGreaterEqual(size, previous)
      previous = size

  def test_is_a_value(self):
    schedule = schedules.Schedule(total_tokens=10**6)
    schedule.total_steps()
    self.assertEqual(pickle.loads(pickle.dumps(schedule)), schedule)
    longer = dataclasses.replace(schedule, total_tokens=2 * 10**12)
    self.assertGreater(longer.total_steps(), schedule.total_steps())


class RefusalTest(parameterized.TestCase):
  """One line that names the field, what came and what to do."""

  @parameterized.parameters(
    (dict(total_tokens=1e9), "total_tokens=1000000000.0: expected an int"),
    (dict(total_tokens=0), "total_tokens=0: expected .* at least 1"),
    (dict(learning_rate="3e-4"), "learning_rate='3e-4': expected a number"),
    (dict(learning_rate=math.nan), "learning_rate=nan: expected a finite"),
    (dict(warmup_steps=-1), "warmup_steps=-1: expected .* at least 0"),
    (dict(batch_multiple=0), "batch_multiple=0: expected .* at least 1"),
    (dict(batch_size=True), "batch_size=True: expected an int"),
    (dict(mtp_weight=-0.1), "mtp_weight=-0.1: expected .* at least 0"),
    (
      dict(batch_size=1024),
      "batch_size=1024: expected at least batch_size_start=3072",
    ),
    (
      dict(batch_multiple=1000),
      "batch_size_start=3072: expected a multiple of batch_multiple=1000",
    ),
    (
      dict(learning_rate=1e-6),
      "decayed_learning_rate=2.2e-05: expected at most learning_rate=1e-06",
    ),
    (
      dict(decay_end_tokens=15 * _T),
      "decay_end_tokens=15000000000000: expected at most final_tokens=",
    ),
    (
      dict(batch_ramp_tokens=15 * _T),
      "batch_ramp_tokens=15000000000000: expected at most full_tokens=",
    ),
  )
  def test_settings(self, settings, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      schedules.Schedule(**settings)
    self.assertNotIn("\n", str(caught.exception))

  def test_constant(self):
    good = dict(steps=10, learning_rate=1e-5, batch_size=8, sequence_length=16)
    for field in ("steps", "batch_size", "sequence_length"):
      with self.assertRaisesRegex(ValueError, f"{field}=2.0: expected"):
        schedules.constant(**{**good, field: 2.0})

  def test_negative_positions(self):
    schedule = schedules.Schedule()
    with self.assertRaisesRegex(ValueError, "step=-1: expected 0 or more"):
      schedule.position(-1)
    with self.assertRaisesRegex(ValueError, "tokens=-1: expected neither"):
      schedule.at(step=0, tokens=-1)


if __name__ == "__main__":
  absltest.main()
