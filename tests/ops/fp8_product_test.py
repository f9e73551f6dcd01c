"""Products of FP8 against the definition, and what promotion buys."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import fp8_product
from tests.ops import fp8_matrices
from tests.ops import fp8_oracle

_jitted = jax.jit(
  fp8_product.multiply, static_argnames=("accumulation", "promote")
)
# What sums in a defined order, and so has the same bits everywhere.
_DEFINED = ("exact", "tensor_core", "tensor_core_floor")
# Tiles of a and of b; None is the whole matrix.
_TILES = (
  (fp8.ROW_TILE, fp8.BLOCK_TILE),
  (fp8.ROW_TILE, fp8.COLUMN_TILE),
  (fp8.BLOCK_TILE, fp8.BLOCK_TILE),
  (None, None),
)
# M, K, N: one term, part of an instruction, one slice, several, ragged.
_SHAPES = ((1, 1, 1), (3, 50, 2), (2, 128, 3), (3, 300, 2), (130, 40, 1))


def _quantised(
  x,
  tile,
  format: fp8.Format = "e4m3",
  scale_format: fp8.ScaleFormat = "float32",
):
  return fp8.quantise(
    x, tile or x.shape, format=format, scale_format=scale_format
  )


def _random(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _oracle(a, b, accumulation, promote):
  a, b = ((q.values, q.scales, q.tile) for q in (a, b))
  return fp8_oracle.multiply(a, b, accumulation, promote)


@st.composite
def _factors(draw, extreme):
  """Two matrices that fit together, quantised in numpy."""
  m, k, n = draw(st.sampled_from(_SHAPES))
  tiles = draw(st.sampled_from(_TILES))
  format = st.sampled_from(sorted(fp8.FORMATS))
  scale_format = draw(st.sampled_from(fp8.SCALE_FORMATS))
  return tuple(
    _quantised(
      draw(fp8_matrices.matrices((shape,), extreme)),
      tile,
      draw(format),
      scale_format,
    )
    for shape, tile in zip(((m, k), (k, n)), tiles, strict=True)
  )


class Fp8ProductTest(parameterized.TestCase):
  @settings(max_examples=30, deadline=None)
  @given(
    factors=_factors(extreme=False),
    accumulation=st.sampled_from(_DEFINED),
    promote=st.booleans(),
    jit=st.booleans(),
  )
  def test_is_the_definition(self, factors, accumulation, promote, jit):
    a, b = factors
    fine = a.scales.shape[-1] > 1 or b.scales.shape[-2] > 1
    promote |= accumulation == "exact" and fine
    multiply = _jitted if jit else fp8_product.multiply
    got = multiply(a, b, accumulation=accumulation, promote=promote)
    np.testing.assert_array_equal(got, _oracle(a, b, accumulation, promote))

  @settings(max_examples=20, deadline=None)
  @given(factors=_factors(extreme=True), accumulation=st.sampled_from(_DEFINED))
  def test_is_the_definition_at_the_ends_of_float32(
    self, factors, accumulation
  ):
    a, b = factors
    with np.errstate(over="ignore", invalid="ignore"):
      expected = _oracle(a, b, accumulation, True)
    got = _jitted(a, b, accumulation=accumulation)
    np.testing.assert_array_equal(got, expected)

  @parameterized.product(
    formats=(("e4m3", "e5m2"), ("e5m2", "e5m2")), promote=(True, False)
  )
  def test_e5m2_is_exact(self, formats, promote):
    """Sums that neither float64 nor int64 has room for."""
    rng = np.random.default_rng(0)
    size = 2.0 ** rng.integers(-16, 15, size=(4, 128))
    x = (size * rng.normal(size=(4, 128))).astype(np.float32)
    x[:, 64:] = -x[:, :64] * (1 + (rng.random((4, 64)) < 0.1))
    y = np.abs(x[:, ::-1].T) + np.float32(2.0**-14)
    x[:, 0] = y[0] = 2.0**15
    a = _quantised(x, None, formats[0], "ue8m0")
    b = _quantised(y, None, formats[1], "ue8m0")
    got = _jitted(a, b, accumulation="exact", promote=promote)
    np.testing.assert_array_equal(got, _oracle(a, b, "exact", promote))

  @parameterized.parameters(True, False)
  def test_float32_is_exact_where_nothing_rounds(self, promote):
    """Integers below 2**24, scales that are powers of two."""
    rng = np.random.default_rng(1)
    x = rng.integers(-15, 16, size=(20, 640)).astype(np.float32)
    y = rng.integers(-15, 16, size=(640, 30)).astype(np.float32)
    tiles = _TILES[0] if promote else (None, None)
    if promote:
      # 448 * 8 / 448 = 8 is the scale of every tile of a.
      x[:, ::128], y[::128] = 15 * 8, 0
    a, b = (
      _quantised(v, tile, scale_format="ue8m0")
      for v, tile in zip((x, y), tiles, strict=True)
    )
    exact = a.dequantise(np.float64) @ b.dequantise(np.float64)
    for accumulation in ("float32", "exact"):
      got = _jitted(a, b, accumulation=accumulation, promote=promote)
      np.testing.assert_array_equal(got, exact)
      self.assertEqual(got.dtype, jnp.float32)

  @settings(max_examples=15, deadline=None)
  @given(factors=_factors(extreme=False))
  def test_float32_is_near(self, factors):
    """Within 2**-20 of the sum of magnitudes."""
    a, b = factors
    x, y = (q.dequantise(np.float64) for q in (a, b))
    got = np.asarray(_jitted(a, b))
    with np.errstate(invalid="ignore"):
      exact, size = x @ y, np.abs(x) @ np.abs(y)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    seen = ~np.isnan(exact)
    error = np.abs(got - exact)[seen]
    self.assertTrue((error <= 2.0**-20 * size[seen] + 1e-37).all())

  @parameterized.parameters(
    ("tensor_core", 2**14), ("tensor_core_floor", 2**14 - 2)
  )
  def test_keeps_fourteen_bits(self, accumulation, less):
    """2**14 leaves no bit for 1; -1 is cut towards zero, or downwards."""

    def product(*terms):
      x = np.zeros((1, 64), np.float32)
      y = np.zeros((64, 1), np.float32)
      for i, (left, right) in terms:
        x[0, i], y[i, 0] = left, right
      x[0, 63] = y[62, 0] = 448  # so that both scales are 1
      a, b = (_quantised(v, None) for v in (x, y))
      return float(_jitted(a, b, accumulation=accumulation)[0, 0])

    big = (0, (128, 128))
    self.assertEqual(product((1, (1, 1))), 1)
    self.assertEqual(product(big, (1, (1, 1))), 2**14)
    self.assertEqual(product(big, (1, (-1, 1))), less)
    self.assertEqual(product(big, (1, (1, 1)), (2, (1, 1))), 2**14)
    # In the next instruction it is the sum so far that counts.
    self.assertEqual(product(big, (40, (2, 1))), 2**14 + 2)
    self.assertEqual(product(big, (40, (1, 1))), 2**14)
    self.assertEqual(product((0, (1, 1)), (40, (128, 128))), 2**14)

  @parameterized.parameters(True, False)
  def test_promotion_brings_the_error_down(self, fine):
    """Section 3.3.2: "nearly 2%" at K = 4096 without it.

    The largest error of the sums, relative to their root mean square: of 2**16
    sums it is a little less than of a million. With it, that is what one sum of
    128 has.
    """
    tiles = (fp8.ROW_TILE, fp8.BLOCK_TILE) if fine else (None, None)
    a = _quantised(_random(256, 4096, seed=2), tiles[0])
    b = _quantised(_random(4096, 256, seed=3), tiles[1])
    exact = a.dequantise(np.float64) @ b.dequantise(np.float64)

    def error(accumulation, promote):
      got = _jitted(a, b, accumulation=accumulation, promote=promote)
      return np.abs(got - exact).max() / np.sqrt((exact**2).mean())

    self.assertBetween(error("tensor_core", False), 0.01, 0.025)
    self.assertLess(error("tensor_core", True), 0.001)
    self.assertGreater(error("tensor_core_floor", False), 0.1)
    self.assertLess(error("tensor_core_floor", True), 0.01)
    self.assertLess(error("float32", True), 1e-5)

  def test_scales_in_the_tensor_core_are_scales_after_it(self):
    """Where they do not change and are powers of two."""
    x, y = _random(5, 512, seed=4), _random(512, 6, seed=5)
    x[:, ::128], y[::128] = 5, 5  # the largest of every tile
    fine = (
      _quantised(x, fp8.ROW_TILE, scale_format="ue8m0"),
      _quantised(y, fp8.COLUMN_TILE, scale_format="ue8m0"),
    )
    whole = (_quantised(v, None, scale_format="ue8m0") for v in (x, y))
    how = {"accumulation": "tensor_core", "promote": False}
    np.testing.assert_array_equal(_jitted(*fine, **how), _jitted(*whole, **how))

  @parameterized.parameters(*fp8_product.ACCUMULATIONS)
  def test_stacks_are_their_matrices(self, accumulation):
    a = fp8.quantise(_random(2, 3, 4, 260, seed=6), fp8.ROW_TILE)
    b = fp8.quantise(_random(2, 3, 260, 5, seed=7), fp8.BLOCK_TILE)
    got = _jitted(a, b, accumulation=accumulation)
    self.assertEqual(got.shape, (2, 3, 4, 5))
    one = jax.tree.map(lambda leaf: leaf[1, 2], (a, b))
    expected = _jitted(*one, accumulation=accumulation)
    np.testing.assert_allclose(got[1, 2], expected, rtol=2e-6, atol=1e-6)
    if accumulation != "float32":
      np.testing.assert_array_equal(got[1, 2], expected)

  @parameterized.parameters(*_DEFINED)
  def test_is_the_same_inside_a_larger_program(self, accumulation):
    """Quantised, multiplied and added to, in a scan: no other rounding."""
    x, y = _random(3, 9, 260, seed=8), _random(260, 7, seed=9)

    def product(x):
      a, b = _quantised(x, fp8.ROW_TILE), _quantised(y, fp8.BLOCK_TILE)
      return fp8_product.multiply(a, b, accumulation=accumulation)

    @jax.jit
    def scanned(x):
      step = jax.checkpoint(lambda total, x: (total + product(x), product(x)))
      return jax.lax.scan(step, jnp.zeros((9, 7)), x)[1]

    b = _quantised(y, fp8.BLOCK_TILE)
    for got, one in zip(scanned(x), x, strict=True):
      a = _quantised(one, fp8.ROW_TILE)
      np.testing.assert_array_equal(got, _oracle(a, b, accumulation, True))

  def test_memory_is_that_of_the_result(self):
    """Products of 32 terms are never all there at once."""
    a, b = (
      fp8.Quantised(
        jax.ShapeDtypeStruct((512, 512), jnp.float8_e4m3fn),
        jax.ShapeDtypeStruct((1, 1), jnp.float32),
        (512, 512),
      )
      for _ in range(2)
    )
    multiply = functools.partial(
      fp8_product.multiply, accumulation="tensor_core"
    )
    memory = jax.jit(multiply).lower(a, b).compile().memory_analysis()
    assert memory is not None
    self.assertLess(memory.temp_size_in_bytes, 10 * 512 * 512 * 4)

  def test_refuses(self):
    x = np.ones((300, 300), np.float32)
    rows, columns = (
      fp8.quantise(x, tile) for tile in (fp8.ROW_TILE, fp8.COLUMN_TILE)
    )
    short = fp8.quantise(x[:5], fp8.BLOCK_TILE)
    long = fp8.quantise(np.ones((1, 2**15 + 1), np.float32), (1, 2**16))
    for message, a, b, how in (
      ("accumulation='f16': expected float32, ", rows, columns, "f16"),
      (r"b \(5, 300\): expected b \(300, 300\); ", rows, short, "exact"),
      ("scales of a change every 1 along K: ", columns, columns, "exact"),
      ("scales of b change every 1 along K: ", rows, rows, "float32"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        fp8_product.multiply(a, b, accumulation=how)  # pyright: ignore
    for message, a, b in (
      ("scales that change along K .*granularity 'tensor'", rows, columns),
      ("'exact' expects at most 32768", long, long.transposed),
    ):
      with self.assertRaisesRegex(ValueError, message):
        fp8_product.multiply(a, b, accumulation="exact", promote=False)


if __name__ == "__main__":
  absltest.main()
