"""Rounds of emulated FP8 beside bfloat16 are fair, and their medians right."""

from absl.testing import absltest

from benchmarks import fp8_speed


class _Side:
  def __init__(self, name, calls):
    self._name, self._calls = name, calls

  def steps(self, count):
    self._calls.append((self._name, count))
    return 0.0


class FP8SpeedTest(absltest.TestCase):
  def test_sides_take_turns_and_neither_is_always_first(self):
    calls = []
    sides = [_Side("bfloat16", calls), _Side("fp8", calls)]
    measured = fp8_speed.rounds(sides, 2, steps=3)
    self.assertEqual([len(seconds) for seconds in measured], [2, 2])
    warm, timed = calls[:2], calls[2:]
    self.assertEqual([name for name, _ in warm], ["bfloat16", "fp8"])
    self.assertEqual(
      timed,
      [("bfloat16", 3), ("fp8", 3), ("fp8", 3), ("bfloat16", 3)],
    )

  def test_median_of_ratios_is_over_rounds(self):
    seconds = [[0.1, 0.2], [0.1, 0.3], [0.4, 0.4]]
    measured = [[fp8_speed.Times(t, 2 * t) for t in pair] for pair in seconds]
    rows = fp8_speed.rows("v3_tiny", measured)
    self.assertEqual(
      rows[1], ["v3_tiny", "2", "100", "300", "3.00", "200", "600", "3.00"]
    )
    self.assertEqual(
      rows[-1],
      ["v3_tiny", "median", "100", "300", "2.00", "200", "600", "2.00"],
    )


if __name__ == "__main__":
  absltest.main()
