"""A file of placements: written and read back, or refused in one line."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.parallel import mesh as mesh_lib
from dsx.parallel import placement_file
from tests.models import tiny

_LAYER = [0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 6, 7]


def _fields(**changes):
  fields = {
    "kind": "expert placement",
    "strategy": "hierarchical",
    "experts": 8,
    "groups": 4,
    "nodes": 2,
    "local": 2,
    "redundant": 4,
    "layers": {"1": _LAYER, "mtp_0": _LAYER},
  }
  return fields | changes


class PlacementFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "p.json"

  def read(self, **changes):
    self.path.write_text(json.dumps(_fields(**changes)))
    return placement_file.read(self.path)

  def test_there_and_back(self):
    found = self.read()
    self.path.unlink()
    found.write(self.path)
    self.assertEqual(json.loads(self.path.read_text()), _fields())
    again = placement_file.read(self.path)
    np.testing.assert_array_equal(again.layers["1"], _LAYER)
    self.assertEqual(list(self.path.parent.iterdir()), [self.path])

  def test_replicas(self):
    table = self.read().replicas("1")
    self.assertEqual((table.total, table.nodes), (12, 2))
    self.assertEqual(table.count.tolist(), [2, 2, 1, 1, 1, 1, 2, 2])
    self.assertEqual(table.place[0].tolist(), [0, 4])
    self.assertEqual(self.read(strategy="global").replicas("1").nodes, 1)

  @parameterized.parameters(
    ({"kind": "x"}, "expected an object of kind 'expert placement'"),
    ({"experts": "8"}, "experts='8': expected a whole number"),
    ({"nodes": True}, "nodes=True: expected a whole number"),
    ({"layers": {}}, "expected `layers`, by name"),
    ({"layers": {"1": _LAYER[1:]}}, "layer '1': .* in each of 12 places"),
    ({"layers": {"1": [0.5] * 12}}, "layer '1': .* in each of 12 places"),
    ({"layers": {"1": [[0], 1]}}, "no placement of experts: .*inhomogeneous"),
    ({"layers": {"1": [0] * 12}}, "each of the experts 0 to 7, .*; see 1;"),
    ({"layers": {"1": [8, *_LAYER[1:]]}}, "0 to 7, and no others; see 8;"),
    ({"layers": {"1": [-1, *_LAYER[1:]]}}, "0 to 7, and no others; see -1;"),
    (
      {"layers": {"1": [6, *_LAYER[1:]]}},
      "layer '1': expected each group of experts on one node alone",
    ),
    ({"strategy": "best"}, "strategy='best': expected one of"),
    ({"redundant": 3}, "redundant=3: expected the 8 experts"),
    ({"more": 1}, "unexpected keyword argument 'more'"),
  )
  def test_damaged(self, changes, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      self.read(**changes)
    self.assertStartsWith(str(caught.exception), f"{self.path}: ")
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.parameters("", "[1, 2]", "{", "[" * 100_000, "\0")
  def test_no_json(self, text):
    self.path.write_text(text)
    with self.assertRaisesRegex(ValueError, "no placement of experts"):
      placement_file.read(self.path)

  def test_global_may_mix_groups(self):
    layer = [6, *_LAYER[1:]]
    found = self.read(strategy="global", layers={"1": layer})
    np.testing.assert_array_equal(found.layers["1"], layer)

  def test_the_model_and_the_devices_it_was_made_for(self):
    found = self.read()
    mesh = mesh_lib.make(mesh_lib.MeshShape(node=2, local=2))
    model = tiny.config()
    found.check(model, mesh)
    for config, devices, message in (
      (model, None, "for 2 x 2 devices: the mesh has 1 x 1"),
      (
        model,
        mesh_lib.make(mesh_lib.MeshShape(local=4)),
        "for 2 x 2 devices: the mesh has 1 x 4",
      ),
      (tiny.config(n_routed_experts=16), mesh, "n_routed_experts=8: .* 16"),
      (tiny.config(n_group=2), mesh, "n_group=4: expected the model's 2"),
      (
        tiny.config(num_nextn_predict_layers=0),
        mesh,
        "names layer 'mtp_0': expected layers of this model .*, 1, 2;",
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        found.check(config, devices)

  def test_find(self):
    self.assertIsNone(placement_file.find("", tiny.config(), None))
    with self.assertRaises(FileNotFoundError):
      placement_file.find(str(self.path), tiny.config(), None)


if __name__ == "__main__":
  absltest.main()
