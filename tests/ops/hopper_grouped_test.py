"""Grouped FP8 kernels, interpreted, against the emulation group by group."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import fp8_product
from dsx.ops import hopper_grouped
from dsx.ops import hopper_target

_ROWS = 128
# Group 1 has no rows; two blocks at the end are in use by nobody.
_GROUP = np.array([0, 2, 2, 3, 0, 7], np.int32)
_COUNT = 4
_N_GROUPS = 4


def _drawn(shape, tile, seed) -> fp8.Quantised:
  rng = np.random.default_rng(seed)
  x = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape[-1:]))
  x *= np.exp(rng.standard_normal((*shape[:-1], 1)))
  return fp8.quantise(jnp.asarray(x, jnp.float32), tile)


def _of_block(x: fp8.Quantised, first: int, n: int) -> fp8.Quantised:
  rows = slice(first * _ROWS, (first + n) * _ROWS)
  tiles = slice(rows.start // x.tile[0], rows.stop // x.tile[0])
  return fp8.Quantised(x.values[rows], x.scales[tiles], x.tile)


def _assert_close(y, expected):
  size = np.abs(expected).max()
  np.testing.assert_allclose(y / size, expected / size, rtol=2e-6, atol=2e-6)


class HopperGroupedTest(parameterized.TestCase):
  def test_each_block_meets_its_groups_matrix_inside_shard_map(self):
    x = _drawn((len(_GROUP) * _ROWS, 200), fp8.ROW_TILE, 0)
    w = _drawn((_N_GROUPS, 200, 136), fp8.BLOCK_TILE, 1)
    # Of one device: older interpreters wait for ever for a second one.
    mesh = jax.make_mesh(
      (1,), ("local",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    spec = jax.sharding.PartitionSpec()
    with hopper_target.interpreted(races=True):
      y = jax.jit(
        jax.shard_map(
          lambda x, w, group, count: hopper_grouped.multiply(
            x, w, group, count=count
          ),
          mesh=mesh,
          in_specs=spec,
          out_specs=spec,
          check_vma=False,
        )
      )(x, w, _GROUP, np.int32(_COUNT))
    expected = np.zeros((len(_GROUP) * _ROWS, 136), np.float32)
    for i, group in enumerate(_GROUP[:_COUNT]):
      matrix = jax.tree.map(lambda a: a[group], w)  # noqa: B023
      rows = slice(i * _ROWS, (i + 1) * _ROWS)
      expected[rows] = fp8_product.multiply(_of_block(x, i, 1), matrix)
    _assert_close(y, expected)
    chex.assert_trees_all_equal(y[_COUNT * _ROWS :], expected[_COUNT * _ROWS :])

  def test_each_groups_blocks_are_contracted(self):
    x = _drawn((len(_GROUP) * _ROWS, 200), fp8.COLUMN_TILE, 0)
    dy = _drawn((len(_GROUP) * _ROWS, 136), fp8.COLUMN_TILE, 1)
    with hopper_target.interpreted(races=True):
      dw = jax.jit(
        lambda x, dy, group, count: hopper_grouped.outer(
          x, dy, group, _N_GROUPS, count=count
        )
      )(x, dy, _GROUP, np.int32(_COUNT))
    expected = np.zeros((_N_GROUPS, 200, 136), np.float32)
    for group, first, n in ((0, 0, 1), (2, 1, 2), (3, 3, 1)):
      expected[group] = fp8_product.multiply(
        _of_block(x, first, n).transposed, _of_block(dy, first, n)
      )
    _assert_close(dw, expected)
    chex.assert_trees_all_equal(dw[1], jnp.zeros((200, 136)))

  def test_nothing_gives_zeros(self):
    x = fp8.quantise(jnp.ones((_ROWS, 0)), (1, 128))
    w = fp8.quantise(jnp.ones((2, 0, 5)), (128, 128))
    with hopper_target.interpreted():
      y = hopper_grouped.multiply(x, w, jnp.zeros(1, jnp.int32))
    chex.assert_trees_all_equal(y, jnp.zeros((_ROWS, 5)))

  @parameterized.named_parameters(
    ("blocks", (256, 8), (2, 8, 8), 3, r"group_of_block \(3,\): expected one"),
    ("matrices", (256, 8), (2, 9, 8), 2, r"w \(2, 9, 8\): expected"),
    ("one_matrix", (256, 8), (8, 8), 2, r"w \(8, 8\): expected \[M, D\]"),
  )
  def test_refuses(self, rows, matrices, n_blocks, message):
    x = _drawn(rows, fp8.ROW_TILE, 0)
    w = _drawn(matrices, fp8.BLOCK_TILE, 1)
    group = jnp.zeros(n_blocks, jnp.int32)
    with (
      hopper_target.interpreted(),
      self.assertRaisesRegex(ValueError, message),
    ):
      hopper_grouped.multiply(x, w, group)

  def test_refuses_rows_whose_tiles_are_not_along_them(self):
    x, dy = (_drawn((256, 8), (64, 1), i) for i in range(2))
    group = jnp.zeros(2, jnp.int32)
    with (
      hopper_target.interpreted(),
      self.assertRaisesRegex(ValueError, r"x \(8, 256\) has tiles"),
    ):
      hopper_grouped.outer(x, dy, group, 2)

  def test_refuses_other_platforms(self):
    x, dy = (_drawn((128, 8), fp8.COLUMN_TILE, i) for i in range(2))
    with self.assertRaisesRegex(ValueError, "platform='cpu': hopper_grouped"):
      hopper_grouped.outer(x, dy, jnp.zeros(1, jnp.int32), 2)


if __name__ == "__main__":
  absltest.main()
