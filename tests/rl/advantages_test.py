"""Advantages over groups, and the penalty on length."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from dsx.rl import advantages


class AdvantagesTest(parameterized.TestCase):
  def test_by_hand(self):
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 1.0]])
    counted = jnp.ones((2, 4), bool)
    got, varied = advantages.advantages(rewards, counted)
    third = 1 / np.sqrt(3)
    expected = [[1, -1, -1, 1], [3 * third, -third, -third, -third]]
    chex.assert_trees_all_close(got, jnp.array(expected), atol=1e-6)
    self.assertEqual(varied.tolist(), [True, True])
    got, _ = advantages.advantages(rewards, counted, standardise=False)
    chex.assert_trees_all_close(
      got, jnp.array([[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]])
    )

  def test_equal_rewards_have_none(self):
    """Also where they are equal but for rounding."""
    tenth = np.float32(0.1)
    rewards = np.array([[1.0] * 3, [tenth * 3, 0.3, tenth + tenth + tenth]])
    got, varied = advantages.advantages(
      jnp.asarray(rewards, jnp.float32), jnp.ones((2, 3), bool)
    )
    self.assertEqual(got.tolist(), [[0.0] * 3] * 2)
    self.assertEqual(varied.tolist(), [False, False])

  def test_what_is_not_counted_moves_nothing(self):
    rewards = jnp.array([[1.0, 0.0, np.nan, 50.0]])
    counted = jnp.array([[True, True, False, False]])
    got, varied = advantages.advantages(rewards, counted)
    chex.assert_trees_all_close(got, jnp.array([[1.0, -1.0, 0.0, 0.0]]))
    self.assertEqual(varied.tolist(), [True])
    got, varied = advantages.advantages(rewards, counted & False)
    self.assertEqual((got.tolist(), varied.tolist()), ([[0.0] * 4], [False]))


class OverlongTest(parameterized.TestCase):
  def test_falls_over_the_margin(self):
    lengths = jnp.array([0, 12, 14, 16, 20])
    got = advantages.overlong_penalty(lengths, longest=16, margin=4)
    self.assertEqual(got.tolist(), [0.0, 0.0, -0.5, -1.0, -1.0])

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, "margin=17: expected 1 to longest"):
      advantages.overlong_penalty(jnp.zeros(1), longest=16, margin=17)


if __name__ == "__main__":
  absltest.main()
