"""Two halves of a batch, each on every device."""

from absl.testing import parameterized
import jax
import numpy as np

from dsx.parallel import halves
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib


class HalvesTest(parameterized.TestCase):
  def test_even_and_odd_rows_and_back(self):
    x = {"a": np.arange(8).reshape(4, 2), "none": None}
    even, odd = halves.split(x)
    self.assertEqual(even["a"].tolist(), [[0, 1], [4, 5]])
    self.assertEqual(odd["a"].tolist(), [[2, 3], [6, 7]])
    self.assertIsNone(odd["none"])
    joined = halves.join([even["a"], odd["a"]])
    np.testing.assert_array_equal(joined, x["a"])

  def test_nothing_moves(self):
    mesh = mesh_lib.make(mesh_lib.MeshShape(data=2, node=2, local=2))
    with jax.set_mesh(mesh):
      placed = sharding_lib.batch_sharding(mesh)
      x = jax.ShapeDtypeStruct((32, 4), np.float32, sharding=placed)
      program = jax.jit(
        lambda x: halves.join([2 * half for half in halves.split(x)]),
        out_shardings=placed,
      )
      text = program.lower(x).compile().as_text()
    for word in ("all-gather", "all-to-all", "collective-permute"):
      self.assertNotIn(word, text)

  def test_refuses_odd_shares(self):
    mesh = mesh_lib.make(mesh_lib.MeshShape(data=8))
    with (
      jax.set_mesh(mesh),
      self.assertRaisesWithLiteralMatch(
        ValueError,
        "overlap='two_batches' halves each device's sequences, but 8 "
        "sequences on 8 devices cannot be halved; make micro_batch_size a "
        "multiple of 16, or set config.Execution.overlap = 'none'",
      ),
    ):
      halves.split(np.zeros((8, 2)))
