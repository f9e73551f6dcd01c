"""Divergences over the teacher's top k: by hand, in the limit, as gradients."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.rl import distill


def _logits(seed: int, *shape: int):
  return jax.random.normal(jax.random.key(seed), shape) * 2


def _whole(p, q):
  """KL(p || q) of two logits over all tokens."""
  p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
  return (jnp.exp(p) * (p - q)).sum(-1)


class DistillTest(parameterized.TestCase):
  def test_by_hand(self):
    student = jnp.log(jnp.array([[[0.2, 0.3, 0.1, 0.4]]]))
    teacher = jnp.log(jnp.array([[[0.5, 0.25, 0.15, 0.1]]]))
    listed = distill.top(teacher, 2)
    self.assertEqual(listed.tokens.tolist(), [[[0, 1]]])
    # Tokens 0 and 1, and the rest of a quarter (teacher) and a half.
    forward = (
      0.5 * math.log(0.5 / 0.2)
      + 0.25 * math.log(0.25 / 0.3)
      + 0.25 * math.log(0.25 / 0.5)
    )
    reverse = (
      0.2 * math.log(0.2 / 0.5)
      + 0.3 * math.log(0.3 / 0.25)
      + 0.5 * math.log(0.5 / 0.25)
    )
    for direction, expected in (("forward", forward), ("reverse", reverse)):
      found = distill.divergence(student, listed, direction)
      np.testing.assert_allclose(found, [[expected]], rtol=1e-5)

  @parameterized.parameters("forward", "reverse")
  def test_more_tokens_come_closer_to_the_whole(self, direction):
    student, teacher = _logits(0, 3, 5, 16), _logits(1, 3, 5, 16)
    pair = (teacher, student) if direction == "forward" else (student, teacher)
    whole = _whole(*pair)
    last = jnp.zeros_like(whole)
    for k in (1, 2, 4, 8, 15):
      found = distill.divergence(student, distill.top(teacher, k), direction)
      self.assertTrue((found >= last - 1e-5).all(), k)
      self.assertTrue((found <= whole + 1e-5).all(), k)
      last = found
    chex.assert_trees_all_close(last, whole, rtol=1e-3, atol=1e-4)

  @parameterized.product(direction=("forward", "reverse"), k=(1, 4, 16))
  def test_nothing_is_to_be_learnt_from_oneself(self, direction, k):
    logits = _logits(0, 2, 3, 16)
    listed = distill.top(logits, k, temperature=0.7)

    def loss(own):
      return distill.divergence(own, listed, direction, 0.7).sum()

    value, gradient = jax.value_and_grad(loss)(logits)
    self.assertAlmostEqual(float(value), 0.0, delta=1e-5)
    self.assertLess(float(jnp.abs(gradient).max()), 1e-4)

  def test_gradient_of_the_whole_forward_divergence(self):
    student, teacher = _logits(0, 1, 1, 8), _logits(1, 1, 1, 8)
    listed = distill.top(teacher, 7)
    gradient = jax.grad(
      lambda own: distill.divergence(own, listed, "forward").sum()
    )(student)
    expected = jax.nn.softmax(student) - jax.nn.softmax(teacher)
    chex.assert_trees_all_close(gradient, expected, atol=1e-4)

  @parameterized.parameters("forward", "reverse")
  def test_no_gradient_for_the_teacher(self, direction):
    student, teacher = _logits(0, 1, 2, 8), _logits(1, 1, 2, 8)
    gradient = jax.grad(
      lambda t: distill.divergence(student, distill.top(t, 3), direction).sum()
    )(teacher)
    self.assertEqual(float(jnp.abs(gradient).max()), 0.0)

  def test_a_teacher_without_doubt_stays_finite(self):
    teacher = jnp.array([[[100.0, 0.0, 0.0]]])
    for direction in distill.DIRECTIONS:
      value, gradient = jax.value_and_grad(
        lambda own, d=direction: distill.divergence(
          own, distill.top(teacher, 1), d
        ).sum()
      )(jnp.zeros((1, 1, 3)))
      self.assertTrue(math.isfinite(value))
      self.assertTrue(bool(jnp.isfinite(gradient).all()))

  @parameterized.parameters(
    (
      lambda x: distill.top(x, 9),
      "k=9: expected 1 to 8, the size of the vocab",
    ),
    (lambda x: distill.top(x, 2, 0.0), "temperature=0.0: expected more than 0"),
    (
      lambda x: distill.divergence(x, distill.top(x, 2), "both"),
      "direction='both': expected forward or reverse; change it",
    ),
  )
  def test_refused(self, call, message):
    with self.assertRaisesRegex(ValueError, message):
      call(_logits(0, 1, 1, 8))


if __name__ == "__main__":
  absltest.main()
