from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import block_scaled
from dsx.ops import fp8
from dsx.ops import fp8_linear
from dsx.ops import fp8_probe
from dsx.ops import fp8_recipe
from dsx.ops import fp8_swiglu
from dsx.ops import hopper_target
from dsx.ops import platforms
from tests.ops import fp8_oracle

_TILES = {"tile": (1, 128), "block": (128, 128)}
_EXACT = {"accumulation": "exact", "scale_format": "ue8m0"}


def _arrays(rows, d, f, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = ((rows, d), (d, f), (rows, f))
  x, w, dy = (
    jax.random.normal(key, shape) * jnp.exp(2 * jax.random.normal(key, shape))
    for key, shape in zip(keys, shapes, strict=True)
  )
  return x.astype(dtype), w, dy.astype(dtype)


def _linear(name="q_proj", **fields):
  return fp8_recipe.Recipe(**fields).linear(name)


def _gradients(linear, x, w, dy, probe=None):
  """(y, dx, dw, ...) through the layer, compiled."""

  @jax.jit
  def run(x, w, dy, probe):
    def layer(x, w, probe):
      return fp8_linear.matmul(x, w, linear, probe)

    y, pull = jax.vjp(layer, x, w, probe)
    return y, *pull(dy)

  return run(x, w, dy, probe)


def _numbers(quantised, tile):
  """What values and scales of the oracle stand for."""
  values, scales = quantised
  for axis in (0, 1):
    scales = np.repeat(scales, tile[axis], axis)
  rows, columns = values.shape
  return values.astype(np.float32) * scales[:rows, :columns]


def _oracle(recipe, x, w, dy, scales_of="ue8m0"):
  """The three products as section 3.3 defines them, in numpy."""
  x, w, dy = (np.asarray(a, np.float32) for a in (x, w, dy))

  def tile(of, granularity, turned=False):
    found = _TILES.get(granularity, of.shape)
    return found[::-1] if turned and granularity == "tile" else found

  def quantised(of, found, format):
    return (*fp8_oracle.quantise(of, found, format, scales_of), found)

  def transposed(values, scales, found):
    return values.T, scales.T, found[::-1]

  def product(a, b):
    return fp8_oracle.multiply(a, b, "exact", recipe.promote)

  activation, gradient = (
    recipe.activation_granularity,
    recipe.gradient_granularity,
  )
  x_fp8 = quantised(x, tile(x, activation), recipe.activation_format)
  w_fp8 = quantised(w, tile(w, recipe.weight_granularity), recipe.weight_format)
  dy_fp8 = quantised(dy, tile(dy, gradient), recipe.gradient_format)
  y, dx = product(x_fp8, w_fp8), product(dy_fp8, transposed(*w_fp8))
  waited = x
  if recipe.cache_inputs == "float8":
    waited = _numbers(x_fp8[:2], x_fp8[2])
  x_turned = quantised(
    waited, tile(x, activation, True), recipe.activation_format
  )
  dy_turned = quantised(dy, tile(dy, gradient, True), recipe.gradient_format)
  return y, dx, product(transposed(*x_turned), dy_turned)


class OracleTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, 5, 130, 3),
    ({}, 131, 7, 5),
    ({"cache_inputs": "compute"}, 131, 7, 5),
    ({"gradient_format": "e5m2"}, 6, 5, 131),
    ({"activation_granularity": "block"}, 130, 9, 4),
    ({"gradient_granularity": "block"}, 130, 4, 9),
    (
      {
        "activation_granularity": "tensor",
        "gradient_granularity": "tensor",
        "weight_granularity": "tensor",
        "promote": False,
      },
      9,
      131,
      4,
    ),
  )
  def test_all_three_products_to_the_bit(self, fields, rows, d, f):
    linear = _linear(**_EXACT, **fields)
    arrays = _arrays(rows, d, f)
    chex.assert_trees_all_equal(
      tuple(map(np.asarray, _gradients(linear, *arrays)[:3])),
      _oracle(linear.recipe, *arrays),
    )


class MatmulTest(parameterized.TestCase):
  @parameterized.product(
    shape=((1, 1), (2, 100), (2, 3, 128)),
    dtype=(jnp.float32, jnp.bfloat16),
  )
  def test_near_the_product(self, shape, dtype):
    rows = int(np.prod(shape))
    x, w, dy = _arrays(rows, 130, 70, dtype)
    x, dy = x.reshape(*shape, -1), dy.reshape(*shape, -1)
    got = _gradients(_linear(), x, w, dy)[:3]
    wide, pull = jax.vjp(jnp.matmul, x.astype(jnp.float32), w)
    expected = wide, *pull(dy.astype(jnp.float32))
    self.assertEqual([a.dtype for a in got], [dtype, dtype, jnp.float32])
    for a, b in zip(got, expected, strict=True):
      self.assertEqual(a.shape, b.shape)
      error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
      self.assertLess(float(error), 0.06)

  @parameterized.parameters("compute", "float8", "e5m6")
  def test_attention_output_waits_as_it_is_told(self, cache):
    linear = _linear("self_attn/o_proj", cache_attention_output=cache)
    x, w, dy = _arrays(200, 130, 9)
    _, (kept, _, _) = fp8_linear.forward(x, w, None, linear, fp8_linear.WHOLE)
    bytes_each = sum(a.nbytes for a in jax.tree.leaves(kept)) / x.size
    expected = {"compute": 4.0, "float8": 1.06, "e5m6": 1.52}[cache]
    self.assertAlmostEqual(bytes_each, expected, delta=0.01)
    # To powers of two alone, so that changing tiles loses nothing more.
    scales = fp8_linear.quantised_input(
      x, linear.recipe, linear.scale_format
    ).scales
    self.assertEqual(set(np.frexp(scales)[0].ravel()), {0.5})
    dw = _gradients(linear, x, w, dy)[2]
    error = jnp.linalg.norm(dw - x.T @ dy) / jnp.linalg.norm(x.T @ dy)
    self.assertLess(float(error), 0.06)

  def test_power_of_two_scales_survive_another_tile(self):
    x = _arrays(200, 130, 9)[0]
    recipe = fp8_recipe.Recipe(scale_format="ue8m0")
    once = fp8_linear.quantised_input(x, recipe)
    again = fp8_linear.retiled(once, recipe)
    wide = once.dequantise(jnp.float32)
    # All but what the neighbours along tokens push below the format.
    kept = again.dequantise(jnp.float32) == wide
    self.assertGreater(float(kept.mean()), 0.97)
    self.assertEqual(again.tile, fp8.COLUMN_TILE)

  def test_fp8_weights_are_used_as_they_are(self):
    x, w, dy = _arrays(9, 130, 200)
    at_rest = block_scaled.quantise(w)
    y, dx, dw, _ = _gradients(_linear(**_EXACT), x, at_rest, dy)
    recipe = fp8_recipe.Recipe(**_EXACT)
    quantised = fp8.Quantised(at_rest.values, at_rest.scales, fp8.BLOCK_TILE)
    chex.assert_trees_all_equal(y, fp8_linear.fprop(x, quantised, recipe))
    chex.assert_trees_all_equal(dx, fp8_linear.dgrad(dy, quantised, recipe))
    for leaf in jax.tree.leaves(dw):
      self.assertFalse(np.asarray(leaf, np.float32).any())

  def test_probe_s_gradient_is_what_happened(self):
    x, w, dy = _arrays(9, 130, 200)
    linear = _linear()
    probe = jnp.zeros((3, fp8_probe.WIDTH))
    *_, seen = _gradients(linear, x, w, dy, probe)
    recipe = linear.recipe
    expected = jnp.stack(
      [
        fp8_probe.statistics(x, fp8_linear.quantised_input(x, recipe)),
        fp8_probe.statistics(w, fp8_linear.quantised_weight(w, recipe)),
        fp8_probe.statistics(dy, fp8_linear.quantised_gradient(dy, recipe)),
      ]
    )
    chex.assert_trees_all_equal(seen, expected)

  def test_what_is_not_finite_is_seen(self):
    x, w, dy = _arrays(3, 8, 5)
    y = _gradients(_linear(), x.at[1, 2].set(jnp.inf), w, dy)[0]
    self.assertTrue(bool(jnp.isnan(y[1]).all()))
    self.assertTrue(bool(jnp.isfinite(y[::2]).all()))

  def test_refuses_what_does_not_fit(self):
    x, w, _ = _arrays(3, 8, 5)
    with self.assertRaisesRegex(ValueError, r"w \(5, 8\).*transpose one"):
      fp8_linear.matmul(x, w.T, _linear())

  def test_batches_of_matrices(self):
    x, w, dy = (jnp.stack([a, 3 * a]) for a in _arrays(7, 130, 5))
    recipe = fp8_recipe.Recipe(**_EXACT)
    for product, left, right in (
      (fp8_linear.fprop, x, w),
      (fp8_linear.dgrad, dy, w),
      (fp8_linear.wgrad, x, dy),
    ):
      chex.assert_trees_all_equal(
        product(left, right, recipe),
        jnp.stack(
          [product(a, b, recipe) for a, b in zip(left, right, strict=True)]
        ),
      )


class SwigluTest(parameterized.TestCase):
  def test_value_and_gradients(self):
    gate, w, dy = _arrays(200, 130, 9)
    gate, up = gate / 4, jnp.flip(gate, 0) / 4
    linear = _linear("mlp/down_proj")

    def run(function):
      y, pull = jax.vjp(function, gate, up, w)
      return y, *pull(dy)

    got = run(lambda gate, up, w: fp8_swiglu.matmul(gate, up, w, linear))
    expected = run(lambda gate, up, w: (jax.nn.silu(gate) * up) @ w)
    for a, b in zip(got, expected, strict=True):
      error = jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
      self.assertLess(float(error), 0.08)

  def test_forward_is_the_product_of_swiglu(self):
    gate, w, _ = _arrays(20, 130, 9)
    linear = _linear("mlp/down_proj", accumulation="exact")
    hidden = jax.nn.silu(gate) * gate
    chex.assert_trees_all_equal(
      fp8_swiglu.matmul(gate, gate, w, linear),
      fp8_linear.matmul(hidden, w, linear),
    )

  def test_backward_computes_from_what_was_kept(self):
    gate, w, dy = _arrays(20, 130, 9)
    linear = _linear("mlp/down_proj", accumulation="exact")
    recipe = linear.recipe

    def widened(x):
      return fp8_linear.quantised_input(x, recipe).dequantise(jnp.float32)

    def dw(gate):
      def layer(w):
        return fp8_swiglu.matmul(gate, gate, w, linear)

      return jax.vjp(layer, w)[1](dy)[0]

    hidden = jax.nn.silu(widened(gate)) * widened(gate)
    chex.assert_trees_all_close(
      dw(gate), fp8_linear.wgrad(hidden, dy, recipe), rtol=1e-6, atol=1e-4
    )


class RoundedTest(parameterized.TestCase):
  def test_values_are_fp8_s_and_the_gradient_passes(self):
    x, _, dy = _arrays(6, 130, 130)
    recipe = fp8_recipe.Recipe()
    y, pull = jax.vjp(lambda x: fp8_linear.rounded(x, recipe), x)
    expected = fp8_linear.quantised_input(x, recipe).dequantise(jnp.float32)
    chex.assert_trees_all_equal(y, expected)
    chex.assert_trees_all_equal(pull(dy)[0], dy)
    self.assertFalse(bool((x == y).all()))

  def test_weights_by_blocks(self):
    w = _arrays(6, 130, 130)[1]
    recipe = fp8_recipe.Recipe()
    expected = fp8_linear.quantised_weight(w, recipe).dequantise(jnp.float32)
    chex.assert_trees_all_equal(fp8_linear.rounded_weight(w, recipe), expected)


class ImplementationTest(parameterized.TestCase):
  def test_emulates_on_a_cpu_and_says_so(self):
    fp8_linear._say_once.cache_clear()
    with self.assertLogs("dsx.ops.fp8_linear", "INFO") as logs:
      for _ in range(2):
        found = fp8_linear.implementation(fp8_recipe.Recipe())
    self.assertEqual(found, "emulated")
    self.assertLen(logs.output, 1)
    self.assertIn("no FP8 units", logs.output[0])

  @parameterized.parameters("kernel", "native")
  def test_refuses_what_the_platform_has_not(self, name):
    recipe = fp8_recipe.Recipe(implementation=name)
    with self.assertRaisesRegex(ValueError, f"implementation='{name}' on cpu"):
      fp8_linear.implementation(recipe)

  def test_kernels_where_they_can_be_interpreted(self):
    with hopper_target.interpreted():
      for wanted in ("auto", "kernel"):
        recipe = fp8_recipe.Recipe(implementation=wanted)
        self.assertEqual(fp8_linear.implementation(recipe), "kernel")
      exact = fp8_recipe.Recipe(accumulation="exact")
      self.assertEqual(fp8_linear.implementation(exact), "emulated")
      two = fp8_recipe.Recipe(gradient_format="e5m2")
      self.assertEqual(fp8_linear.implementation(two), "emulated")
      two = fp8_recipe.Recipe(gradient_format="e5m2", implementation="kernel")
      with self.assertRaisesRegex(ValueError, "formats e4m3, e5m2"):
        fp8_linear.implementation(two)

  def test_a_gpu_that_is_compiled_for_without_one_has_kernels(self):
    with platforms.compiling_for("gpu"):
      found = fp8_linear.implementation(fp8_recipe.Recipe())
    self.assertEqual(found, "kernel")


if __name__ == "__main__":
  absltest.main()
