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


def _assert_emulated(y, a, b, rtol=2e-6):
  """Sums of a few hundred terms, added in other orders."""
  expected = np.asarray(fp8_product.multiply(a, b))
  size = np.abs(expected).max()
  y = np.asarray(y, np.float32)
  np.testing.assert_allclose(y / size, expected / size, rtol=rtol, atol=2e-6)


class HopperGemmTest(parameterized.TestCase):
  def test_batches_of_ragged_matrices_the_right_one_transposed(self):
    # As Dgrad has them.
    dy = _drawn((2, 70, 150), fp8.ROW_TILE, 0)
    w = _drawn((2, 200, 150), fp8.BLOCK_TILE, 1)
    _assert_emulated(_multiplied(dy, w.transposed), dy, w.transposed)

  def test_tiles_along_terms_on_both_sides(self):
    # As Wgrad has them. Two blocks for ten tiles of four slices: all buffers
    # are used again, within a tile and from tile to tile, and races looked for.
    x = _drawn((510, 600), fp8.COLUMN_TILE, 0).transposed
    dy = _drawn((510, 256), fp8.COLUMN_TILE, 1)
    _assert_emulated(_multiplied(x, dy, multiprocessors=2, races=True), x, dy)

  def test_larger_tiles_another_format_and_bfloat16(self):
    a = _drawn((130, 256), fp8.BLOCK_TILE, 0, format="e5m2")
    a = fp8.Quantised(a.values.at[5, 3].set(jnp.nan), a.scales, a.tile)
    b = _drawn((256, 136), (256, 136), 1, format="e5m2")
    y = _multiplied(a, b, jnp.bfloat16)
    chex.assert_type(y, jnp.bfloat16)
    # What is not a number stays in its row.
    self.assertTrue(np.isnan(np.asarray(y[5])).all())
    a = fp8.Quantised(a.values.at[5].set(0), a.scales, a.tile)
    _assert_emulated(y.at[5].set(0), a, b, rtol=2**-8)

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
