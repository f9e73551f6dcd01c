"""FP8 blocks against a loop over blocks, and numpy against JAX."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dsx.ops import block_scaled


def _loop(x, scale_format):
  """The definition, one block after another."""
  rows, columns = x.shape
  values = np.zeros(x.shape, ml_dtypes.float8_e4m3fn)
  scales = np.ones((-(-rows // 128), -(-columns // 128)), np.float32)
  for i in range(scales.shape[0]):
    for j in range(scales.shape[1]):
      here = np.s_[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
      block = x[here].astype(np.float32)
      largest = np.abs(block).max()
      if largest > 0:
        scale = np.float32(largest / np.float32(448))
        if scale_format == "ue8m0":
          fraction, exponent = np.frexp(scale)
          scale = np.ldexp(np.float32(1), exponent - (fraction == 0.5))
        scales[i, j] = scale
      values[here] = (block / scales[i, j]).astype(ml_dtypes.float8_e4m3fn)
  return values, scales


def _random(*shape, seed=0):
  """Normal numbers whose size differs from row to row."""
  rng = np.random.default_rng(seed)
  sizes = np.exp(rng.normal(size=(*shape[:-1], 1)))
  return (rng.normal(size=shape) * sizes).astype(np.float32)


def _bits(tree):
  return jax.tree.map(lambda x: np.asarray(x).view(np.uint8), tree)


class BlockScaledTest(parameterized.TestCase):
  @parameterized.product(
    shape=((128, 128), (576, 300), (1, 1), (5, 257), (256, 64)),
    scale_format=block_scaled.FORMATS,
  )
  def test_is_the_loop(self, shape, scale_format):
    x = _random(*shape)
    got = block_scaled.quantise(x, scale_format=scale_format)
    values, scales = _loop(x, scale_format)
    np.testing.assert_array_equal(got.scales, scales)
    np.testing.assert_array_equal(
      got.values.view(np.uint8), values.view(np.uint8)
    )
    self.assertEqual(got.scales.shape, block_scaled.scales_shape(shape))
    self.assertEqual(got.dtype, ml_dtypes.float8_e4m3fn)
    self.assertEqual((got.shape, got.ndim), (shape, 2))

  @parameterized.product(
    scale_format=block_scaled.FORMATS,
    dtype=("float32", "bfloat16", "float16"),
    jit=(True, False),
  )
  def test_jax_gives_numpys_bits(self, scale_format, dtype, jit):
    x = _random(2, 3, 150, 140, seed=1)
    x[0, 0] *= 1e-36
    x[0, 1] *= 1e-41
    x[0, 2] = 0
    x[1, 0] *= 1e30 if dtype != "float16" else 1e3
    x = x.astype(dtype)

    def quantise(x):
      return block_scaled.quantise(x, scale_format=scale_format)

    ours = quantise(x)
    theirs = (jax.jit(quantise) if jit else quantise)(jnp.asarray(x))
    self.assertIsInstance(ours.values, np.ndarray)
    self.assertIsInstance(theirs.values, jax.Array)
    chex.assert_trees_all_equal(_bits(theirs), _bits(ours))
    again = theirs.dequantise("bfloat16")
    self.assertIsInstance(again, jax.Array)
    chex.assert_trees_all_equal(
      _bits(again), _bits(ours.dequantise("bfloat16"))
    )

  def test_jax_divides(self):
    """One product with a reciprocal would be enough to round otherwise."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(1024, 1024)).astype(ml_dtypes.bfloat16)
    ours = block_scaled.quantise(x)
    theirs = jax.jit(block_scaled.quantise)(x)
    chex.assert_trees_all_equal(_bits(theirs), _bits(ours))

  def test_every_power_of_two_is_its_own_scale(self):
    for exponent in range(-90, 100):
      x = np.full((2, 2), 448 * 2.0**exponent, np.float32)
      for scale_format in block_scaled.FORMATS:
        got = block_scaled.quantise(x, scale_format=scale_format)
        self.assertEqual(got.scales[0, 0], 2.0**exponent)
        np.testing.assert_array_equal(got.dequantise("float32"), x)
      above = np.nextafter(x, np.float32(np.inf)) * np.float32(1.001)
      got = block_scaled.quantise(above, scale_format="ue8m0")
      self.assertEqual(got.scales[0, 0], 2.0 ** (exponent + 1))

  @parameterized.parameters(*block_scaled.FORMATS)
  def test_never_overflows_to_nan(self, scale_format):
    """The quotient may round to more than 448; and it is the largest."""
    rng = np.random.default_rng(2)
    for seed in range(200):
      x = (rng.normal(size=(3, 3)) * 10.0 ** (seed % 20)).astype(np.float32)
      x[1, 1] = 448 * np.nextafter(np.float32(2.0**seed % 1e30), np.float32(9))
      got = block_scaled.quantise(x, scale_format=scale_format)
      values = got.values.astype(np.float32)
      self.assertTrue(np.isfinite(values).all())
      if scale_format == "float32":
        self.assertEqual(np.abs(values).max(), 448)

  def test_error_is_that_of_e4m3(self):
    """Half a unit of three bits, of the number or of 2^-6 of the block."""
    x = _random(256, 256, seed=3)
    scaled = block_scaled.quantise(x)
    error = np.abs(scaled.dequantise("float32") - x)
    scales = np.kron(scaled.scales, np.ones((128, 128)))
    bound = np.maximum(np.abs(x) / 16, scales * 2.0**-10)
    self.assertTrue((error <= bound * 1.0001).all())

  def test_rounds_once(self):
    """float32's product, not that of bfloat16 numbers."""
    x = _random(130, 130, seed=4)
    scaled = block_scaled.quantise(x)
    scales = np.kron(scaled.scales, np.ones((128, 128)))[:130, :130]
    exact = scaled.values.astype(np.float32) * scales.astype(np.float32)
    self.assertEqual(scaled.dequantise("float32").dtype, np.float32)
    np.testing.assert_array_equal(scaled.dequantise("float32"), exact)
    np.testing.assert_array_equal(
      scaled.dequantise("bfloat16"), exact.astype(ml_dtypes.bfloat16)
    )

  def test_blocks_of_zeros(self):
    x = np.zeros((200, 130), np.float32)
    x[150, 129] = -3
    scaled = block_scaled.quantise(x)
    np.testing.assert_array_equal(
      scaled.scales, np.array([[1, 1], [1, 3 / 448]], np.float32)
    )
    np.testing.assert_allclose(scaled.dequantise("float32"), x, rtol=1e-6)

  def test_what_is_not_finite_stays_alone(self):
    """It becomes NaN; its block's scale and neighbours do not change."""
    x = _random(130, 130, seed=8)
    plain = block_scaled.quantise(x)
    x[3, 4], x[129, 7] = np.inf, np.nan
    for here in ((3, 4), (129, 7)):
      plain.values[here] = np.nan
    for module in (np, jnp):
      got = block_scaled.quantise(module.asarray(x))
      chex.assert_trees_all_equal(_bits(got), _bits(plain))

  def test_stacks_are_their_matrices(self):
    x = _random(2, 3, 140, 20, seed=5)
    stack = block_scaled.quantise(x)
    self.assertEqual(stack.scales.shape, (2, 3, 2, 1))
    one = jax.tree.map(lambda leaf: leaf[1, 2], stack)
    self.assertIsInstance(one, block_scaled.BlockScaled)
    chex.assert_trees_all_equal(
      _bits(jax.tree.map(np.ascontiguousarray, one)),
      _bits(block_scaled.quantise(x[1, 2])),
    )
    np.testing.assert_array_equal(
      stack.dequantise("float32")[1, 2], one.dequantise("float32")
    )

  def test_transposes_with_its_scales(self):
    x = _random(200, 500, seed=6)
    ours, other = block_scaled.quantise(x), block_scaled.quantise(x.T)
    np.testing.assert_array_equal(ours.scales.T, other.scales)
    np.testing.assert_array_equal(
      ours.values.T.astype(np.float32), other.values.astype(np.float32)
    )

  def test_refuses(self):
    with self.assertRaisesRegex(
      ValueError, "scale_format='e8m0': expected float32 or ue8m0"
    ):
      block_scaled.quantise(np.ones((2, 2)), scale_format="e8m0")  # pyright: ignore
    with self.assertRaisesRegex(ValueError, r"x of shape \(2,\): expected a"):
      block_scaled.quantise(np.ones(2))


if __name__ == "__main__":
  absltest.main()
