"""The quantising kernels, interpreted, against `fp8.quantise`, bit by bit."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import hopper_quantise
from dsx.ops import hopper_target

_TILES = (fp8.ROW_TILE, fp8.COLUMN_TILE, fp8.BLOCK_TILE)


def _drawn(shape, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  x = rng.standard_normal(shape) * np.exp(4 * rng.standard_normal(shape))
  return jnp.asarray(x, dtype)


def _call(function, x, *args, **options):
  with hopper_target.interpreted():
    return jax.jit(lambda x: function(x, *args, **options))(x)


def _bits(q: fp8.Quantised):
  values = np.asarray(q.values)
  # NaN has one meaning and several forms.
  bits = np.where(np.isnan(values.astype(np.float32)), 0xFF, values.view("u1"))
  return bits, np.asarray(q.scales)


class HopperQuantiseTest(parameterized.TestCase):
  def _assert_same(self, found, x, tile, **options):
    expected = fp8.quantise(x, tile, **options)
    self.assertEqual(found.tile, expected.tile)
    for a, b in zip(_bits(found), _bits(expected), strict=True):
      np.testing.assert_array_equal(a, b)

  @parameterized.product(tile=_TILES, shape=[(256, 128), (2, 130, 300)])
  def test_same_bits(self, tile, shape):
    x = _drawn(shape)
    found = _call(hopper_quantise.quantise, x, tile)
    self._assert_same(found, x, tile)

  @parameterized.product(
    tile=_TILES, format=["e4m3", "e5m2"], scale_format=["float32", "ue8m0"]
  )
  def test_same_bits_in_every_format(self, tile, **formats):
    x = _drawn((128, 256), jnp.bfloat16)
    found = _call(hopper_quantise.quantise, x, tile, **formats)
    self._assert_same(found, x, tile, **formats)

  def test_one_read_gives_tiles_along_both_axes(self):
    x = _drawn((200, 256))
    rows, columns = _call(hopper_quantise.both, x)
    self._assert_same(rows, x, fp8.ROW_TILE)
    self._assert_same(columns, x, fp8.COLUMN_TILE)

  def test_both_forms_of_a_weight_are_the_same_numbers(self):
    w = _drawn((3, 130, 256))
    for found in _call(hopper_quantise.weight, w, scale_format="ue8m0"):
      self._assert_same(found, w, fp8.BLOCK_TILE, scale_format="ue8m0")

  def test_what_is_not_finite_becomes_nan_and_spoils_no_scale(self):
    x = _drawn((128, 256)).at[3, 5].set(jnp.nan).at[7, 200].set(-jnp.inf)
    x = x.at[9].set(0).at[:, 11].set(1e-42).at[20, 20].set(3e38)
    for tile in _TILES:
      self._assert_same(_call(hopper_quantise.quantise, x, tile), x, tile)

  def test_ties_go_to_even(self):
    # With 448 in the tile the scale is one: numbers halfway between two.
    x = jnp.full((128, 128), 448.0)
    halfway = jnp.asarray([17, 19, 21, 1.0625, 1.1875, 2.0**-10, 3 * 2.0**-10])
    x = x.at[:, : halfway.size].set(halfway)
    found = _call(hopper_quantise.quantise, x, fp8.ROW_TILE)
    self._assert_same(found, x, fp8.ROW_TILE)

  def test_nothing_stays_nothing(self):
    x = jnp.zeros((0, 128))
    found = _call(hopper_quantise.quantise, x, fp8.ROW_TILE)
    self.assertEqual((found.shape, found.scales.shape), ((0, 128), (0, 1)))

  @parameterized.named_parameters(
    ("tile", {"tile": (1, 64)}, r"tile=\(1, 64\): expected one of \(1, 128\)"),
    ("format", {"format": "e3m4"}, "format='e3m4': expected e4m3 or e5m2"),
    ("scales", {"scale_format": "int8"}, "scale_format='int8': expected"),
  )
  def test_refuses(self, options, message):
    x = _drawn((128, 128))
    with (
      hopper_target.interpreted(),
      self.assertRaisesRegex(ValueError, message),
    ):
      hopper_quantise.quantise(x, **({"tile": fp8.ROW_TILE} | options))

  def test_refuses_other_numbers(self):
    with (
      hopper_target.interpreted(),
      self.assertRaisesRegex(ValueError, r"x int32\[8, 8\]: expected bfloat16"),
    ):
      hopper_quantise.quantise(jnp.ones((8, 8), jnp.int32), fp8.ROW_TILE)

  def test_refuses_other_platforms(self):
    with self.assertRaisesRegex(ValueError, "platform='cpu': hopper_quantise"):
      hopper_quantise.quantise(_drawn((8, 8)), fp8.ROW_TILE)


if __name__ == "__main__":
  absltest.main()
