"""FP8 rows with one power of two per 128 values."""

from absl.testing import parameterized
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dsx.ops import fp8
from dsx.ops import tile_scaled

_quantise = jax.jit(tile_scaled.quantise)


def _oracle(x: np.ndarray) -> np.ndarray:
  """Tile by tile, in numpy."""
  out = np.zeros_like(x)
  for row in range(x.shape[0]):
    for start in range(0, x.shape[1], 128):
      tile = x[row, start : start + 128]
      largest = np.abs(tile).max()
      scale = 2.0 ** np.ceil(np.log2(largest / 448)) if largest else 1.0
      scale = np.float32(max(scale, 2.0**-100))
      values = (tile / scale).astype(ml_dtypes.float8_e4m3fn)
      out[row, start : start + 128] = values.astype(np.float32) * scale
  return out


class TileScaledTest(parameterized.TestCase):
  def test_literal(self):
    """448 fits with scale 1, 449 needs 2, a tile of zeros has 1."""
    x = np.zeros((1, 384), np.float32)
    x[0, 0], x[0, 128] = 448, 449
    tiles = tile_scaled.quantise(jnp.asarray(x))
    self.assertEqual(tiles.scales.tolist(), [[127, 128, 127]])
    self.assertEqual(tiles.dequantise(jnp.float32)[0, 0], 448)
    self.assertEqual(tiles.dequantise(jnp.float32)[0, 128], 448)

  @settings(max_examples=40, deadline=None)
  @given(
    seed=st.integers(0, 2**31 - 1),
    width=st.sampled_from([1, 127, 128, 129, 300]),
    exponent=st.integers(-80, 80),
  )
  def test_equals_the_oracle(self, seed, width, exponent):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, width)) * 2.0**exponent
    x = x.astype(np.float32)
    found = _quantise(x).dequantise(jnp.float32)
    np.testing.assert_array_equal(found, _oracle(x))

  def test_quantising_again_changes_nothing(self):
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    once = _quantise(x).dequantise(jnp.float32)
    again = _quantise(once).dequantise(jnp.float32)
    np.testing.assert_array_equal(once, again)

  def test_is_fp8_by_rows(self):
    """The same numbers as `fp8.quantise`, scales in a byte."""
    x = np.random.default_rng(1).normal(size=(2, 3, 200)).astype(np.float32)
    tiles = _quantise(x)
    expected = fp8.quantise(x, fp8.ROW_TILE, scale_format="ue8m0")
    np.testing.assert_array_equal(
      np.asarray(tiles.values).view(np.uint8), expected.values.view(np.uint8)
    )
    self.assertEqual(tiles.scales.dtype, jnp.uint8)
    np.testing.assert_array_equal(
      tile_scaled.powers(tiles.scales), expected.scales
    )
    one = _quantise(x[0, 0])
    np.testing.assert_array_equal(one.scales, tiles.scales[0, 0])

  def test_what_is_not_finite_stays_alone(self):
    x = np.ones((1, 256), np.float32)
    x[0, 3], x[0, 4] = np.nan, -np.inf
    tiles = _quantise(x)
    found = np.array(tiles.dequantise(jnp.float32))
    self.assertTrue(np.isnan(found[0, 3:5]).all())
    found[0, 3:5] = 1
    np.testing.assert_array_equal(found, np.ones_like(x))
    self.assertEqual(tiles.scales[0, 0], tiles.scales[0, 1])
