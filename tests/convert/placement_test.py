"""Pieces of a parameter on the devices that hold them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import ml_dtypes
import numpy as np

from dsx.convert import name_map
from dsx.convert import placement
from dsx.ops import block_scaled
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib


def _mesh():
  shape = mesh_lib.MeshShape(local=2, tensor=2)
  return mesh_lib.make(shape, jax.devices()[:4])


class PlacementTest(parameterized.TestCase):
  @parameterized.parameters(
    (None,),
    (P(),),
    (P("local", "tensor"),),
    (P("tensor", None, "local"),),
    (P(("local", "tensor")),),
    (P(None, ("tensor", "local")),),
  )
  def test_fills_a_stack(self, spec):
    """Transposed pieces of which every element is another number."""
    whole = np.arange(4 * 12 * 6, dtype=np.float32).reshape(4, 12, 6)
    sharding = None if spec is None else NamedSharding(_mesh(), spec)
    target = placement.Target(
      whole.shape, "float32", stacked=1, transpose=True, sharding=sharding
    )
    for index in (2, 0, 3, 1):
      target.put(
        (index,), placement.Piece(np.ascontiguousarray(whole[index].T))
      )
    array = target.array()
    np.testing.assert_array_equal(array, whole)
    if spec is not None:
      self.assertEqual(array.sharding, sharding)

  @parameterized.parameters(
    (P(),), (P("tensor"),), (P(None, "local"),), (P("tensor", "local"),)
  )
  def test_dequantises_parts_that_cut_blocks(self, spec):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 260)).astype(np.float32)
    scaled = block_scaled.quantise(x)
    target = placement.Target(
      (260, 300),
      "bfloat16",
      stacked=0,
      transpose=True,
      sharding=NamedSharding(_mesh(), spec),
    )
    target.put((), placement.Piece(scaled.values, scaled.scales))
    np.testing.assert_array_equal(
      target.array(), scaled.dequantise(ml_dtypes.bfloat16).T
    )

  def test_a_device_gets_its_own_slices(self):
    """And tensors that no device wants need not be read."""
    sharding = NamedSharding(_mesh(), P("local", None, "tensor"))
    target = placement.Target(
      (4, 6, 8), "float32", stacked=1, transpose=False, sharding=sharding
    )
    for shard in (target._arrays, target._places):
      del shard[2:]  # as if the others belonged to another process
    self.assertEqual([a.shape for a in target._arrays], [(2, 6, 4)] * 2)
    self.assertEqual(
      [target.wants((i,)) for i in range(4)], [True, True, False, False]
    )
    piece = np.arange(48, dtype=np.float32).reshape(6, 8)
    for index in range(4):
      target.put((index,), placement.Piece(piece * (index + 1)))
    for array, columns in zip(
      target._arrays, (slice(4), slice(4, 8)), strict=True
    ):
      np.testing.assert_array_equal(array[1], 2 * piece[:, columns])

  def test_scales_are_whole_beside_their_matrices(self):
    leaf = name_map.Leaf(
      ("params", "x"),
      (4, 160, 136),
      1,
      "",
      0,
      name_map.TRANSPOSE,
      ("experts", "embed", "expert_mlp"),
    )
    rules = sharding_lib.Sharding(
      overrides=(("experts", "local"), ("embed", None))
    )
    mesh = _mesh()
    found = placement.leaf_sharding(leaf, mesh, rules)
    self.assertEqual(found.spec, P("local", None, "tensor"))
    self.assertEqual(placement.of_scales(found, 1).spec, P("local"))
    self.assertIsNone(placement.of_scales(None, 1))
    self.assertIsNone(placement.leaf_sharding(leaf, None, rules))
    with self.assertRaisesRegex(
      ValueError, r"params/x of shape \(3, 160, 136\) does not divide over"
    ):
      leaf = leaf._replace(shape=(3, 160, 136))
      placement.leaf_sharding(leaf, mesh, rules)


if __name__ == "__main__":
  absltest.main()
