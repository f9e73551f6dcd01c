"""pass@k against all subsets, majorities, intervals that cover."""

import itertools
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.evals import estimates


class PassTest(parameterized.TestCase):
  @parameterized.product(right=(0, 1, 3, 6), k=(1, 2, 5, 6))
  def test_is_the_mean_over_all_subsets(self, right, k):
    graded = [i < right for i in range(6)]
    subsets = list(itertools.combinations(graded, k))
    expected = sum(map(any, subsets)) / len(subsets)
    self.assertAlmostEqual(estimates.pass_at_k(6, right, k), expected)

  def test_many_samples(self):
    got = estimates.pass_at_k(4096, 1, 64)
    self.assertAlmostEqual(got, 64 / 4096)

  @parameterized.parameters((4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0))
  def test_refused(self, n, c, k):
    with self.assertRaisesRegex(ValueError, f"samples={n}, right={c}, k={k}: "):
      estimates.pass_at_k(n, c, k)


class ConsensusTest(absltest.TestCase):
  def test_majority(self):
    self.assertEqual(
      estimates.consensus(["a", "b", "b", None, None, None]), "b"
    )
    self.assertEqual(estimates.consensus(["a", "b"]), "a")
    self.assertIsNone(estimates.consensus([None]))
    self.assertIsNone(estimates.consensus([]))

  def test_at_k(self):
    def right(answer):
      return answer == 4

    at = estimates.consensus_at_k
    self.assertEqual(at([4, 4, 5], right, 3), 1.0)
    self.assertEqual(at([4, 5, 5], right, 3), 0.0)
    self.assertEqual(at([None, None, 4], right, 3), 1.0)
    answers = [4, 5, 4, 6, None, 4, 5, 7]
    subsets = list(itertools.combinations(answers, 3))
    exact = sum(right(estimates.consensus(s)) for s in subsets) / len(subsets)
    got = at(answers, right, 3, draws=4000)
    self.assertLess(abs(got - exact), 5 * math.sqrt(0.25 / 4000))
    self.assertEqual(at(answers, right, 3), at(answers, right, 3))

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, "k=3: expected 1 to 2"):
      estimates.consensus_at_k([1, 2], bool, 3)


class BootstrapTest(absltest.TestCase):
  def test_covers(self):
    """About 95 of 100 intervals hold the true mean."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
      scores = rng.random(60) < 0.3
      found = estimates.bootstrap(scores, resamples=400)
      self.assertAlmostEqual(found.mean, scores.mean())
      covered += found.low <= 0.3 <= found.high
    self.assertBetween(covered, 86, 100)

  def test_certain(self):
    self.assertEqual(estimates.bootstrap([1.0] * 5), (1.0, 1.0, 1.0))

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, r"scores=\[\]: expected at least"):
      estimates.bootstrap([])


if __name__ == "__main__":
  absltest.main()
