"""Bits of numbers that a dtype cannot hold, against casts."""

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np

from dsx.convert import finite
from dsx.convert import row_chunks

_STORED = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu")


def _dtype(name: str) -> np.dtype:
  return np.dtype(getattr(ml_dtypes, name, name))


class FiniteTest(parameterized.TestCase):
  @parameterized.product(
    stored=_STORED, rounded=("float32", "float16", "bfloat16")
  )
  def test_every_number_of_a_format(self, stored, rounded):
    """All 2^8 or 2^16 numbers; of float32, those around every limit."""
    dtype = _dtype(stored)
    bits = np.arange(2 ** min(8 * dtype.itemsize, 16), dtype=np.uint32)
    if stored == "float32":
      near = bits[::16] << 16
      bits = np.concatenate([near, near - 1, near + 1, near | 0x7FFF])
    array = bits.astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(all="ignore"):
      cast = array.astype(_dtype(rounded)).astype(np.float32)
    for part in np.split(array, 8):
      with np.errstate(all="ignore"):
        cast = part.astype(_dtype(rounded)).astype(np.float32)
      self.assertEqual(
        finite.count_lost(part, _dtype(rounded)), (~np.isfinite(cast)).sum()
      )

  def test_any_shape_and_order(self):
    x = np.ones((300, 5000), ml_dtypes.bfloat16)
    x[[1, 299], [4999, 0]] = np.nan
    for array in (x, x.T, x[::2], x[:, ::3].T, x.ravel()):
      wide = array.astype(np.float32)
      self.assertEqual(
        finite.count_lost(array, np.float32), np.isnan(wide).sum()
      )
    self.assertEqual(finite.count_lost(np.float32(np.inf)[...], np.float32), 1)
    self.assertEqual(finite.count_lost(np.ones((0, 3)), np.float32), 0)

  def test_overflow_by_rounding(self):
    x = np.float32([65519.9, -65520.0, 1e-30, 3.4e38])
    self.assertEqual(finite.count_lost(x, np.float16), 2)
    self.assertEqual(finite.count_lost(x, ml_dtypes.bfloat16), 1)
    self.assertEqual(finite.count_lost(x, np.float32), 0)


class RowChunksTest(parameterized.TestCase):
  @parameterized.parameters(
    (0,), (1,), (3_000_000,), (7, 0), (1000, 9000), (200, 8, 2), (128, 1 << 24)
  )
  def test_covers_every_row_in_whole_blocks(self, *shape):
    chunks = list(row_chunks.row_chunks(shape))
    reached = 0
    for rows in chunks:
      self.assertEqual(rows.start, reached)
      self.assertEqual(rows.start % 128, 0)
      self.assertGreater(rows.stop, rows.start)
      reached = rows.stop
    self.assertEqual(reached, shape[0])


if __name__ == "__main__":
  absltest.main()
