"""Rotary positions and YaRN: DeepSeek's numbers and the properties used."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config
from dsx.ops import rope

_V3 = config.RopeScaling()
_V2_LITE = config.RopeScaling(mscale=0.707, mscale_all_dim=0.707)


def _positions(*values):
  return jnp.array([values], jnp.int32)


class RopeTest(parameterized.TestCase):
  def test_rotates_neighbours_and_sorts_them(self):
    """The two coordinates of a pair lie side by side in DeepSeek's weights."""
    x = jnp.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
    quarter, half = math.pi / 2, math.pi
    angles = jnp.array([quarter, half]).reshape(1, 1, 2)
    y = rope.rotate(x, jnp.cos(angles), jnp.sin(angles))
    # (1, 0) by a quarter is (0, 1); (0, 2) by a half is (0, -2).
    expected = jnp.array([0.0, 0.0, 1.0, -2.0]).reshape(1, 1, 1, 4)
    chex.assert_trees_all_close(y, expected, atol=1e-6)

  def test_is_a_complex_multiplication(self):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    positions = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    y = rope.rotate(x, *rope.cos_sin(positions, 8, 100.0))
    pairs = np.asarray(x[..., 0::2]) + 1j * np.asarray(x[..., 1::2])
    angles = np.asarray(positions)[..., None] * 100.0 ** (-np.arange(4) / 4)
    turned = pairs * np.exp(1j * angles)[:, :, None, :]
    expected = np.concatenate([turned.real, turned.imag], -1)
    chex.assert_trees_all_close(y, expected.astype(np.float32), atol=1e-5)

  def test_products_depend_on_distance_alone(self):
    keys = jax.random.split(jax.random.key(1))
    q, k = (jax.random.normal(key, (1, 1, 1, 16)) for key in keys)

    def product(i, j):
      turned = [
        rope.rotate(x, *rope.cos_sin(_positions(at), 16, 1e4, _V3))
        for x, at in ((q, i), (k, j))
      ]
      return (turned[0] * turned[1]).sum()

    near = product(7, 3)
    chex.assert_trees_all_close(product(104, 100), near, atol=1e-4)
    self.assertGreater(abs(product(9, 3) - near), 1e-2)

  def test_position_zero_is_the_identity(self):
    cos, sin = rope.cos_sin(_positions(0), 8, 1e4, _V3)
    chex.assert_trees_all_equal(cos, jnp.ones((1, 1, 4)))
    chex.assert_trees_all_equal(sin, jnp.zeros((1, 1, 4)))

  def test_keeps_the_dtype(self):
    x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    y = rope.rotate(x, *rope.cos_sin(_positions(3), 4, 1e4))
    self.assertEqual(y.dtype, jnp.bfloat16)

  def test_plain_frequencies(self):
    chex.assert_trees_all_close(
      rope.frequencies(8, 10000.0),
      np.array([1.0, 0.1, 0.01, 0.001], np.float32),
      rtol=1e-6,
    )

  def test_yarn_ramp_of_v3(self):
    """Of V3's 32 frequencies 0 to 10 stay, 23 to 31 are divided by 40."""
    plain = rope.frequencies(64, 10000.0)
    ratio = plain / rope.frequencies(64, 10000.0, _V3)
    chex.assert_trees_all_close(ratio[:11], np.ones(11, np.float32))
    chex.assert_trees_all_close(
      ratio[23:], np.full(9, 40, np.float32), rtol=1e-5
    )
    self.assertTrue((np.diff(ratio[10:24]) > 0).all())
    # In between the two frequencies are mixed linearly.
    mix = (1 / ratio - 1 / 40) / (1 - 1 / 40)
    chex.assert_trees_all_close(
      mix[10:24], np.linspace(1, 0, 14, dtype=np.float32), atol=1e-5
    )

  def test_yarn_with_a_context_of_a_few_tokens(self):
    """No dimension turns 32 times: the ramp begins at the first one."""
    scaling = config.RopeScaling(factor=4, original_max_position_embeddings=8)
    ratio = rope.frequencies(8, 10000.0) / rope.frequencies(8, 1e4, scaling)
    chex.assert_trees_all_close(ratio, np.array([1, 4, 4, 4], np.float32))

  @parameterized.parameters(
    # factor, mscale, expected
    (1.0, 1.0, 1.0),
    (40.0, 0.0, 1.0),
    (40.0, 1.0, 1.3688879),
    (40.0, 0.707, 1.2608038),
  )
  def test_temperature(self, factor, mscale, expected):
    self.assertAlmostEqual(rope.temperature(factor, mscale), expected, places=6)

  @parameterized.named_parameters(
    ("v3", _V3, 0.1352338),
    ("v2_lite", _V2_LITE, 0.1147214),
    ("none", None, 0.0721688),
    ("no_temperature", config.RopeScaling(mscale_all_dim=0.0), 0.0721688),
  )
  def test_softmax_scale(self, scaling, expected):
    scale = rope.softmax_scale(192, scaling)
    self.assertAlmostEqual(scale, expected, places=7)

  @parameterized.named_parameters(
    ("v3", 1.0, 1.0, 1.0),
    ("v2_lite", 0.707, 0.707, 1.0),
    # Both by DeepSeek's code; transformers, if either is zero, takes the
    # temperature of mscale 1 and so agrees on the first of them alone.
    ("no_denominator", 1.0, 0.0, 1.3688879),
    ("narrow_no_denominator", 0.7, 0.0, 1.2582216),
    ("no_numerator", 0.0, 1.0, 1 / 1.3688879),
    ("both", 0.707, 1.0, 1.2608038 / 1.3688879),
  )
  def test_cos_sin_multiplier(self, mscale, mscale_all_dim, expected):
    scaling = config.RopeScaling(mscale=mscale, mscale_all_dim=mscale_all_dim)
    cos, sin = rope.cos_sin(_positions(0, 5), 4, 1e4, scaling)
    radius = jnp.sqrt(cos**2 + sin**2)
    chex.assert_trees_all_close(
      radius, jnp.full((1, 2, 2), expected), rtol=1e-5
    )


if __name__ == "__main__":
  absltest.main()
