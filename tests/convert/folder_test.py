"""Which files a checkpoint folder may consist of."""

import json
import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from safetensors import numpy as reference

from dsx.convert import folder as folder_lib
from dsx.convert import safetensors

_A = {"a": np.arange(3, dtype=np.float32)}
_B = {"b": np.ones((2, 2), np.float16)}


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.root = pathlib.Path(temporary.name).resolve()
    self.folder = self.root / "checkpoint"
    self.folder.mkdir()

  def _two_files(self):
    reference.save_file(_A, self.folder / "one.safetensors")
    reference.save_file(_B, self.folder / "two.safetensors")

  def _index(self, **weight_map):
    text = json.dumps({"weight_map": weight_map})
    (self.folder / folder_lib.INDEX).write_text(text)

  def _refuses(self, message, call, *args):
    with self.assertRaisesRegex(ValueError, message) as caught:
      call(*args)
    self.assertNotIn("\n", str(caught.exception))

  def test_without_an_index(self):
    self._two_files()
    found = folder_lib.tensors(self.folder)
    self.assertCountEqual(found, ["a", "b"])
    np.testing.assert_array_equal(safetensors.read(found["b"]), _B["b"])

  def test_with_an_index_reads_nothing_else(self):
    self._two_files()
    (self.folder / "other.safetensors").write_bytes(b"no such file")
    self._index(a="one.safetensors", b="two.safetensors")
    found = folder_lib.tensors(self.folder)
    self.assertEqual(found["b"].path, self.folder / "two.safetensors")

  def test_written_shards(self):
    arrays = {f"t{i}": np.full((10,), i, np.float32) for i in range(5)}
    planned = [
      safetensors.Planned(k, v.shape, v.dtype, lambda v=v: [v])
      for k, v in arrays.items()
    ]
    folder_lib.write(self.folder, {"x": 1}, planned, shard_bytes=80)
    files = sorted(p.name for p in self.folder.glob("*.safetensors"))
    self.assertEqual(
      files, [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    )
    for key, tensor in folder_lib.tensors(self.folder).items():
      np.testing.assert_array_equal(safetensors.read(tensor), arrays[key])
    self.assertEqual(folder_lib.read_json(self.folder, "config.json"), {"x": 1})

  def test_links_of_the_hugging_face_cache(self):
    blobs = self.root / "models--a--b" / "blobs"
    snapshot = self.root / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    reference.save_file(_A, blobs / "digest")
    link = snapshot / "model.safetensors"
    link.symlink_to(os.path.join("..", "..", "blobs", "digest"))
    self.assertCountEqual(folder_lib.tensors(snapshot), ["a"])

  def test_links_out_of_the_folder(self):
    reference.save_file(_A, self.root / "outside.safetensors")
    link = self.folder / "model.safetensors"
    link.symlink_to(self.root / "outside.safetensors")
    self._refuses(
      r"a link to .*outside.safetensors, outside the folder",
      folder_lib.tensors,
      self.folder,
    )

  @parameterized.parameters(
    "../outside.safetensors",
    "/etc/outside.safetensors",
    "sub/outside.safetensors",
    "./one.safetensors",
  )
  def test_index_that_names_a_path(self, name):
    reference.save_file(_A, self.root / "outside.safetensors")
    self._two_files()
    self._index(a=name)
    self._refuses(
      f"file name '{name}' leads out of the folder",
      folder_lib.tensors,
      self.folder,
    )

  @parameterized.parameters("pytorch_model.bin", "model.pt", "", 3, None)
  def test_index_that_names_no_safetensors(self, name):
    self._index(a=name)
    self._refuses(
      "tensor 'a' is in file .*: expected a .*pickles are not read",
      folder_lib.tensors,
      self.folder,
    )

  @parameterized.parameters("pytorch_model.bin", "consolidated.00.pth", "x.pt")
  def test_pickles(self, name):
    (self.folder / name).write_bytes(b"\x80\x04.")
    self._refuses(
      f"{name}: a pickle, which can run code", folder_lib.tensors, self.folder
    )

  def test_empty_folder(self):
    self._refuses(r"no \*.safetensors", folder_lib.tensors, self.folder)

  def test_missing_shard(self):
    self._two_files()
    self._index(a="one.safetensors", b="three.safetensors")
    self._refuses("three.safetensors: no such", folder_lib.tensors, self.folder)

  def test_shard_lacks_what_the_index_says(self):
    self._two_files()
    self._index(a="one.safetensors", c="two.safetensors")
    self._refuses(
      "two.safetensors: holds tensor 'b', unlike",
      folder_lib.tensors,
      self.folder,
    )

  def test_index_without_a_map(self):
    (self.folder / folder_lib.INDEX).write_text("{}")
    self._refuses("no weight_map", folder_lib.tensors, self.folder)

  def test_tensor_in_two_files(self):
    self._two_files()
    reference.save_file(_A, self.folder / "three.safetensors")
    self._refuses(
      "'a' is in both one.safetensors and three.safetensors",
      folder_lib.tensors,
      self.folder,
    )

  def test_no_folder(self):
    self._refuses(
      "nowhere: no such folder", folder_lib.resolve, self.root / "nowhere"
    )
    (self.root / "file.safetensors").touch()
    self._refuses(
      "file.safetensors: a file: expected the folder",
      folder_lib.resolve,
      self.root / "file.safetensors",
    )

  def test_does_not_write_over_a_checkpoint(self):
    self._two_files()
    self._refuses("holds one.safetensors already", folder_lib.new, self.folder)


if __name__ == "__main__":
  absltest.main()
