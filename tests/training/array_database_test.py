"""What is written part by part is what Orbax reads, and the other way."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.training import array_database
from dsx.training import orbax_store

_TIMEOUT = 60


def _array(shape, dtype: str):
  values = np.random.default_rng(0).normal(size=shape)
  return np.asarray(values.astype(np.float32), jnp.dtype(dtype))


class ChunkShapeTest(parameterized.TestCase):
  @parameterized.parameters(
    # (shape, bytes of an element, stacked, axis, step, expected)
    ((58, 256, 7168, 2048), 1, 2, 3, 128, (1, 1, 7168, 2048)),
    ((58, 256, 7168, 2048), 2, 2, 3, 128, (1, 1, 7168, 1152)),
    ((58, 256, 56, 16), 4, 2, 3, 1, (2, 256, 56, 16)),
    ((129280, 7168), 2, 0, 0, 128, (1152, 7168)),
    ((61, 7168), 4, 1, 1, 1, (61, 7168)),
    ((7168,), 4, 0, 0, 1, (7168,)),
    ((4, 2**24, 5), 4, 1, 2, 128, (1, 2**24, 5)),
  )
  def test_literal(self, shape, itemsize, stacked, axis, step, expected):
    chunk = array_database.chunk_shape(
      shape, itemsize, stacked=stacked, axis=axis, step=step
    )
    self.assertEqual(chunk, expected)

  @parameterized.parameters(((5, 7), (2, 3)), ((4, 4), (4, 4)), ((3,), (1,)))
  def test_boxes_cover_every_element_once(self, shape, chunk):
    count = np.zeros(shape, np.int32)
    for box in array_database.boxes(shape, chunk):
      count[box] += 1
    np.testing.assert_array_equal(count, 1)


class ArrayDatabaseTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.store = orbax_store.OrbaxStore(_TIMEOUT)
    self.addCleanup(self.store.close)

  def _target(self, array):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

  @parameterized.parameters("float8_e4m3fn", "bfloat16", "float16", "float32")
  def test_orbax_reads_what_was_written_in_parts(self, dtype):
    arrays = {
      "state/a/kernel": _array((3, 5, 7), dtype),
      "state/b": np.zeros((4,), jnp.dtype(dtype)),  # the fill value
    }
    database = array_database.ArrayDatabase(self.folder / "database")
    for name, array in arrays.items():
      chunk = (2, *array.shape[1:])
      store = database.create(name, array.shape, array.dtype, chunk)
      for box in array_database.boxes(array.shape, chunk):
        store[box].write(array[box]).result()
    metadata = {"x": 1}
    self.store.adopt(
      self.folder / "0", arrays, self.folder / "database", metadata
    )
    self.assertFalse((self.folder / "database").exists())
    targets = {name: self._target(array) for name, array in arrays.items()}
    found = self.store.read(self.folder / "0", targets, partial=False)
    for name, array in arrays.items():
      np.testing.assert_array_equal(np.asarray(found[name]), array)
    self.assertIn('"x"', (self.folder / "0" / orbax_store.METADATA).read_text())
    one = {"state/b": targets["state/b"]}
    found = self.store.read(self.folder / "0", one, partial=True)
    self.assertEqual(list(found), ["state/b"])

  def test_reads_parts_of_what_orbax_wrote(self):
    array = _array((4, 6, 5), "bfloat16")
    self.store.write(self.folder / "0", {"a/b": jnp.asarray(array)}, {})
    self.store.wait()
    database = array_database.ArrayDatabase(self.folder / "0" / "arrays")
    found = database.open("a/b")[2, 1:3].read().result()
    np.testing.assert_array_equal(found, array[2, 1:3])

  @parameterized.parameters((), (2,), (2, 3), (2, 3, 4))
  def test_reads_at_an_index_of_a_stack(self, *index):
    array = _array((4, 6, 5), "float32")
    database = array_database.ArrayDatabase(self.folder)
    store = database.create("a", array.shape, array.dtype, (3, 4, 2))
    store.write(array).result()
    found = array_database.read(database.open("a"), index)
    np.testing.assert_array_equal(found, array[index])

  def test_an_array_that_is_begun_is_gone_on_with(self):
    array = _array((4, 3), "float32")
    for row in range(4):
      database = array_database.ArrayDatabase(self.folder)
      store = database.create("a", array.shape, array.dtype, (1, 3))
      store[row].write(array[row]).result()
    found = array_database.ArrayDatabase(self.folder).open("a").read().result()
    np.testing.assert_array_equal(found, array)


if __name__ == "__main__":
  absltest.main()
