import json
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from dsx.training import manifest


class ManifestTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "7"
    (self.path / "arrays" / "d").mkdir(parents=True)
    (self.path / "arrays" / "d" / "chunk").write_bytes(bytes(range(256)))
    (self.path / "metadata").write_text("{}")
    self.manifest = self._manifest()
    manifest.write(self.path, self.manifest)

  def _manifest(self, **changes):
    sizes = manifest.list_files(self.path)
    fields = {
      "step": 7,
      "leaves": {
        "params/w": manifest.Leaf(
          shape=(2, 3), dtype="bfloat16", checksum=2**64 - 1
        )
      },
      "files": manifest.digest_files(self.path, sizes),
    }
    return manifest.Manifest(**fields | changes)

  def _verify(self):
    manifest.verify_files(self.path, manifest.read(self.path))

  def _assert_refused(self, line: str):
    with self.assertRaisesRegex(manifest.ManifestError, line) as caught:
      self._verify()
    self.assertNotIn("\n", str(caught.exception))

  def test_reads_what_was_written(self):
    self.assertEqual(manifest.read(self.path), self.manifest)
    self._verify()
    self.assertEqual(
      self.manifest.files["metadata"].sha256,
      "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    )
    self.assertEqual(list(self.manifest.files), ["arrays/d/chunk", "metadata"])

  def test_parts_are_the_whole(self):
    sizes = manifest.list_files(self.path)
    joined = {}
    for part in range(3):
      joined |= manifest.digest_files(self.path, sizes, part=part, parts=3)
    self.assertEqual(joined, self.manifest.files)

  def test_every_flipped_bit_of_the_manifest_is_seen(self):
    data = bytearray((self.path / manifest.NAME).read_bytes())
    for position in range(len(data)):
      for bit in range(8):
        data[position] ^= 1 << bit
        with self.assertRaises(manifest.ManifestError):
          manifest.decode(bytes(data))
        data[position] ^= 1 << bit
    self.assertEqual(manifest.decode(bytes(data)), self.manifest)

  def test_every_truncation_of_the_manifest_is_seen(self):
    data = (self.path / manifest.NAME).read_bytes()
    for length in range(len(data)):
      with self.assertRaises(manifest.ManifestError):
        manifest.decode(data[:length])

  def test_same_content_in_other_bytes_is_refused(self):
    file = self.path / manifest.NAME
    file.write_text(json.dumps(json.loads(file.read_text())))
    self._assert_refused("'manifest.json' is damaged")

  @parameterized.parameters("[]", "3", '{"a": 1}', "[" * 100_000, "\xff")
  def test_other_json_is_refused(self, text):
    (self.path / manifest.NAME).write_text(text, encoding="latin1")
    self._assert_refused("'manifest.json' is damaged")

  def test_missing_manifest(self):
    (self.path / manifest.NAME).unlink()
    self._assert_refused("'manifest.json' is missing, its save did not finish")

  def test_flipped_bit_of_a_file(self):
    chunk = self.path / "arrays" / "d" / "chunk"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 4
    chunk.write_bytes(data)
    self._assert_refused("'arrays/d/chunk' is damaged")

  def test_truncated_file(self):
    (self.path / "arrays" / "d" / "chunk").write_bytes(b"abc")
    self._assert_refused("'arrays/d/chunk' has 3 bytes instead of 256")

  def test_missing_file(self):
    (self.path / "metadata").unlink()
    self._assert_refused("'metadata' is missing")

  def test_extra_file(self):
    (self.path / "arrays" / "more").touch()
    self._assert_refused("'arrays/more' is not in the manifest")

  def test_links_are_refused_even_to_the_same_bytes(self):
    chunk = self.path / "arrays" / "d" / "chunk"
    outside = self.path.parent / "outside"
    chunk.rename(outside)
    chunk.symlink_to(outside)
    self._assert_refused("'arrays/d/chunk' is a symbolic link")
    with self.assertRaisesRegex(manifest.ManifestError, "cannot be read"):
      manifest.digest_files(self.path, {"arrays/d/chunk": 256})

  def test_linked_folder_is_refused(self):
    (self.path / "arrays").rename(self.path.parent / "arrays")
    (self.path / "arrays").symlink_to(self.path.parent / "arrays")
    self._assert_refused("'arrays' is a symbolic link")

  def test_linked_step_is_refused(self):
    self.path.rename(self.path.parent / "elsewhere")
    self.path.symlink_to(self.path.parent / "elsewhere")
    self._assert_refused("the step directory is a symbolic link")

  def test_linked_manifest_is_refused(self):
    file = self.path / manifest.NAME
    file.rename(self.path.parent / "manifest")
    file.symlink_to(self.path.parent / "manifest")
    self._assert_refused("'manifest.json' cannot be read")

  def test_pipes_are_refused(self):
    os.mkfifo(self.path / "pipe")
    self._assert_refused("'pipe' is not a plain file")

  @parameterized.parameters("../outside", "arrays/../../outside", "/etc/passwd")
  def test_names_outside_are_refused(self, name):
    file = manifest.File(size=0, sha256="")
    manifest.write(self.path, self._manifest(files={name: file}))
    self._assert_refused("'manifest.json' names a file outside")

  def test_digest_does_not_depend_on_the_order_of_keys(self):
    self.assertEqual(
      manifest.digest({"a": 1, "b": [1.5, None]}),
      manifest.digest({"b": [1.5, None], "a": 1}),
    )
    with self.assertRaises(ValueError):
      manifest.digest({"a": float("nan")})

  def test_failed_write_leaves_the_old_file(self):
    file = self.path.parent / "x"
    manifest.write_atomically(file, b"old")
    (self.path.parent / "x.tmp").mkdir()
    with self.assertRaises(OSError):
      manifest.write_atomically(file, b"new")
    self.assertEqual(file.read_bytes(), b"old")


if __name__ == "__main__":
  absltest.main()
