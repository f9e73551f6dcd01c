"""Programs written for a platform that is not here."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from dsx.ops import grouped_matmul
from dsx.ops import platforms


class PlatformsTest(absltest.TestCase):
  def test_the_devices_are_the_default(self):
    self.assertEqual(platforms.target(), "cpu")
    with platforms.compiling_for("tpu"):
      self.assertEqual(platforms.target(), "tpu")
    self.assertEqual(platforms.target(), "cpu")

  def test_automatic_choices_follow(self):
    x, w, sizes = jnp.ones((4, 2)), jnp.ones((2, 2, 2)), jnp.array([2, 2])

    def text():
      program = jax.jit(lambda *a: grouped_matmul.grouped_matmul(*a))
      return str(program.trace(x, w, sizes).jaxpr)

    self.assertNotIn("ragged_dot", text())
    with platforms.compiling_for("tpu"):
      self.assertIn("ragged_dot", text())

  def test_refuses(self):
    with (
      self.assertRaisesWithLiteralMatch(
        ValueError, "platform='abacus': expected one of cpu, gpu, tpu"
      ),
      platforms.compiling_for("abacus"),
    ):
      pass
