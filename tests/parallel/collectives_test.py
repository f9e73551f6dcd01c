"""What a program sends is read as it was written: ops, axes, bytes, counts."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
from jax.sharding import PartitionSpec as P
import numpy as np

from dsx.parallel import collectives
from dsx.parallel import mesh as mesh_lib

_BYTES = 16 * 32 * 4  # of one device's part


def _mesh():
  return mesh_lib.make(mesh_lib.MeshShape(data=2, node=2, local=2))


def _read(body, loops=1):
  """The collectives of `body` on a device's [16, 32] of float32."""
  mesh = _mesh()
  everywhere = P(("data", "node", "local"))

  def repeated(x):
    return lax.fori_loop(0, loops, lambda i, x: x + body(x).sum() * 0.5, x)

  mapped = jax.shard_map(
    repeated if loops > 1 else body,
    mesh=mesh,
    in_specs=everywhere,
    out_specs=everywhere if loops > 1 else P(),
    check_vma=False,
  )
  x = jax.ShapeDtypeStruct((128, 32), np.float32)
  return collectives.read(jax.jit(mapped).lower(x).compile().as_text(), mesh)


class CollectivesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      "all_gather",
      lambda x: lax.all_gather(x, "local", tiled=True),
      ("all-gather", ("local",), 2, _BYTES, _BYTES),
    ),
    (
      "all_gather_over_two_axes",
      lambda x: lax.all_gather(x, ("data", "local"), tiled=True),
      ("all-gather", ("data", "local"), 4, _BYTES, 3 * _BYTES),
    ),
    (
      "all_reduce",
      lambda x: lax.psum(x, ("node", "local")),
      ("all-reduce", ("node", "local"), 4, _BYTES, 1.5 * _BYTES),
    ),
    (
      "reduce_scatter",
      lambda x: lax.psum_scatter(x, "node", tiled=True),
      ("reduce-scatter", ("node",), 2, _BYTES, _BYTES / 2),
    ),
    (
      "all_to_all",
      lambda x: lax.all_to_all(x, ("node", "local"), 0, 0, tiled=True),
      ("all-to-all", ("node", "local"), 4, _BYTES, 0.75 * _BYTES),
    ),
    (
      "permute",
      lambda x: lax.ppermute(x, "data", [(0, 1), (1, 0)]),
      ("collective-permute", ("data",), 2, _BYTES, _BYTES),
    ),
    (
      "permute_by_half_of_them",
      lambda x: lax.ppermute(x, "data", [(0, 1)]),
      ("collective-permute", ("data",), 2, _BYTES, _BYTES / 2),
    ),
  )
  def test_of_one(self, body, expected):
    (one,) = _read(body)
    found = one.op, one.axes, one.group, one.buffer_bytes, one.wire_bytes
    self.assertEqual(found, expected)
    self.assertEqual(one.times, 1)

  def test_loops_count(self):
    (one,) = _read(lambda x: lax.all_gather(x, "node"), loops=6)
    self.assertEqual(one.times, 6)
    self.assertEqual(one.total_wire_bytes, 6 * _BYTES)

  def test_totals(self):
    def body(x):
      return lax.all_gather(lax.psum(x, "data"), "local", tiled=True).sum() + (
        lax.all_gather(x * 2, "local", tiled=True).max()
      )

    found = _read(body)
    table = collectives.totals(found)
    runs, sent = table["all-gather", ("local",)]
    self.assertEqual((runs, sent), (2, 2 * _BYTES))
    self.assertEqual(
      collectives.by_axes(found), {("local",): 2 * _BYTES, ("data",): _BYTES}
    )

  @parameterized.parameters(
    ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("replica_groups={}", [[0, 1, 2, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=2,'y'=2] {'y'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['x'=4] {'x':(1)2}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
    (
      "replica_groups=mesh['x'=2,'y'=1,'z'=2], device_ids=([2,2]T(1,0)) {'x'}",
      [[0, 1], [2, 3]],
    ),
    ("replica_groups=mesh['x'=2,'y'=2] {'y','x'}", [[0, 2, 1, 3]]),
  )
  def test_groups_in_every_form(self, text, expected):
    self.assertEqual(collectives.device_groups(text, 4).tolist(), expected)

  def test_groups_in_a_form_to_come(self):
    with self.assertRaisesRegex(
      ValueError, "expected lists, an iota or a mesh"
    ):
      collectives.device_groups("replica_groups=torus(3)", 4)

  def test_axes_of_groups(self):
    sizes = {"data": 2, "node": 2, "local": 3}
    ids = np.arange(12).reshape(2, 2, 3)
    for groups, axes in (
      (ids.reshape(4, 3), ("local",)),
      (ids.transpose(0, 2, 1).reshape(6, 2), ("node",)),
      (ids.reshape(2, 6), ("node", "local")),
      (ids.reshape(1, 12), ("data", "node", "local")),
    ):
      self.assertEqual(collectives.spanned(groups, sizes), axes)

  def test_what_a_tpu_writes(self):
    """Its reduce-scatter, and ragged exchanges whose sizes travel as well."""
    text = """HloModule step
%all-reduce-scatter.1 (p: bf16[64]) -> bf16[8] {
  %p = bf16[64]{0} parameter(0)
  %sum = bf16[64]{0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %own = bf16[8]{0} dynamic-slice(%sum), dynamic_slice_sizes={8}
}

ENTRY %main (x: bf16[64], n: s32[8]) -> bf16[8] {
  %x = bf16[64]{0} parameter(0)
  %n = s32[8]{0} parameter(1)
  %r = bf16[64]{0} ragged-all-to-all(%x, %x, %n, %n, %n, %n), \
replica_groups={{0,1},{2,3},{4,5},{6,7}}
  ROOT %f = bf16[8]{0} fusion(%r), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    found = {one.op: one for one in collectives.read(text, _mesh())}
    scatter = found["reduce-scatter"]
    self.assertEqual(scatter.axes, ("data", "node", "local"))
    self.assertEqual(scatter.wire_bytes, 128 * 7 / 8)
    ragged = found["ragged-all-to-all"]
    self.assertEqual((ragged.axes, ragged.buffer_bytes), (("local",), 128))

  def test_what_leaves_a_machine(self):
    (one,) = _read(
      lambda x: lax.all_to_all(x, ("node", "local"), 0, 0, tiled=True)
    )
    sizes = dict(_mesh().shape)
    # To three others, two of which are in the other machine.
    self.assertAlmostEqual(collectives.crossing(one, "node", sizes), _BYTES / 2)
    self.assertEqual(collectives.crossing(one, "data", sizes), 0)


if __name__ == "__main__":
  absltest.main()
