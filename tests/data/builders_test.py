"""The TFDS data set over the standard library, built for real."""

import pathlib

from absl.testing import absltest

from dsx.data import builders
from dsx.data import corpus
from dsx.data import source_files


class StandardLibraryTest(absltest.TestCase):
  def test_holds_the_files_split_by_name(self):
    source = corpus.Corpus("stdlib", source_files.standard_library())
    survey = source.survey()
    folder = pathlib.Path(self.create_tempdir().full_path)
    builder = builders.standard_library(source, survey, folder)
    total = 0
    for split in ("train", "validation"):
      found = builder.as_data_source(split)
      expected = list(source.split(split, survey))
      self.assertLen(found, len(expected))
      for i in (0, len(expected) // 2, len(expected) - 1):
        self.assertEqual(found[i]["name"].decode(), expected[i].name)
        self.assertEqual(found[i]["text"].decode(), expected[i].text)
      total += sum(len(found[i]["text"]) for i in range(len(found)))
    self.assertEqual(total, survey.bytes)
    self.assertBetween(
      builder.info.splits["validation"].num_examples,
      0.04 * survey.documents,
      0.13 * survey.documents,
    )

  def test_is_built_once(self):
    path = pathlib.Path(self.create_tempdir().full_path)
    for name in ("a.py", "b.py", "c.py"):
      (path / name).write_text(f"# {name}\n")
    files = tuple(
      source_files.File(file.name, file) for file in sorted(path.glob("*.py"))
    )
    source = corpus.Corpus("stdlib", files)
    survey = source.survey()
    builders.standard_library(source, survey, path / "out")
    before = {f: f.stat().st_mtime_ns for f in (path / "out").rglob("*train*")}
    builders.standard_library(source, survey, path / "out")
    after = {f: f.stat().st_mtime_ns for f in (path / "out").rglob("*train*")}
    self.assertNotEmpty(before)
    self.assertEqual(before, after)


if __name__ == "__main__":
  absltest.main()
