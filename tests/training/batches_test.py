"""A global batch is the same on any number of devices, and errors come out."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx.parallel import mesh as mesh_lib
from dsx.training import batches
from dsx.training import schedules

_LENGTH = 5


class _Source:
  """Sequence i holds 100 i, 100 i + 1, ...; notes what was read."""

  def __init__(self, broken: int | None = None):
    self.read = []
    self._broken = broken

  def rows(self, indices):
    self.read.append(list(indices))
    if self._broken in indices:
      raise ValueError(f"record {self._broken} of shard 'a' is corrupt")
    tokens = 100 * np.asarray(indices)[:, None] + np.arange(_LENGTH + 1)
    return {"tokens": tokens.astype(np.int32), "segment_ids": tokens % 3}


def _mesh(devices: int, **axes):
  shape = mesh_lib.MeshShape(**axes)
  return mesh_lib.make(shape, jax.devices()[:devices])


def _schedule():
  """Batches of 8, then 16: 24 steps."""
  return schedules.Schedule(
    total_tokens=16 * _LENGTH * 20,
    sequence_length=_LENGTH,
    batch_size_start=8,
    batch_size=16,
    batch_ramp_tokens=6_000_000_000_000,
  )


def _all(mesh, source=None, start=0):
  reader = batches.Batches(
    source or _Source(),
    _schedule().plan(start),
    mesh,
    micro_batch=8,
    micro_batches=2,
  )
  try:
    return [(p, jax.device_get(b)) for p, b in reader]
  finally:
    reader.close()


class LayoutTest(parameterized.TestCase):
  def test_literal(self):
    np.testing.assert_array_equal(
      batches.layout(np.arange(3, 7), 2, 3), [[3, 4], [5, 6], [-1, -1]]
    )


class PlaceTest(parameterized.TestCase):
  def test_padding_is_zeros(self):
    indices = np.array([[4, -1, 0, -1]])
    placed = batches.place(_Source(), indices, _mesh(1))
    np.testing.assert_array_equal(placed["tokens"][0, :, 0], [400, 0, 0, 0])
    np.testing.assert_array_equal(placed["tokens"][0, 2], np.arange(6))

  def test_padding_alone(self):
    """What a process may own of a small last batch."""
    placed = batches.place(_Source(), np.full((1, 2), -1), _mesh(1))
    np.testing.assert_array_equal(placed["tokens"], np.zeros((1, 2, 6)))

  def test_reads_each_sequence_once(self):
    source = _Source()
    indices = batches.layout(np.arange(7, 15), 4, 2)
    batches.place(source, indices, _mesh(8, data=2, local=2, tensor=2))
    self.assertEqual(source.read, [list(range(7, 15))])

  def test_each_device_holds_its_part(self):
    indices = np.arange(8)[None]
    placed = batches.place(_Source(), indices, _mesh(4))["tokens"]
    for device, shard in enumerate(placed.addressable_shards):
      self.assertEqual(shard.data.shape, (1, 2, _LENGTH + 1))
      self.assertEqual(int(shard.data[0, 0, 0]), 200 * device)


class BatchesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("two", 2, {}),
    ("four", 4, {"data": 1, "node": 2, "local": 2}),
    ("eight", 8, {}),
    ("eight_with_tensor", 8, {"data": 2, "local": 2, "tensor": 2}),
  )
  def test_same_on_any_mesh(self, devices, axes):
    expected = _all(_mesh(1))
    self.assertLen(expected, _schedule().total_steps())
    found = _all(_mesh(devices, **axes))
    for (p, batch), (q, other) in zip(expected, found, strict=True):
      self.assertEqual(p, q)
      self.assertEqual(batch.keys(), other.keys())
      for name in batch:
        np.testing.assert_array_equal(batch[name], other[name])

  def test_every_sequence_once_in_order(self):
    seen = []
    for position, batch in _all(_mesh(1)):
      used = batch["tokens"].reshape(-1, _LENGTH + 1)[: position.batch_size]
      seen += [int(row[0]) // 100 for row in used]
      rest = batch["tokens"].reshape(-1, _LENGTH + 1)[position.batch_size :]
      self.assertFalse(rest.any())
    self.assertEqual(seen, list(range(len(seen))))
    self.assertEqual({p.batch_size for p, _ in _all(_mesh(1))}, {8, 16})

  def test_starts_anywhere(self):
    late, everything = _all(_mesh(1), start=11), _all(_mesh(1))
    self.assertEqual([p for p, _ in late], [p for p, _ in everything[11:]])
    np.testing.assert_array_equal(
      late[0][1]["tokens"], everything[11][1]["tokens"]
    )

  def test_an_error_of_reading_is_raised_where_it_is_needed(self):
    reader = batches.Batches(
      _Source(broken=20),
      _schedule().plan(),
      _mesh(1),
      micro_batch=8,
      micro_batches=2,
    )
    first = [position.step for position, _ in itertools.islice(reader, 2)]
    self.assertEqual(first, [0, 1])
    with self.assertRaisesRegex(ValueError, "^record 20 of shard 'a' is corr"):
      next(reader)
    reader.close()

  def test_close_ends_the_thread_though_nobody_reads(self):
    source = _Source()
    reader = batches.Batches(
      source, _schedule().plan(), _mesh(1), micro_batch=8, micro_batches=2
    )
    next(reader)
    reader.close()
    self.assertFalse(reader._thread.is_alive())
    self.assertLess(len(source.read), _schedule().total_steps())

  def test_counts_the_time_spent_waiting(self):
    reader = batches.Batches(
      _Source(), _schedule().plan(), _mesh(1), micro_batch=8, micro_batches=2
    )
    before = reader.wait_seconds
    list(reader)
    reader.close()
    self.assertEqual(before, 0)
    self.assertGreater(reader.wait_seconds, 0)


if __name__ == "__main__":
  absltest.main()
