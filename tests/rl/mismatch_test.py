"""How far apart two lists of log-probabilities are, and what comes of it."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.rl import mismatch

_SAMPLER = np.array([-1.0, -2.0, -3.0, -0.5, 7.0], np.float32)
_TRAINER = np.array([-1.0, -0.9, -4.0, -0.55, np.nan], np.float32)
_MASK = np.array([True, True, True, True, False])
_APART = [0.0, 1.1, -1.0, -0.05]


def _compare(**fields):
  correction = mismatch.Correction(**fields)
  weight, sums = mismatch.compare(_TRAINER, _SAMPLER, _MASK, correction)
  return np.asarray(weight), mismatch.added([sums])


class MismatchTest(parameterized.TestCase):
  def test_sums_by_hand(self):
    _, sums = _compare()
    np.testing.assert_allclose(sums.tokens, 4)
    np.testing.assert_allclose(sums.absolute, 2.15, rtol=1e-5)
    np.testing.assert_allclose(sums.signed, 0.05, rtol=1e-4)
    np.testing.assert_allclose(sums.most, 1.1, rtol=1e-5)
    np.testing.assert_allclose(sums.large, 2)
    kl = sum(math.exp(d) - 1 - d for d in _APART)
    np.testing.assert_allclose(sums.kl, kl, rtol=1e-5)
    facts = mismatch.metrics(sums)
    np.testing.assert_allclose(facts["mismatch_mean"], 2.15 / 4, rtol=1e-5)
    np.testing.assert_allclose(facts["mismatch_large"], 0.5)
    np.testing.assert_allclose(facts["importance_mean"], 1)

  @parameterized.parameters(
    ("none", [1, 1, 1, 1, 1], 0),
    ("truncate", [1, 2, math.exp(-1), math.exp(-0.05), 1], 1),
    ("mask", [1, 0, 0, math.exp(-0.05), 1], 2),
  )
  def test_weights(self, weights, expected, cut):
    found, sums = _compare(weights=weights, most=2.0, least=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    self.assertEqual(sums.cut, cut)
    np.testing.assert_allclose(sums.weight, sum(expected[:4]), rtol=1e-5)

  def test_parts_add_up(self):
    correction = mismatch.Correction(weights="truncate")
    parts = [
      mismatch.compare(_TRAINER[s], _SAMPLER[s], _MASK[s], correction)[1]
      for s in (slice(0, 2), slice(2, 5))
    ]
    _, whole = _compare(weights="truncate")
    np.testing.assert_allclose(mismatch.added(parts), whole, rtol=1e-5)

  def test_impossible_tokens(self):
    """What the trainer gives no probability, or no number, is not hidden."""
    correction = mismatch.Correction(weights="truncate")
    for spoiled in (-np.inf, np.nan):
      weight, sums = mismatch.compare(
        np.array([-1.0, spoiled], np.float32),
        np.array([-1.0, -1.0], np.float32),
        np.array([True, True]),
        correction,
      )
      self.assertLess(float(weight[1]), 1e-8)
      sums = mismatch.added([sums])
      self.assertFalse(math.isfinite(sums.most))
      self.assertEqual(sums.large, 1)
      self.assertIn("refuse_mean=0.2", mismatch.refusal(sums, correction))

  def test_refusal(self):
    _, sums = _compare()
    for fields, words in (
      ({"refuse_mean": 0.5}, "differ by a mean of 0.537 nats a token"),
      ({"refuse_mean": None, "refuse_kl": 0.1}, "by a divergence of 0.318"),
      ({"refuse_mean": None}, ""),
      ({"refuse_mean": 0.6}, ""),
    ):
      found = mismatch.refusal(sums, mismatch.Correction(**fields))
      self.assertIn(words, found)
      self.assertEqual(bool(found), bool(words))

  @parameterized.parameters(
    ({"weights": "some"}, "weights='some': expected none, truncate or mask"),
    ({"bound": 0}, "bound=0: expected a number of nats above 0"),
    ({"most": 0.5}, "least=0.0, most=0.5: expected 0 <= least < 1 <= most"),
    ({"least": 1.5}, "least=1.5, most=2.0: expected 0 <= least"),
  )
  def test_says_what_is_wrong(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      mismatch.Correction(**fields)


if __name__ == "__main__":
  absltest.main()
