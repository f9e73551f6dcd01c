"""Tests of what quantisation is said to have lost."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import fp8_probe


def _read(x, tile=fp8.ROW_TILE, **kwargs):
  vector = jax.jit(
    lambda x: fp8_probe.statistics(x, fp8.quantise(x, tile, **kwargs))
  )(x)
  return np.asarray(vector), fp8_probe.read(vector)


class StatisticsTest(parameterized.TestCase):
  def test_literal(self):
    # 448 is the largest; 2**-10 is half of the smallest number, and ties go
    # to the even one, zero.
    x = np.zeros((2, 130), np.float32)
    x[0, :5] = [448.0, -448.0, 1.0, 2.0**-10, 2.0**-9]
    x[1, 129] = 448.0 * 2**-3
    vector, read = _read(x)
    self.assertEqual(vector.shape, (fp8_probe.WIDTH,))
    self.assertEqual(vector.dtype, np.float32)
    np.testing.assert_array_equal(vector[:4], [6, 1, 3, 0])
    # Two of the four tiles are zeros: they have no scale.
    self.assertEqual(vector[4:].sum(), 2)
    self.assertEqual(read.underflow, 1 / 6)
    self.assertEqual(read.saturated, 3 / 6)
    self.assertEqual(read.not_finite, 0)
    self.assertEqual((read.scale_min, read.scale_max), (-3, 0))

  def test_what_is_not_finite_is_counted_apart(self):
    x = np.ones((128, 128), np.float32)
    x[0, 0], x[1, 1], x[2, 2] = np.nan, np.inf, -np.inf
    x[3] = 0
    x[3, 0] = np.nan  # its tile has no scale
    vector, read = _read(x)
    n = 127 * 128 - 3
    np.testing.assert_array_equal(vector[:4], [n, 0, n, 4])
    self.assertEqual(vector[4:].sum(), 127)
    self.assertEqual(read.not_finite, 4 / (n + 4))
    self.assertEqual(read.scale_min, read.scale_max)

  @parameterized.parameters(
    (fp8.ROW_TILE, "e4m3", "float32", np.float32),
    (fp8.COLUMN_TILE, "e4m3", "ue8m0", jnp.bfloat16),
    (fp8.BLOCK_TILE, "e5m2", "float32", jnp.bfloat16),
    ((200, 300), "e5m2", "ue8m0", np.float32),
  )
  def test_against_loops_over_tiles(self, tile, format, scale_format, dtype):
    rng = np.random.default_rng(0)
    shape = (2, 200, 300)
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-40, 20, shape)
    x = np.where(rng.random(shape) < 0.1, 0, x)
    x[1, :140, 130:] = 0
    x = np.asarray(x, dtype)
    vector, read = _read(x, tile, format=format, scale_format=scale_format)
    q = fp8.quantise(x, tile, format=format, scale_format=scale_format)
    exponents = []
    for i in range(2):
      for r in range(0, 200, tile[0]):
        for c in range(0, 300, tile[1]):
          if x[i, r : r + tile[0], c : c + tile[1]].astype(np.float32).any():
            scale = q.scales[i, r // tile[0], c // tile[1]]
            exponents.append(int(np.floor(np.log2(np.float64(scale)))))
    values = q.values.astype(np.float32)
    wide = x.astype(np.float32)
    np.testing.assert_array_equal(
      vector[:4],
      [
        (wide != 0).sum(),
        ((wide != 0) & (values == 0)).sum(),
        (np.abs(values) == fp8.LARGEST[format]).sum(),
        0,
      ],
    )
    self.assertEqual(vector[4:].sum(), len(exponents))
    ordered = np.sort(exponents)
    self.assertEqual(read.scale_min, ordered[0])
    self.assertEqual(read.scale_max, ordered[-1])
    self.assertEqual(read.scale_median, ordered[len(ordered) // 2])

  def test_scales_beyond_the_octaves_are_at_the_ends(self):
    x = np.full((2, 128), 1e-32, np.float32)
    x[1] = 3e38
    _, read = _read(x)
    self.assertEqual(read.scale_min, fp8_probe.LOWEST)
    highest = fp8_probe.LOWEST + fp8_probe.WIDTH - 5
    self.assertEqual(read.scale_max, highest)

  def test_zeros_have_no_shares(self):
    vector, read = _read(np.zeros((3, 5), np.float32))
    np.testing.assert_array_equal(vector, np.zeros(fp8_probe.WIDTH))
    for value in (read.underflow, read.saturated, read.scale_median):
      self.assertTrue(np.isnan(value))

  def test_sums_add_up(self):
    rng = np.random.default_rng(1)
    x = np.asarray(rng.normal(size=(256, 300)), np.float32)
    x[7] *= 1e-6
    whole, _ = _read(x)
    parts = sum(_read(part)[0] for part in np.split(x, 4))
    np.testing.assert_array_equal(parts, whole)

  def test_counts_past_what_float32_counts(self):
    # 2**24 + 2**22 ones and a single value that vanishes.
    x = np.ones((5120, 4096), np.float32)
    x[5, 5] = 1e-9
    vector, read = _read(x)
    # x.size - 1 is odd, and rounded to a float32.
    np.testing.assert_array_equal(vector[:4], [x.size, 1, x.size, 0])
    self.assertAlmostEqual(read.underflow * x.size, 1, places=6)

  def test_counts_past_int32(self):
    # 40001 is no multiple of 256, and float32 sums of it drift.
    counts = jnp.full((2**17,), 40001, jnp.int32)
    total = fp8_probe._total(counts)
    self.assertEqual(float(total), float(np.float32(2**17 * 40001)))

  def test_reads_many_vectors_at_once(self):
    a, read_a = _read(np.ones((4, 128), np.float32))
    b, read_b = _read(np.full((4, 128), 3e-5, np.float32))
    read = fp8_probe.read(np.stack([a, b])[:, None])
    self.assertEqual(read.scale_median.shape, (2, 1))
    self.assertEqual(read.scale_median[0, 0], read_a.scale_median)
    self.assertEqual(read.scale_median[1, 0], read_b.scale_median)


if __name__ == "__main__":
  absltest.main()
