import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.training import checksum
from dsx.training import commit
from dsx.training import leaves
from dsx.training import orbax_store
from dsx.training import step_directory
from dsx.training import verified_read


def _sharding(*axes, shape=(4, 2)):
  mesh = jax.make_mesh(
    shape, ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def _arrays():
  values = np.random.default_rng(0).normal(size=(8, 16))
  return {
    "params/w": jax.device_put(values.astype(np.float32), _sharding("a", "b")),
    "params/norm": jax.device_put(
      jnp.asarray(values[0], jnp.bfloat16), _sharding()
    ),
    "key": jax.device_put(
      jax.random.split(jax.random.key(3), 8), _sharding("b")
    ),
  }


def _abstract(arrays, sharding=None):
  return {
    name: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding or leaf.sharding
    )
    for name, leaf in arrays.items()
  }


class VerifiedReadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.create_tempdir().full_path)
    self.path = root / "7"
    self.store = orbax_store.OrbaxStore(60)
    self.addCleanup(self.store.close)
    self.arrays = _arrays()
    self._save(self.arrays)

  def _save(self, arrays, sums_of=None):
    """Writes step 7, with the checksums of other arrays if so told."""
    plain = {name: leaves.plain(leaf) for name, leaf in arrays.items()}
    self.store.write(self.path, plain, {"tokens": 5})
    self.store.wait()
    sums = {
      name: checksum.of_pieces(checksum.pieces(leaves.plain(leaf)))
      for name, leaf in (sums_of or arrays).items()
    }
    pending = commit.Pending(
      step=7, serial=1, leaves=commit.describe(arrays), sums=sums
    )
    directory = step_directory.StepDirectory(self.path.parent)
    commit.commit(directory, pending, timeout_seconds=60)

  def _read(self, wanted, partial=False):
    problem, found = verified_read.verify(self.path)
    self.assertEqual(problem, "")
    verified_read.check_target(self.path, found, wanted, partial=partial)
    return verified_read.arrays(self.store, self.path, found, wanted)

  def _assert_refused(self, line, wanted, **kwargs):
    with self.assertRaisesRegex(verified_read.CheckpointError, line) as caught:
      self._read(wanted, **kwargs)
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.parameters(
    ((), (4, 2)), (("b",), (1, 8)), (("a",), (2, 4)), (("a",), (1, 1))
  )
  def test_reads_what_was_saved_on_another_mesh(self, axes, shape):
    wanted = _abstract(self.arrays, _sharding(*axes, shape=shape))
    problem, found = self._read(wanted)
    self.assertEqual(problem, "")
    for name, leaf in found.items():
      self.assertEqual(leaf.dtype, self.arrays[name].dtype)
      self.assertTrue(
        leaf.sharding.is_equivalent_to(wanted[name].sharding, leaf.ndim)
      )
      np.testing.assert_array_equal(
        leaves.plain(leaf), leaves.plain(self.arrays[name])
      )

  def test_reads_metadata(self):
    found = verified_read.manifest(self.path)
    self.assertEqual(verified_read.metadata(self.path, found), {"tokens": 5})
    (self.path / orbax_store.METADATA).write_text('{"tokens": 6}')
    with self.assertRaisesRegex(ValueError, "'metadata/metadata' is damaged"):
      verified_read.metadata(self.path, found)

  def test_another_dtype_is_refused(self):
    wanted = _abstract(self.arrays)
    wanted["params/norm"] = jax.ShapeDtypeStruct(
      (16,), jnp.float32, sharding=_sharding()
    )
    self._assert_refused(
      r"'params/norm' has dtype bfloat16 in checkpoint \S+/7, but float32 is"
      " asked for",
      wanted,
    )

  def test_another_kind_of_key_is_refused(self):
    wanted = _abstract(self.arrays)
    dtype = jax.random.key(0, impl="rbg").dtype
    wanted["key"] = jax.ShapeDtypeStruct((8,), dtype, sharding=_sharding())
    self._assert_refused(
      r"'key' has dtype key<threefry2x32> .* key<rbg>", wanted
    )

  def test_another_shape_is_refused(self):
    wanted = _abstract(self.arrays)
    wanted["params/w"] = jax.ShapeDtypeStruct(
      (16, 8), jnp.float32, sharding=_sharding()
    )
    self._assert_refused(
      r"'params/w' has shape \(8, 16\) .* \(16, 8\) is asked for", wanted
    )

  def test_a_leaf_too_many_is_refused(self):
    wanted = _abstract(self.arrays)
    wanted["params/more"] = wanted["params/w"]
    self._assert_refused("'params/more' is not in checkpoint", wanted)

  def test_a_leaf_too_few_is_refused_unless_partial(self):
    wanted = _abstract({"params/w": self.arrays["params/w"]})
    self._assert_refused(
      r"'key' is in checkpoint \S+ but not asked for \(2 such arrays\)", wanted
    )
    problem, found = self._read(wanted, partial=True)
    self.assertEqual((problem, list(found)), ("", ["params/w"]))

  def test_values_changed_on_the_way_to_the_disk_are_seen(self):
    w = np.asarray(self.arrays["params/w"]).copy()
    w.view(np.uint32)[3, 5] ^= 1 << 7
    for entry in sorted(self.path.rglob("*"), reverse=True):
      entry.rmdir() if entry.is_dir() else entry.unlink()
    self.path.rmdir()
    bent = self.arrays | {
      "params/w": jax.device_put(w, self.arrays["params/w"].sharding)
    }
    self._save(bent, sums_of=self.arrays)
    problem, _ = self._read(_abstract(self.arrays))
    self.assertEqual(
      problem, "the values of 'params/w' are not those that were saved"
    )

  def test_a_renamed_folder_is_seen(self):
    other = self.path.with_name("8")
    self.path.rename(other)
    problem, _ = verified_read.verify(other)
    self.assertEqual(problem, "the folder is named 8, its manifest says 7")

  def test_one_line(self):
    self.assertEqual(verified_read.one_line(KeyError()), "KeyError")
    self.assertEqual(verified_read.one_line(ValueError("a\n  b")), "a b")
    self.assertEqual(
      verified_read.one_line(ValueError("x" * 999 + " [os_error_code='28']")),
      "No space left on device",
    )


if __name__ == "__main__":
  absltest.main()
