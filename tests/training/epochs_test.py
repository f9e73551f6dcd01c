"""A cosine over epochs, against its formula."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from dsx.training import epochs


class EpochsTest(parameterized.TestCase):
  def test_the_report_s_fine_tuning(self):
    schedule = epochs.Epochs().over(131_072)
    self.assertEqual(schedule.total_steps(), 2 * 131_072 // 128)
    for step in (0, 1, 512, 1024, 2000, 2047):
      share = step / 2048
      rate = 5e-6 + 4.5e-5 * (1 + math.cos(math.pi * share)) / 2
      phase = schedule.phase(step)
      self.assertAlmostEqual(phase.learning_rate, rate, delta=1e-15)
      self.assertEqual(phase.batch_size, 128)
      self.assertEqual(phase.bias_update_speed, 0.0)
      self.assertEqual((phase.balance_weight, phase.mtp_weight), (1e-4, 0.1))

  @parameterized.parameters(
    (1.0, 10, 4, 3),
    (2, 10, 4, 5),
    (0.25, 10, 4, 1),
    (1.5, 3, 1, 5),
    (2, 1, 8, 1),
  )
  def test_steps_cover_the_epochs(self, count, sequences, batch, steps):
    schedule = epochs.Epochs(count=count, batch_size=batch, sequence_length=7)
    over = schedule.over(sequences)
    self.assertEqual(over.total_steps(), steps)
    read = steps * batch
    self.assertBetween(read, count * sequences, count * sequences + batch)
    self.assertEqual([p.batch_size for p in over.plan()], [batch] * steps)

  def test_warm_up_and_gamma_to_the_end(self):
    over = epochs.Epochs(
      count=1, warmup_steps=4, batch_size=1, bias_update_speed=0.001
    ).over(100)
    rates = [over.phase(step).learning_rate for step in range(100)]
    self.assertLess(rates[0], rates[3] / 3)
    self.assertEqual(sorted(rates[3:], reverse=True), rates[3:])
    self.assertGreater(rates[-1], 5e-6)
    speeds = {over.phase(step).bias_update_speed for step in range(100)}
    self.assertEqual(speeds, {0.001})

  @parameterized.parameters(
    ({"count": 0}, "count=0: expected more than 0 epochs; raise it"),
    ({"count": "2"}, "count='2': expected a number; write 2 or 1.5"),
    ({"learning_rate": "1"}, "learning_rate='1': expected a number"),
    (
      {"final_learning_rate": 1.0},
      "final_learning_rate=1.0: expected at most learning_rate=5e-05; lower it",
    ),
    ({"batch_size": 0}, "batch_size_start=0: expected a finite number of at"),
    ({"warmup_steps": -1}, "warmup_steps=-1: expected a finite number of at"),
  )
  def test_refusals(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      epochs.Epochs(**fields)


if __name__ == "__main__":
  absltest.main()
