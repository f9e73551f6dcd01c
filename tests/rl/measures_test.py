"""What is measured of answers and rewards, on examples by hand."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.rl import measures
from dsx.rl import sample as sample_lib


def _sample(tokens, truncated=False):
  n = len(tokens)
  return sample_lib.Sample(
    prompt_number=0,
    number=0,
    prompt=np.array([1], np.int32),
    tokens=np.array(tokens, np.int32),
    logprob=np.zeros(n, np.float32),
    sampled_logprob=np.zeros(n, np.float32),
    experts=None,
    version=np.zeros(n, np.int32),
    truncated=truncated,
  )


class MeasuresTest(parameterized.TestCase):
  def test_samples(self):
    found = measures.of_samples(
      [_sample([1] * 10, truncated=True), _sample([1, 2])],
      ["a " * 10, "a b"],
    )
    self.assertEqual(found["length"], 6)
    self.assertEqual(found["longest"], 10)
    self.assertEqual(found["truncated"], 0.5)
    # three runs of 8 words, all alike
    self.assertAlmostEqual(found["repetition"], (2 / 3) / 2)

  def test_rewards(self):
    total = np.array([1, 0, 1, 1, 0, 0, 5, 1], np.float32)
    right = np.array([1, 0, 1, 1, 0, 0, 1, 1], np.float32)
    counted = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    parts = {"accuracy": right, "format": np.ones(8)}
    found = measures.of_rewards(total, parts, counted, group_size=2)
    self.assertAlmostEqual(found["reward"], 4 / 7)
    self.assertEqual(found["reward_format"], 1)
    self.assertAlmostEqual(found["pass_1"], 4 / 7)
    self.assertEqual(found["pass_k"], 3 / 4)
    self.assertEqual(found["zero_std"], 3 / 4)
    self.assertEqual(found["all_right"], 2 / 4)
    self.assertEqual(found["all_wrong"], 1 / 4)
    self.assertEqual(found["errors"], 1 / 8)

  def test_a_group_without_grades_is_no_group(self):
    found = measures.of_rewards(
      np.array([1.0, 0.0, 9.0, 9.0]),
      {"accuracy": np.array([1.0, 0.0, 1.0, 1.0])},
      np.array([True, True, False, False]),
      group_size=2,
    )
    self.assertEqual(found["zero_std"], 0)
    self.assertEqual(found["pass_k"], 1)
    self.assertEqual(found["pass_1"], 0.5)

  def test_what_no_rule_tells_is_neither_right_nor_wrong(self):
    found = measures.of_rewards(
      np.array([1.0, 0.0, 0.3, 0.4]),
      {
        "accuracy": np.array([1.0, 0.0, math.nan, math.nan]),
        "preference": np.array([math.nan, math.nan, 0.3, 0.4]),
      },
      np.ones(4, bool),
      group_size=2,
    )
    self.assertEqual((found["pass_1"], found["pass_k"]), (0.5, 1.0))
    self.assertAlmostEqual(found["reward_preference"], 0.35)
    self.assertAlmostEqual(found["reward"], 0.425)
    self.assertEqual((found["all_wrong"], found["zero_std"]), (0, 0))

  def test_no_grade_at_all(self):
    nothing = np.zeros(4, bool)
    found = measures.of_rewards(
      np.zeros(4), {"accuracy": np.zeros(4)}, nothing, 2
    )
    self.assertEqual(found["errors"], 1)
    self.assertTrue(math.isnan(found["reward"]))


if __name__ == "__main__":
  absltest.main()
