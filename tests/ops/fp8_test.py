"""Tiles of FP8 against the definition, in numpy and in JAX."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dsx.ops import fp8
from tests.ops import fp8_matrices
from tests.ops import fp8_oracle

_TILES = (fp8.ROW_TILE, fp8.COLUMN_TILE, fp8.BLOCK_TILE, None)
_jitted = jax.jit(
  fp8.quantise, static_argnames=("tile", "format", "scale_format")
)


def _bits(tree):
  return jax.tree.map(lambda x: np.asarray(x).view(np.uint8), tree)


class Fp8Test(parameterized.TestCase):
  @settings(max_examples=30, deadline=None)
  @given(
    x=fp8_matrices.matrices(fp8_matrices.any_shape()),
    tile=st.sampled_from(_TILES),
    format=st.sampled_from(sorted(fp8.FORMATS)),
    scale_format=st.sampled_from(fp8.SCALE_FORMATS),
  )
  def test_numpy_is_the_definition(self, x, tile, format, scale_format):
    tile = tile or x.shape
    values, scales = fp8_oracle.quantise(x, tile, format, scale_format)
    got = fp8.quantise(x, tile, format=format, scale_format=scale_format)
    self.assertIsInstance(got.values, np.ndarray)
    expected = fp8.Quantised(values, scales, tile)
    chex.assert_trees_all_equal(_bits(got), _bits(expected))

  @settings(max_examples=50, deadline=None)
  @given(
    x=fp8_matrices.matrices(),
    tile=st.sampled_from(_TILES),
    format=st.sampled_from(sorted(fp8.FORMATS)),
    scale_format=st.sampled_from(fp8.SCALE_FORMATS),
  )
  def test_jax_is_the_definition(self, x, tile, format, scale_format):
    tile = tile or x.shape
    values, scales = fp8_oracle.quantise(x, tile, format, scale_format)
    got = _jitted(
      jnp.asarray(x), tile, format=format, scale_format=scale_format
    )
    self.assertIsInstance(got.values, jax.Array)
    self.assertEqual(got.scales.shape, fp8.scales_shape(x.shape, tile))
    expected = fp8.Quantised(values, scales, tile)
    chex.assert_trees_all_equal(_bits(got), _bits(expected))

  @settings(max_examples=15, deadline=None)
  @given(
    x=fp8_matrices.matrices(((130, 140),)), tile=st.sampled_from(_TILES[:3])
  )
  def test_jit_changes_nothing(self, x, tile):
    x = jnp.asarray(x)
    got = _bits(fp8.quantise(x, tile))
    chex.assert_trees_all_equal(got, _bits(_jitted(x, tile)))

  @parameterized.product(
    format=tuple(fp8.FORMATS), scale_format=fp8.SCALE_FORMATS
  )
  def test_rounds_every_float16(self, format, scale_format):
    """As ml_dtypes does: ties, denormals, carries, both signs."""
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    limit = fp8.LARGEST[format]
    numbers = numbers[np.abs(numbers.astype(np.float32)) <= limit]
    numbers = np.append(numbers, np.float16(limit))[None].astype(np.float32)
    got = _jitted(
      numbers, numbers.shape, format=format, scale_format=scale_format
    )
    self.assertEqual(got.scales[0, 0], 1)
    expected = numbers.astype(fp8.FORMATS[format])
    np.testing.assert_array_equal(_bits(got.values), _bits(expected))

  @parameterized.parameters(*fp8.FORMATS)
  def test_keeps_every_number_of_the_format(self, format):
    numbers = np.arange(256, dtype=np.uint8).view(fp8.FORMATS[format])
    finite = numbers[np.isfinite(numbers.astype(np.float32))][None]
    got = _jitted(finite.astype(np.float32), finite.shape, format=format)
    self.assertEqual(got.scales[0, 0], 1)
    np.testing.assert_array_equal(_bits(got.values), _bits(finite))

  @parameterized.parameters("numpy", "jax")
  def test_literal(self, module):
    """Two tiles of one row: 448 and 896 decide; NaN and infinity do not."""
    x = np.zeros((1, 256), np.float32)
    x[0, :5] = 448, -1, np.nan, np.inf, 2.0**-9
    x[0, 128:132] = 896, 2.0**-9, -np.inf, -0.0
    x = jnp.asarray(x) if module == "jax" else x
    got = fp8.quantise(x, fp8.ROW_TILE)
    self.assertEqual(got.scales.tolist(), [[1, 2]])
    values = np.asarray(got.values).astype(np.float32)[0]
    nan = np.nan
    np.testing.assert_array_equal(values[:6], [448, -1, nan, nan, 2.0**-9, 0])
    # Half of the smallest denormal is a tie, which goes to zero.
    np.testing.assert_array_equal(values[128:132], [448, 0, nan, 0])
    self.assertTrue(np.signbit(values[131]))
    wide = np.asarray(got.dequantise(jnp.float32))[0]
    np.testing.assert_array_equal(wide[:2], [448, -1])
    self.assertEqual(wide[128], 896)

  def test_an_outlier_costs_its_own_tile_only(self):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 384)).astype(np.float32)
    with_outlier = x.copy()
    with_outlier[7, 130] = 1e6
    for tile, here in (
      (fp8.ROW_TILE, np.s_[7:8, 128:256]),
      (fp8.COLUMN_TILE, np.s_[0:128, 130:131]),
      (fp8.BLOCK_TILE, np.s_[0:128, 128:256]),
    ):
      a, b = (
        fp8.quantise(v, tile).dequantise(np.float32) for v in (x, with_outlier)
      )
      differs = a != b
      self.assertTrue(differs[here].any())
      differs[here] = False
      self.assertFalse(differs.any(), tile)

  def test_only_powers_of_two_are_ue8m0(self):
    x = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)
    got = fp8.quantise(x, fp8.ROW_TILE, scale_format="ue8m0")
    fraction, _ = np.frexp(got.scales)
    np.testing.assert_array_equal(fraction, np.full_like(fraction, 0.5))
    fine = fp8.quantise(x, fp8.ROW_TILE)
    self.assertTrue((got.scales >= fine.scales).all())
    self.assertTrue((got.scales < 2 * fine.scales).all())

  @parameterized.product(tile=_TILES[:3])
  def test_stacks_are_their_matrices(self, tile):
    x = np.random.default_rng(2).normal(size=(2, 3, 130, 140))
    x = jnp.asarray(x, jnp.float32)
    stack, one = _jitted(x, tile), _jitted(x[1, 2], tile)
    chex.assert_trees_all_equal(
      _bits(jax.tree.map(lambda leaf: leaf[1, 2], stack)), _bits(one)
    )
    chex.assert_trees_all_equal(
      stack.dequantise(jnp.bfloat16)[1, 2], one.dequantise(jnp.bfloat16)
    )

  @parameterized.product(tile=_TILES[:3])
  def test_transposes_with_its_tiles(self, tile):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(150, 260)), "float32")
    turned = _jitted(x, tile).transposed
    directly = _jitted(x.T, (tile[1], tile[0]))
    self.assertEqual(turned.tile, directly.tile)
    chex.assert_trees_all_equal(_bits(turned), _bits(directly))
    self.assertEqual(turned.shape, (260, 150))

  def test_bfloat16_is_what_it_is_in_float32(self):
    x = (
      np.random.default_rng(4).normal(size=(9, 200)).astype(ml_dtypes.bfloat16)
    )
    a = _jitted(x, fp8.ROW_TILE)
    b = _jitted(x.astype(np.float32), fp8.ROW_TILE)
    chex.assert_trees_all_equal(_bits(a), _bits(b))

  def test_refuses(self):
    x = np.ones((2, 2), np.float32)
    with self.assertRaisesRegex(ValueError, "format='e3m4': expected e4m3 or"):
      fp8.quantise(x, fp8.ROW_TILE, format="e3m4")  # pyright: ignore
    with self.assertRaisesRegex(ValueError, "scale_format='e8': expected"):
      fp8.quantise(x, fp8.ROW_TILE, scale_format="e8")  # pyright: ignore
    with self.assertRaisesRegex(ValueError, r"x of shape \(2,\): expected a"):
      fp8.quantise(x[0], fp8.ROW_TILE)


if __name__ == "__main__":
  absltest.main()
