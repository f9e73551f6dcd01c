"""Tokens are drawn with the model's probabilities."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx.inference import sampling

_LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
_DRAWS = 20_000
# Chi-square of 3 degrees of freedom, exceeded once in 100,000 times.
_CRITICAL = 25.9


class SamplingTest(parameterized.TestCase):
  def chi_square(self, temperature, expected):
    logits = np.broadcast_to(_LOGITS, (_DRAWS, 4))
    drawn = sampling.sample(jax.random.key(7), logits, np.float32(temperature))
    counts = np.bincount(np.asarray(drawn), minlength=4)
    wanted = _DRAWS * expected / expected.sum()
    return ((counts - wanted) ** 2 / wanted).sum()

  @parameterized.parameters(1.0, 0.5, 2.0)
  def test_distribution(self, temperature):
    expected = np.exp(_LOGITS / temperature)
    self.assertLess(self.chi_square(temperature, expected), _CRITICAL)
    # The test can tell one temperature from another.
    wrong = np.exp(_LOGITS / (temperature * 1.3))
    self.assertGreater(self.chi_square(temperature, wrong), _CRITICAL)

  @parameterized.parameters(0, 1, 2)
  def test_zero_takes_the_best(self, best):
    logits = np.zeros((5, 3), np.float32)
    logits[:, best] = 1e-3
    keys = jax.random.key(0)
    drawn = sampling.sample(keys, logits, np.float32(0))
    np.testing.assert_array_equal(drawn, np.full(5, best))

  def test_a_low_temperature_overflows_nothing(self):
    logits = np.array([-1e4, 1e4, 0.0], np.float32)
    drawn = sampling.sample(jax.random.key(0), logits, np.float32(1e-8))
    self.assertEqual(drawn, 1)

  @parameterized.parameters(-1.0, float("nan"), float("inf"), -float("inf"))
  def test_bad_temperatures(self, temperature):
    with self.assertRaisesRegex(
      ValueError, f"temperature={temperature}: expected a finite number"
    ):
      sampling.Sampling(temperature=temperature)

  @parameterized.parameters("max_new_tokens", "window")
  def test_bad_numbers(self, field):
    with self.assertRaisesRegex(ValueError, f"{field}=0: expected at least 1"):
      sampling.Sampling(**{field: 0})


if __name__ == "__main__":
  absltest.main()
