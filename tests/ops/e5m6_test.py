"""E5M6 against its definition, its bytes, and what becomes of it in FP8."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
from hypothesis import given
from hypothesis import settings
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import e5m6
from dsx.ops import fp8
from tests.ops import fp8_matrices
from tests.ops import fp8_oracle

_encode = jax.jit(e5m6.encode)
_decode = jax.jit(e5m6.decode, static_argnames="dtype")


@jax.jit
def _by_columns(x):
  return fp8.quantise(x, fp8.COLUMN_TILE, scale_format="ue8m0")


def _bits(x: e5m6.E5M6) -> np.ndarray:
  """The 12 bits of each value, unpacked by hand."""
  high, low = np.asarray(x.high), np.asarray(x.low)
  half = low.shape[-1]
  bits = np.zeros(high.shape, np.uint16)
  for i in range(high.shape[-1]):
    byte = low[..., i] if i < half else low[..., i - half]
    nibble = byte & 15 if i < half else byte >> 4
    bits[..., i] = high[..., i].astype(np.uint16) << 4 | nibble
  return bits


class E5M6Test(parameterized.TestCase):
  @settings(max_examples=25, deadline=None)
  @given(x=fp8_matrices.matrices())
  def test_is_the_definition(self, x):
    got = _encode(jnp.asarray(x))
    bits, scales = fp8_oracle.e5m6(x)
    np.testing.assert_array_equal(got.scales, scales)
    np.testing.assert_array_equal(_bits(got), bits)
    numbers = fp8_oracle.e5m6_numbers(bits, scales)
    for dtype in (jnp.float32, jnp.bfloat16):
      again = np.asarray(_decode(got, dtype).astype(jnp.float32))
      np.testing.assert_array_equal(again, numbers.astype(np.float32))
      np.testing.assert_array_equal(np.signbit(again), np.signbit(numbers))

  def test_literal(self):
    """65024 fits with scale 1; 1 + 1/128 is a tie, and 2**-20 a denormal."""
    x = np.zeros((1, 129), np.float32)
    x[0, :6] = 65024, 1 + 1 / 128, 1 + 3 / 128, 2.0**-20, 2.0**-21, -np.inf
    x[0, 128] = 65025
    got = e5m6.encode(x)
    chex.assert_trees_all_equal(got, _encode(x))
    self.assertEqual(got.scales.tolist(), [[127, 128]])
    again = np.asarray(e5m6.decode(got, jnp.float32))
    expected = [65024, 1, 1 + 2 / 64, 2.0**-20, 0, np.nan, 0]
    np.testing.assert_array_equal(again[0, :7], np.array(expected, np.float32))
    self.assertEqual(again[0, 128], 65024)  # 32512.5, to 7 bits, times 2

  def test_is_the_upper_part_of_float16(self):
    """Every number of the format stays what it is, where scales are 1."""
    bits = np.arange(0x1000, dtype=np.uint16)
    numbers = (bits << 4).view(np.float16)
    numbers = numbers[np.isfinite(numbers)].reshape(62, 64)
    rows = np.append(numbers, np.full_like(numbers[:, :1], 65024), 1)
    got = _encode(rows)
    np.testing.assert_array_equal(_bits(got), rows.view(np.uint16) >> 4)
    np.testing.assert_array_equal(_decode(got, jnp.float16), rows)

  @parameterized.parameters(1, 7, 256, 300)
  def test_takes_twelve_bits(self, width):
    x = np.random.default_rng(0).normal(size=(2, 3, width)).astype(np.float32)
    got = _encode(x)
    self.assertEqual(got.shape, x.shape)
    rows, half, tiles = 6, -(-width // 2), -(-width // 128)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(got))
    self.assertEqual(size, rows * (width + half + tiles))
    error = np.abs(_decode(got, jnp.float32) - x)
    self.assertLessEqual((error / np.abs(x)).max(), 2.0**-7)

  def test_waits_in_so_many_bytes(self):
    """In a compiled program too, between its forward and backward."""

    @jax.custom_vjp
    def keep(x):
      return x * 1.0

    keep.defvjp(
      lambda x: (x * 1.0, _encode(x)),
      lambda kept, dy: (dy * _decode(kept, dy.dtype),),
    )
    x = jax.ShapeDtypeStruct((256, 512), jnp.float32)
    _, vjp = jax.eval_shape(lambda x: jax.vjp(keep, x), x)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(vjp))
    self.assertEqual(size, 256 * 512 * 3 // 2 + 256 * 4)

  @settings(max_examples=15, deadline=None)
  @given(x=fp8_matrices.matrices())
  def test_becomes_fp8_with_one_rounding(self, x):
    """Other tiles round the kept numbers once: their scales are exact."""
    kept = _encode(jnp.asarray(x))
    bits, scales = fp8_oracle.e5m6(x)
    numbers = fp8_oracle.e5m6_numbers(bits, scales).astype(np.float32)
    values, scales = fp8_oracle.quantise(
      numbers, fp8.COLUMN_TILE, "e4m3", "ue8m0"
    )
    for dtype in (jnp.float32, jnp.bfloat16):
      got = _by_columns(_decode(kept, dtype))
      np.testing.assert_array_equal(got.scales, scales)
      np.testing.assert_array_equal(
        np.asarray(got.values).view(np.uint8), values.view(np.uint8)
      )


if __name__ == "__main__":
  absltest.main()
