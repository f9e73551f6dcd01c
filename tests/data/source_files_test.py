"""Which files are read, and how they are named and digested."""

import os
import pathlib
import sysconfig

from absl.testing import absltest

from dsx.data import source_files


class StandardLibraryTest(absltest.TestCase):
  def test_reads_what_was_written_by_hand(self):
    names = {file.name for file in source_files.standard_library()}
    self.assertContainsSubset(
      {"ast.py", "json/decoder.py", "asyncio/tasks.py"}, names
    )
    for name in names:
      folders = name.split("/")[:-1]
      self.assertNoCommonElements(
        folders, ["test", "tests", "site-packages", "encodings", "pydoc_data"]
      )
      self.assertNotIn("_sysconfigdata", name)
      self.assertEndsWith(name, ".py")

  def test_files_lie_below_the_library_in_order(self):
    files = source_files.standard_library()
    root = pathlib.Path(sysconfig.get_paths()["stdlib"]).resolve()
    for file in files:
      self.assertEqual(file.path, root / file.name)
    self.assertEqual(files, tuple(sorted(files, key=lambda file: file.path)))


class MatchedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    for name in ("a.txt", "deep/b.txt", "deep/er/c.txt", "d.md"):
      path = self.root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(name)

  def _names(self, *patterns: str) -> list[str]:
    paths = [str(self.root / pattern) for pattern in patterns]
    return [file.name for file in source_files.matched(paths)]

  def test_names_are_relative_to_the_fixed_part(self):
    self.assertEqual(
      self._names("**/*.txt"), ["a.txt", "deep/b.txt", "deep/er/c.txt"]
    )
    self.assertEqual(self._names("deep/*.txt"), ["b.txt"])
    self.assertEqual(self._names("a.txt"), ["a.txt"])

  def test_each_file_once(self):
    os.symlink(self.root / "a.txt", self.root / "link.txt")
    self.assertEqual(self._names("*.txt", "a.*", "*.md"), ["a.txt", "d.md"])

  def test_no_match_names_the_glob(self):
    with self.assertRaisesRegex(
      source_files.CorpusError, r"no file matches '.*\*\.rst'"
    ):
      self._names("*.txt", "*.rst")

  def test_folders_are_no_match(self):
    with self.assertRaisesRegex(source_files.CorpusError, "no file matches"):
      self._names("deep")

  def test_no_glob(self):
    with self.assertRaisesRegex(
      source_files.CorpusError, "got no glob, expected one or more"
    ):
      source_files.matched(())

  def test_digests_follow_name_and_content(self):
    pattern = [str(self.root / "*.txt")]
    before = source_files.digests(source_files.matched(pattern))
    again = source_files.digests(source_files.matched(pattern))
    self.assertEqual(before, again)
    (self.root / "a.txt").write_text("other")
    changed = source_files.digests(source_files.matched(pattern))
    self.assertNotEqual(before, changed)


if __name__ == "__main__":
  absltest.main()
