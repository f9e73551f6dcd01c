"""The dense FP8 kernel, interpreted, against the emulation."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import fp8_product
from dsx.ops import hopper_gemm
from dsx.ops import hopper_target

# float32 sums of a few hundred terms, added in other orders.
_CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def _drawn(shape, tile, seed, **options) -> fp8.Quantised:
  rng = np.random.default_rng(seed)
  # Every row and column has a magnitude of its own, so that no two scales
  # could be exchanged unnoticed.
  x = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape[-1:]))
  x *= np.exp(rng.standard_normal((*shape[:-1], 1)))
  return fp8.quantise(jnp.asarray(x, jnp.float32), tile, **options)


def _multiplied(a, b, dtype=jnp.float32, **options):
  with hopper_target.interpreted(**options):
    return jax.jit(lambda a, b: hopper_gemm.multiply(a, b, dtype))(a, b)


class HopperGemmTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("fprop", (256, 256, 384), fp8.ROW_TILE, fp8.BLOCK_TILE),
    ("wgrad", (128, 256, 256), fp8.ROW_TILE, fp8.COLUMN_TILE),
    ("ragged", (70, 200, 150), fp8.ROW_TILE, fp8.BLOCK_TILE),
    ("ragged_wgrad", (130, 72, 300), fp8.ROW_TILE, fp8.COLUMN_TILE),
    ("blocks", (200, 136, 256), fp8.BLOCK_TILE, fp8.BLOCK_TILE),
    ("whole", (96, 140, 260), (96, 260), (260, 140)),
  )
  def test_it_is_the_emulation(self, sizes, a_tile, b_tile):
    m, n, k = sizes
    a, b = _drawn((m, k), a_tile, 0), _drawn((k, n), b_tile, 1)
    y = _multiplied(a, b)
    expected = fp8_product.multiply(a, b)
    size = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(y / size, expected / size, **_CLOSE)

  def test_dgrad_multiplies_the_same_weights_transposed(self):
    dy = _drawn((128, 256), fp8.ROW_TILE, 0)
    w = _drawn((128, 256), fp8.BLOCK_TILE, 1)
    y = _multiplied(dy, w.transposed)
    expected = fp8_product.multiply(dy, w.transposed)
    size = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(y / size, expected / size, **_CLOSE)

  def test_batches_have_matrices_of_their_own(self):
    a = _drawn((3, 128, 130), fp8.ROW_TILE, 0)
    b = _drawn((3, 130, 128), fp8.BLOCK_TILE, 1)
    y = _multiplied(a, b)
    expected = fp8_product.multiply(a, b)
    size = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(y / size, expected / size, **_CLOSE)

  def test_bfloat16_is_the_sum_rounded_once(self):
    a = _drawn((128, 256), fp8.ROW_TILE, 0)
    b = _drawn((256, 128), fp8.BLOCK_TILE, 1)
    y = _multiplied(a, b, jnp.bfloat16)
    chex.assert_trees_all_equal(y, _multiplied(a, b).astype(jnp.bfloat16))

  def test_e5m2_is_a_format_too(self):
    a = _drawn((128, 128), fp8.ROW_TILE, 0, format="e5m2")
    b = _drawn((128, 128), fp8.BLOCK_TILE, 1, format="e5m2")
    y, expected = _multiplied(a, b), fp8_product.multiply(a, b)
    size = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(y / size, expected / size, **_CLOSE)

  def test_nan_stays_in_its_row(self):
    a = _drawn((128, 256), fp8.ROW_TILE, 0)
    values = a.values.at[5, 3].set(jnp.nan)
    a = fp8.Quantised(values, a.scales, a.tile)
    y = _multiplied(a, _drawn((256, 128), fp8.BLOCK_TILE, 1))
    chex.assert_trees_all_equal(
      jnp.isnan(y).any(1), jnp.arange(128, dtype=jnp.int32) == 5
    )

  def test_warpgroups_wait_for_each_other(self):
    # Three blocks for ten tiles of five slices: every buffer is used again,
    # within a tile and from tile to tile.
    a = _drawn((640, 640), fp8.ROW_TILE, 0)
    b = _drawn((640, 256), fp8.COLUMN_TILE, 1)
    y = _multiplied(a, b, multiprocessors=3, races=True)
    expected = fp8_product.multiply(a, b)
    size = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(y / size, expected / size, **_CLOSE)

  def test_nothing_gives_zeros(self):
    a = fp8.quantise(jnp.ones((4, 0)), (4, 128))
    b = fp8.quantise(jnp.ones((0, 3)), (128, 3))
    chex.assert_trees_all_equal(_multiplied(a, b), jnp.zeros((4, 3)))

  def test_refuses_other_platforms(self):
    a, b = _drawn((8, 8), fp8.ROW_TILE, 0), _drawn((8, 8), fp8.BLOCK_TILE, 1)
    with self.assertRaisesRegex(ValueError, "platform='cpu': hopper_gemm"):
      hopper_gemm.multiply(a, b)

  @parameterized.named_parameters(
    ("shapes", (8, 16), {}, (8, 8), {}, r"a \(8, 16\), b \(8, 8\)"),
    ("formats", (8, 8), {"format": "e5m2"}, (8, 8), {}, "b is float8_e4m3fn"),
  )
  def test_refuses(self, a_shape, a_options, b_shape, b_options, message):
    a = _drawn(a_shape, fp8.ROW_TILE, 0, **a_options)
    b = _drawn(b_shape, fp8.BLOCK_TILE, 1, **b_options)
    with self.assertRaisesRegex(ValueError, message):
      _multiplied(a, b)

  def test_refuses_tiles_that_end_within_128_terms(self):
    a = _drawn((8, 256), (1, 64), 0)
    b = _drawn((256, 8), fp8.BLOCK_TILE, 1)
    with self.assertRaisesRegex(ValueError, "a .* has tiles"):
      _multiplied(a, b)

  def test_refuses_fp8_results(self):
    a, b = _drawn((8, 8), fp8.ROW_TILE, 0), _drawn((8, 8), fp8.BLOCK_TILE, 1)
    with self.assertRaisesRegex(ValueError, "out_dtype=float8_e4m3fn"):
      _multiplied(a, b, jnp.float8_e4m3fn)


if __name__ == "__main__":
  absltest.main()
