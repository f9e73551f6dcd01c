"""A folder that cannot be used, or holds another run, is refused in a line."""

import json
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import pipeline
from dsx.training import pretraining
from dsx.training import schedules
from dsx.training import workdir
from tests.training import tiny


def _run(**changes) -> pretraining.Pretraining:
  length = 8
  fields = {
    "config": tiny.model_config(),
    "data": pipeline.Data(sequence_length=length),
    "schedule": schedules.constant(
      steps=4, learning_rate=1e-3, batch_size=8, sequence_length=length
    ),
  }
  return pretraining.Pretraining(**(fields | changes))


class DifferenceTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"a": 1}, {"a": 1}, None),
    ({"a": 1}, {"a": 2}, ("a", 1, 2)),
    ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, ("a.b", [1, 2], [1, 3])),
    ({"a": 1}, {"a": 1, "b": 2}, ("b", None, 2)),
    ({"a": {"b": 1}}, {"a": None}, ("a", {"b": 1}, None)),
  )
  def test_literal(self, old, new, expected):
    self.assertEqual(workdir.difference(old, new), expected)


class ClaimTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "deep" / "run"

  def _saved(self) -> None:
    """As a run leaves it that has saved something."""
    workdir.claim(self.path, _run())
    (self.path / workdir.CHECKPOINTS / "4").mkdir(parents=True)

  def _assert_refused(self, pattern: str, run=None, path=None) -> None:
    with self.assertRaisesRegex(workdir.WorkdirError, pattern) as caught:
      workdir.claim(path or self.path, run or _run())
    self.assertNotIn("\n", str(caught.exception))

  def test_makes_it_and_leaves_only_its_identity(self):
    self.assertEqual(workdir.claim(str(self.path), _run()), self.path)
    self.assertEqual([p.name for p in self.path.iterdir()], [workdir.IDENTITY])
    saved = json.loads((self.path / workdir.IDENTITY).read_text())
    self.assertEqual(saved, _run().identity())

  def test_same_run_again(self):
    self._saved()
    workdir.claim(self.path, _run())

  @parameterized.named_parameters(
    ("log_every", {"log_every": 3}),
    ("checkpoint_every", {"checkpoint_every": 1, "keep_checkpoints": 9}),
    ("data_place", {"data": pipeline.Data(sequence_length=8, cache_dir="/x")}),
  )
  def test_what_does_not_change_training_may_change(self, changes):
    self._saved()
    workdir.claim(self.path, _run(**changes))

  @parameterized.named_parameters(
    ("seed", {"seed": 7}, r"with seed=0, this one has 7"),
    (
      "model",
      {"config": tiny.model_config(hidden_size=48)},
      r"with config.hidden_size=32, this one has 48",
    ),
    (
      "data",
      {"data": pipeline.Data(sequence_length=8, fim_rate=0.2)},
      r"with data.fim_rate=0.1, this one has 0.2",
    ),
    ("average", {"ema_decay": 0.9}, r"with ema_decay=None, this one has 0.9"),
  )
  def test_another_run(self, changes, said):
    self._saved()
    self._assert_refused(
      rf"^workdir {self.path} holds a run {said}: give another --workdir, or"
      " the old value to resume$",
      _run(**changes),
    )
    # The refused run has not overwritten whose folder it is.
    workdir.claim(self.path, _run())

  def test_a_run_that_saved_nothing_is_replaced(self):
    workdir.claim(self.path, _run())
    (self.path / workdir.CHECKPOINTS).mkdir()
    workdir.claim(self.path, _run(seed=7))

  def test_damaged_identity(self):
    self._saved()
    (self.path / workdir.IDENTITY).write_text('{"config": ')
    self._assert_refused(r"run.json is damaged: .*restore it, or give another")

  def test_a_file_is_there(self):
    self.path.parent.mkdir()
    self.path.write_text("")
    self._assert_refused(r"cannot be written: File exists; give another --work")

  def test_below_a_file(self):
    self.path.parent.mkdir()
    self.path.write_text("")
    self._assert_refused(
      r"cannot be written: Not a directory; give another", path=self.path / "a"
    )

  def test_full(self):
    usage = shutil.disk_usage("/")._replace(free=1000)
    with mock.patch.object(shutil, "disk_usage", return_value=usage):
      self._assert_refused(r"has 0.0 MiB free, and one checkpoint takes about")

  def test_room_for_the_average_too(self):
    """4 bytes a parameter and moment, and 4 more for the average."""
    small, large = _run(), _run(ema_decay=0.9)
    usage = shutil.disk_usage("/")._replace(free=0)
    needed = []
    for run in (small, large):
      with mock.patch.object(shutil, "disk_usage", return_value=usage):
        with self.assertRaises(workdir.WorkdirError) as caught:
          workdir.claim(self.path, run)
      needed.append(str(caught.exception).split("about ")[1].split()[0])
    self.assertLess(float(needed[0]), float(needed[1]))


class DescribeTest(parameterized.TestCase):
  def test_replaces_whole_files(self):
    path = pathlib.Path(self.create_tempdir().full_path)
    workdir.describe(path, **{"a.txt": "old", "b.txt": "b"})
    workdir.describe(path, **{"a.txt": "new"})
    found = {file.name: file.read_text() for file in path.iterdir()}
    self.assertEqual(found, {"a.txt": "new", "b.txt": "b"})

  def test_a_full_disk_leaves_the_old_file(self):
    path = pathlib.Path(self.create_tempdir().full_path)
    workdir.describe(path, **{"a.txt": "old"})
    full = OSError(28, "No space left on device")
    with (
      mock.patch.object(pathlib.Path, "write_text", side_effect=full),
      self.assertRaises(OSError),
    ):
      workdir.describe(path, **{"a.txt": "new"})
    self.assertEqual((path / "a.txt").read_text(), "old")


if __name__ == "__main__":
  absltest.main()
