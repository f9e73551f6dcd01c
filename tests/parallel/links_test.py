"""Least times of collectives, worked out by hand on small machines."""

import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.parallel import collectives
from dsx.parallel import links

_GB = 10**9


def _torus(*shape):
  """Devices [x, y, z] of a torus, as a mesh of axes named x, y and z."""
  devices = np.empty(shape, object)
  for place in np.ndindex(shape):
    devices[place] = types.SimpleNamespace(coords=place, id=0)
  return types.SimpleNamespace(
    devices=devices, axis_names=tuple("xyz"[: len(shape)])
  )


def _machines(n):
  devices = np.array([types.SimpleNamespace(id=i) for i in range(8 * n)])
  return types.SimpleNamespace(
    devices=devices.reshape(n, 8), axis_names=("node", "local")
  )


def _sent(op, group, buffer, wire):
  return collectives.Collective(
    name="",
    computation="",
    op=op,
    axes=(),
    group=group,
    buffer_bytes=buffer,
    wire_bytes=wire,
    times=1,
    source="",
  )


class LinksTest(parameterized.TestCase):
  def test_rings_and_lines(self):
    mesh = _torus(4, 8, 2)
    place = links.place(mesh, ("x", "z"), "v5p", (4, 8, 2))
    self.assertEqual(place.rings, ((4, True), (2, False)))
    part = links.place(_torus(4, 4), ("y",), "v6e", (16, 4))
    self.assertEqual(part.rings, ((4, False),))
    self.assertEqual(str(place), "4 in a ring x 2 in a line")

  @parameterized.named_parameters(
    # 4 chips in a ring, 100 GB/s a link: both directions carry half.
    ("gather", "all-gather", ("x",), 1 * _GB, 3 * _GB, 3 / 200),
    # Two rings at once.
    ("gather_plane", "all-gather", ("x", "y"), 1 * _GB, 15 * _GB, 15 / 400),
    # A quarter of the ring on average, on two links.
    ("exchange", "all-to-all", ("x",), 8 * _GB, 6 * _GB, 8 * 4 / 8 / 100),
    ("exchange_plane", "all-to-all", ("x", "y"), 8 * _GB, 7 * _GB, 4 / 100),
    ("neighbour", "collective-permute", ("x",), 1 * _GB, 1 * _GB, 1 / 100),
  )
  def test_on_a_torus(self, op, names, buffer, wire, expected):
    mesh = _torus(4, 4, 4)
    place = links.place(mesh, names, "v5p", (4, 4, 4))
    one = _sent(op, 4 ** len(names), buffer, wire)
    self.assertAlmostEqual(links.seconds(one, place, "v5p"), expected)

  def test_a_line_is_half_as_fast(self):
    mesh, shape = _torus(4, 4), (4, 4)
    ring = links.place(mesh, ("x",), "v5p", shape)
    line = links.place(mesh, ("x",), "v6e", shape)
    for op in ("all-gather", "all-to-all"):
      one = _sent(op, 4, _GB, _GB)
      self.assertAlmostEqual(
        links.seconds(one, line, "v6e"), 2 * links.seconds(one, ring, "v5p")
      )

  @parameterized.named_parameters(
    # 7 GPUs away by NVLink, 450 GB/s.
    ("within", "all-gather", ("local",), 8, 7 * _GB, 7 / 450),
    # Each GPU fetches a part of what comes from 3 machines, 50 GB/s; NVLink
    # then has all of it to pass on, which takes longer.
    ("across", "all-gather", ("node", "local"), 32, 31 * _GB, 31 / 450),
    ("across_only", "all-gather", ("node",), 4, 3 * _GB, 3 / 50),
    # 24 of 31 peers are on other machines.
    ("exchange", "all-to-all", ("node", "local"), 32, 31 * _GB, 24 / 50),
    ("exchange_nodes", "all-to-all", ("node",), 4, 3 * _GB, 3 / 50),
  )
  def test_on_machines_of_gpus(self, op, names, group, wire, expected):
    place = links.place(_machines(4), names, "h100", (4, 8))
    one = _sent(op, group, wire, wire)
    self.assertAlmostEqual(links.seconds(one, place, "h100"), expected)

  def test_alone_nothing_travels(self):
    place = links.Place((), 1, 1)
    self.assertEqual(
      links.seconds(_sent("all-reduce", 1, 9, 0), place, "h100"), 0
    )


if __name__ == "__main__":
  absltest.main()
