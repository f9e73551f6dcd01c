"""Mesh shapes: what is left over, and what does not fit, word by word."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import AxisType

from dsx.parallel import axes
from dsx.parallel import mesh


class MeshShapeTest(parameterized.TestCase):
  @parameterized.parameters(
    # shape, devices, sizes of pipe data node local context tensor
    ({}, 1, (1, 1, 1, 1, 1, 1)),
    ({}, 8, (1, 8, 1, 1, 1, 1)),
    ({"node": 2, "local": 2}, 8, (1, 2, 2, 2, 1, 1)),
    ({"data": 2, "tensor": -1}, 8, (1, 2, 1, 1, 1, 4)),
    ({"data": 1, "pipe": 2, "context": 4}, 8, (2, 1, 1, 1, 4, 1)),
    ({"node": 8, "local": 8, "pipe": 16}, 2048, (16, 2, 8, 8, 1, 1)),
  )
  def test_resolve(self, shape, n_devices, expected):
    self.assertEqual(mesh.MeshShape(**shape).resolve(n_devices), expected)

  @parameterized.parameters(
    (
      {"node": 3},
      "mesh pipe=1 x data=-1 x node=3 x local=1 x context=1 x tensor=1 does "
      "not match 8 devices: the product of the axes must be the number of "
      "devices; set one axis of mesh.MeshShape to -1 to take what is left",
    ),
    (
      {"data": 2, "local": 2},
      "mesh pipe=1 x data=2 x node=1 x local=2 x context=1 x tensor=1 does "
      "not match 8 devices: the product of the axes must be the number of "
      "devices; set one axis of mesh.MeshShape to -1 to take what is left",
    ),
    (
      {"local": 16},
      "mesh pipe=1 x data=-1 x node=1 x local=16 x context=1 x tensor=1 does "
      "not match 8 devices: the product of the axes must be the number of "
      "devices; set one axis of mesh.MeshShape to -1 to take what is left",
    ),
    (
      {"local": -1},
      "mesh pipe=1 x data=-1 x node=1 x local=-1 x context=1 x tensor=1: "
      "every axis must be positive, and at most one -1",
    ),
    (
      {"tensor": 0},
      "mesh pipe=1 x data=-1 x node=1 x local=1 x context=1 x tensor=0: "
      "every axis must be positive, and at most one -1",
    ),
    (
      {"tensor": -2},
      "mesh pipe=1 x data=-1 x node=1 x local=1 x context=1 x tensor=-2: "
      "every axis must be positive, and at most one -1",
    ),
  )
  def test_refuses(self, shape, message):
    with self.assertRaisesWithLiteralMatch(ValueError, message):
      mesh.MeshShape(**shape).resolve(8)


class MakeTest(parameterized.TestCase):
  def test_all_devices(self):
    made = mesh.make(mesh.MeshShape(local=2, tensor=2))
    self.assertEqual(made.axis_names, axes.MESH_AXES)
    self.assertEqual(
      dict(made.shape),
      {"pipe": 1, "data": 2, "node": 1, "local": 2, "context": 1, "tensor": 2},
    )
    self.assertEqual(set(made.axis_types), {AxisType.Auto})
    self.assertCountEqual(made.devices.reshape(-1).tolist(), jax.devices())

  def test_neighbours_lie_on_the_fast_axes(self):
    """The last axes vary fastest, as machines number their devices."""
    made = mesh.make(mesh.MeshShape(data=1, node=2, local=4))
    ids = [[d.id for d in row] for row in made.devices.reshape(2, 4)]
    self.assertEqual(ids, [[0, 1, 2, 3], [4, 5, 6, 7]])

  def test_some_devices(self):
    made = mesh.make(mesh.MeshShape(), jax.devices()[:2])
    self.assertEqual(made.size, 2)

  def test_batch_shards(self):
    made = mesh.make(mesh.MeshShape(data=2, node=1, local=2, tensor=2))
    self.assertEqual(mesh.batch_shards(made), 4)


if __name__ == "__main__":
  absltest.main()
