"""RMSNorm, Dense and SwiGLU: values, dtypes, initial weights."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import layers
from dsx.ops import dtypes
from dsx.parallel import axes

_NARROW = dtypes.Dtypes(compute="bfloat16")


def _x(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


class RMSNormTest(parameterized.TestCase):
  def test_literal(self):
    x = jnp.array([[3.0, 4.0]])  # root mean square sqrt(12.5)
    variables = {"params": {"scale": jnp.array([1.0, 10.0])}}
    y = layers.RMSNorm(0.0).apply(variables, x)
    expected = jnp.array([[3.0, 40.0]]) / jnp.sqrt(12.5)
    chex.assert_trees_all_close(y, expected, rtol=1e-6)

  def test_epsilon_is_added_to_the_mean_square(self):
    x = jnp.array([[3.0, 4.0]])
    variables = {"params": {"scale": jnp.ones((2,))}}
    y = layers.RMSNorm(12.5).apply(variables, x)
    chex.assert_trees_all_close(y, x / 5.0, rtol=1e-6)
    zero = layers.RMSNorm(1e-6).apply(variables, jnp.zeros((1, 2)))
    chex.assert_trees_all_equal(zero, jnp.zeros((1, 2)))

  def test_computes_in_float32(self):
    """In bfloat16 the squares of 256 values of 200 would lose their sum."""
    x = (200.0 + _x(4, 256)).astype(jnp.bfloat16)
    norm = layers.RMSNorm(1e-6, _NARROW)
    variables = norm.init(jax.random.key(0), x)
    y = norm.apply(variables, x)
    self.assertEqual(y.dtype, jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True))
    rounded = jnp.asarray(expected, jnp.bfloat16)
    chex.assert_trees_all_equal(y, rounded)

  def test_scale_starts_at_one(self):
    boxed = layers.RMSNorm(1e-6).init(jax.random.key(0), _x(1, 8))
    scale = boxed["params"]["scale"]
    self.assertEqual(scale.names, (axes.NORM,))
    chex.assert_trees_all_equal(scale.value, jnp.ones((8,)))


class DenseTest(parameterized.TestCase):
  def test_multiplies_without_a_bias(self):
    dense = layers.Dense(5, (axes.EMBED, axes.MLP), 0.006)
    x = _x(2, 3, 4)
    boxed = dense.init(jax.random.key(0), x)
    self.assertEqual(list(boxed["params"]), ["kernel"])
    kernel = boxed["params"]["kernel"]
    self.assertEqual(kernel.names, (axes.EMBED, axes.MLP))
    y = dense.apply(boxed, x)
    chex.assert_trees_all_close(y, x @ kernel.value, rtol=1e-5)

  def test_initial_weights(self):
    """Section 4.2: normal with a standard deviation of 0.006."""
    dense = layers.Dense(200, (axes.EMBED, axes.MLP), 0.006)
    boxed = dense.init(jax.random.key(0), _x(1, 300))
    kernel = np.asarray(boxed["params"]["kernel"].value)
    self.assertAlmostEqual(kernel.std(), 0.006, delta=1e-4)
    self.assertAlmostEqual(kernel.mean(), 0.0, delta=1e-4)
    self.assertGreater(np.abs(kernel).max(), 3 * 0.006)  # not truncated

  @parameterized.parameters("float32", "bfloat16")
  def test_keeps_weights_in_param_and_computes_in_compute(self, compute):
    policy = dtypes.Dtypes(compute=compute)
    dense = layers.Dense(5, (axes.EMBED, axes.MLP), 0.1, policy)
    boxed = dense.init(jax.random.key(0), _x(1, 4))
    self.assertEqual(boxed["params"]["kernel"].value.dtype, jnp.float32)
    self.assertEqual(dense.apply(boxed, _x(1, 4)).dtype, compute)


class SwiGLUTest(parameterized.TestCase):
  def test_literal(self):
    mlp = layers.SwiGLU(1, 0.1)
    kernels = {"gate_proj": 1.0, "up_proj": 3.0, "down_proj": 5.0}
    variables = {
      "params": {k: {"kernel": jnp.full((1, 1), v)} for k, v in kernels.items()}
    }
    y = mlp.apply(variables, jnp.full((1, 1, 1), 2.0))
    # silu(2) = 1.7615942, up 6, down 5.
    chex.assert_trees_all_close(y, jnp.full((1, 1, 1), 52.847825), rtol=1e-6)

  def test_gate_and_up_are_not_interchangeable(self):
    gate, up = jnp.array([-3.0]), jnp.array([2.0])
    chex.assert_trees_all_close(
      layers.swiglu(gate, up), jnp.array([-0.284552]), rtol=1e-4
    )
    self.assertGreater(float(jnp.abs(layers.swiglu(up, gate))[0]), 5.0)


if __name__ == "__main__":
  absltest.main()
