"""FP8 products that XLA multiplies, against the emulation."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import fp8_native
from dsx.ops import fp8_product
from dsx.ops import platforms


def _drawn(shape, tile, seed) -> fp8.Quantised:
  rng = np.random.default_rng(seed)
  x = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape[-1:]))
  x *= np.exp(rng.standard_normal((*shape[:-1], 1)))
  return fp8.quantise(jnp.asarray(x, jnp.float32), tile)


class Fp8NativeTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("fprop", (40, 300), fp8.ROW_TILE, (300, 200), fp8.BLOCK_TILE),
    ("wgrad", (40, 300), fp8.ROW_TILE, (300, 200), fp8.COLUMN_TILE),
    ("batches", (3, 40, 130), fp8.ROW_TILE, (3, 130, 20), fp8.BLOCK_TILE),
  )
  def test_it_is_the_emulation(self, a_shape, a_tile, b_shape, b_tile):
    a, b = _drawn(a_shape, a_tile, 0), _drawn(b_shape, b_tile, 1)
    with platforms.compiling_for("tpu"):
      y = np.asarray(fp8_native.multiply(a, b))
    expected = np.asarray(fp8_product.multiply(a, b))
    size = np.abs(expected).max()
    np.testing.assert_allclose(y / size, expected / size, rtol=2e-6, atol=2e-6)

  def test_products_are_of_fp8_numbers_and_sums_float32(self):
    a = _drawn((8, 256), fp8.ROW_TILE, 0)
    b = _drawn((256, 8), fp8.BLOCK_TILE, 1)
    with platforms.compiling_for("tpu"):
      program = jax.jit(lambda a, b: fp8_native.multiply(a, b)).lower(a, b)
    products = [
      line
      for line in program.as_text().splitlines()
      if "stablehlo.dot_general" in line
    ]
    self.assertLen(products, 2)
    for line in products:
      self.assertIn(
        "(tensor<8x128xf8E4M3FN>, tensor<128x8xf8E4M3FN>) -> tensor<8x8xf32>",
        line,
      )

  def test_refuses_platforms_without_fp8_units(self):
    a, b = (_drawn((8, 8), fp8.BLOCK_TILE, i) for i in range(2))
    with self.assertRaisesRegex(ValueError, "platform='cpu': has no FP8 units"):
      fp8_native.multiply(a, b)

  @parameterized.parameters("TPU v5", "TPU v6 lite")
  def test_refuses_tpus_without_fp8_units(self, kind):
    device = jax.sharding.AbstractDevice(
      device_kind=kind, num_cores=1, platform="tpu"
    )
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    with (
      platforms.compiling_for("tpu"),
      jax.sharding.use_abstract_mesh(mesh),
      self.assertRaisesRegex(ValueError, f"platform='{kind}': has no FP8"),
    ):
      fp8_native.check()

  def test_refuses_shapes_that_do_not_meet(self):
    a, b = _drawn((8, 8), fp8.ROW_TILE, 0), _drawn((9, 8), fp8.BLOCK_TILE, 1)
    with (
      platforms.compiling_for("tpu"),
      self.assertRaisesRegex(ValueError, r"a \(8, 8\), b \(9, 8\): expected"),
    ):
      fp8_native.multiply(a, b)


if __name__ == "__main__":
  absltest.main()
