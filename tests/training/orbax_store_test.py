import contextlib
import logging
import pathlib
import resource
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dsx.training import array_database
from dsx.training import orbax_store


def _placed(values, *axes):
  mesh = jax.make_mesh(
    (4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  spec = jax.sharding.PartitionSpec(*axes)
  return jax.device_put(values, jax.sharding.NamedSharding(mesh, spec))


def _values(seed=0):
  return np.random.default_rng(seed).normal(size=(64, 512)).astype(np.float32)


@contextlib.contextmanager
def largest_file(size: int):
  """Makes writes past `size` bytes of a file fail, as on a full disk."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


class OrbaxStoreTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "3"
    self.store = orbax_store.OrbaxStore(60)
    self.addCleanup(self.store.close)

  @parameterized.parameters((("a", "b"),), ((),), (("b",),))
  def test_arrays_may_be_donated_at_once(self, axes):
    array = jax.jit(lambda x: x + 0)(_placed(_values(), *axes))
    step = jax.jit(lambda x: x * 0 - 7, donate_argnums=0)
    self.store.write(self.path, {"x/y": array}, {})
    for _ in range(5):
      array = step(array)
    self.store.wait()
    read = self.store.read(self.path, {"x/y": array}, partial=False)
    np.testing.assert_array_equal(read["x/y"], _values())

  @parameterized.parameters(((8, 6, 16),), ((12, 64),))
  def test_large_arrays_are_cut_into_chunks(self, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with mock.patch.object(orbax_store, "_CHUNK_BYTES", 2048):
      self.store.write(self.path, {"x": _placed(values, "a")}, {})
      self.store.wait()
    store = array_database.ArrayDatabase(self.path / "arrays").open("x")
    self.assertLessEqual(array_database.chunk_bytes(store), 2048)
    if len(shape) > 2:  # layers apart
      first = next(array_database.chunks(store))
      self.assertEqual(first[0], slice(0, 1))
    target = _placed(values, "b")
    found = self.store.read(self.path, {"x": target}, partial=False)
    np.testing.assert_array_equal(found["x"], values)

  def test_metadata_is_where_it_says(self):
    self.store.write(self.path, {"x": _placed(_values())}, {"a": [1, "ü"]})
    self.store.wait()
    text = (self.path / orbax_store.METADATA).read_text()
    self.assertEqual(text, '{"a": [1, "\\u00fc"]}')

  def test_orbax_alone_can_open_it(self):
    self.store.write(self.path, {"x/y": _placed(_values(), "a")}, {"a": 1})
    self.store.wait()
    with ocp.CheckpointManager(self.path.parent) as manager:
      self.assertEqual(manager.latest_step(), 3)
      target = {"x": {"y": np.zeros((64, 512), np.float32)}}
      found = manager.restore(
        3,
        args=ocp.args.Composite(
          arrays=ocp.args.StandardRestore(target),
          metadata=ocp.args.JsonRestore(),
        ),
      )
    np.testing.assert_array_equal(found.arrays["x"]["y"], _values())
    self.assertEqual(found.metadata, {"a": 1})

  def test_reads_a_part(self):
    arrays = {"x": _placed(_values()), "y": _placed(_values(1), "a")}
    self.store.write(self.path, arrays, {})
    self.store.wait()
    read = self.store.read(self.path, {"y": arrays["y"]}, partial=True)
    self.assertEqual(list(read), ["y"])
    np.testing.assert_array_equal(read["y"], _values(1))

  def test_reads_into_another_sharding_and_memory(self):
    self.store.write(self.path, {"x": _placed(_values(), "a", "b")}, {})
    self.store.wait()
    sharding = _placed(_values(), None, "a").sharding
    target = jax.ShapeDtypeStruct(
      (64, 512), np.float32, sharding=sharding.with_memory_kind("pinned_host")
    )
    read = self.store.read(self.path, {"x": target}, partial=False)["x"]
    self.assertEqual(read.sharding, target.sharding)
    np.testing.assert_array_equal(read, _values())

  # TensorStore reports the other arrays' failures to a loop that Orbax closed.
  @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
  def test_a_full_disk_is_raised_and_not_also_shouted(self):
    array = _placed(_values(), "a")
    with self.assertNoLogs(level=logging.ERROR), largest_file(10_000):
      with self.assertRaisesRegex(Exception, "File too large"):
        self.store.write(self.path, {"x": array}, {})
        self.store.wait()
    self.assertFalse(self.path.exists())
    self.store.write(self.path.parent / "4", {"x": array}, {})
    self.store.wait()
    self.assertTrue((self.path.parent / "4").exists())

  def test_other_errors_are_still_logged(self):
    with self.assertLogs("absl", logging.ERROR):
      logging.getLogger("absl").error("of somebody else")


if __name__ == "__main__":
  absltest.main()
