import pathlib

from absl.testing import absltest

from dsx.training import step_directory


class StepDirectoryTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.steps = step_directory.StepDirectory(self.root)

  def _make(self, name: str, complete: bool = True):
    (self.root / name / "arrays").mkdir(parents=True)
    if complete:
      (self.root / name / "manifest.json").touch()

  def _names(self):
    return sorted(path.name for path in self.root.iterdir())

  def test_an_absent_directory_holds_nothing(self):
    steps = step_directory.StepDirectory(self.root / "none")
    self.assertEqual((steps.complete(), steps.present()), ([], []))
    steps.remove_unfinished()
    self.assertFalse(steps.root.exists())

  def test_lists_steps_by_number(self):
    for name in ("10", "9", "0", "007", "notes", "12.damaged", "-1", "+4"):
      self._make(name)
    self._make("11", complete=False)
    self._make("13.orbax-checkpoint-tmp")
    (self.root / "14").touch()
    self.assertEqual(self.steps.complete(), [0, 9, 10])
    self.assertEqual(self.steps.present(), [0, 9, 10, 11])

  def test_removes_what_did_not_finish_and_nothing_else(self):
    kept = ["10", "12.damaged", "notes"]
    for name in kept:
      self._make(name)
    self._make("11", complete=False)
    self._make("11.orbax-checkpoint-tmp")
    self._make("13.orbax-checkpoint-tmp-2")
    self.steps.remove_unfinished(only=11)
    self.assertEqual(
      self._names(), [*kept[:2], "13.orbax-checkpoint-tmp-2", kept[2]]
    )
    self.steps.remove_unfinished()
    self.assertEqual(self._names(), kept)

  def test_links_are_removed_and_not_followed(self):
    self._make("notes")
    (self.root / "5").symlink_to(self.root / "notes" / "arrays")
    self.steps.remove_unfinished()
    self.assertEqual(self._names(), ["notes"])
    self.assertTrue((self.root / "notes" / "arrays").is_dir())

  def test_sets_damaged_steps_aside_without_loss(self):
    for expected in (["5.damaged"], ["5.damaged", "5.damaged+"]):
      self._make("5")
      self.steps.set_aside(5)
      self.assertEqual(self._names(), expected)
    self.steps.set_aside(5)

  def test_removes_a_step(self):
    self._make("5")
    self.steps.remove(5)
    self.assertEqual(self._names(), [])


if __name__ == "__main__":
  absltest.main()
