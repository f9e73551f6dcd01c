"""The file is whole or not there."""

import json
import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.inference import answers_file


class AnswersFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / "answers.jsonl"

  def names(self):
    return sorted(path.name for path in self.folder.iterdir())

  def test_lines(self):
    records = [{"text": "é\u2028\n", "logprobs": [-0.5]}, {"text": ""}]
    with answers_file.Writer(self.path) as writer:
      for record in records:
        writer.write(record)
      self.assertEqual(self.names(), ["answers.jsonl.partial"])
    self.assertEqual(self.names(), ["answers.jsonl"])
    lines = self.path.read_text(encoding="utf-8").split("\n")
    self.assertEqual([json.loads(line) for line in lines[:-1]], records)
    self.assertEqual(lines[-1], "")

  def test_numbers_that_json_lacks_become_null(self):
    nan, inf = float("nan"), float("inf")
    with answers_file.Writer(self.path) as writer:
      writer.write({"logprobs": [nan, -inf, 0.0], "n": {"x": inf}})
    self.assertEqual(
      json.loads(self.path.read_text()),
      {"logprobs": [None, None, 0.0], "n": {"x": None}},
    )

  def test_an_error_leaves_the_file_as_it_was(self):
    self.path.write_text("before\n")
    with self.assertRaises(KeyboardInterrupt):
      with answers_file.Writer(self.path) as writer:
        writer.write({"text": "a"})
        raise KeyboardInterrupt
    self.assertEqual(self.path.read_text(), "before\n")
    self.assertEqual(writer.partial.read_text(), '{"text": "a"}\n')

  def test_an_error_before_the_first_line_leaves_nothing(self):
    with self.assertRaises(ValueError):
      with answers_file.Writer(self.path):
        raise ValueError("no weights")
    self.assertEmpty(self.names())

  @parameterized.parameters(0, 1)
  def test_a_full_disk(self, lines):
    """What was written before stays, and one line says what happened."""
    with self.assertRaises(ValueError) as caught:
      with answers_file.Writer(self.path) as writer:
        for _ in range(lines):
          writer.write({"text": "a"})
        # Every write to this device fails for want of room.
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writer._out.fileno())
        os.close(full)
        writer.write({"text": "b"})
    self.assertEqual(
      str(caught.exception),
      f"{self.path}.partial: No space left on device after {lines} answer(s); "
      "make room, or give another --output",
    )
    self.assertEqual(self.names(), ["answers.jsonl.partial"] * lines)
    if lines:
      self.assertEqual(writer.partial.read_text(), '{"text": "a"}\n')

  def test_a_disk_that_fails_in_the_end(self):
    with self.assertRaisesRegex(ValueError, "Input/output error after 1 ans"):
      with mock.patch.object(
        os, "fsync", side_effect=OSError(5, os.strerror(5))
      ):
        with answers_file.Writer(self.path) as writer:
          writer.write({"text": "a"})
    self.assertEqual(self.names(), ["answers.jsonl.partial"])

  def test_a_link_stays_a_link(self):
    target = self.folder / "target.jsonl"
    self.path.symlink_to(target)
    with answers_file.Writer(self.path) as writer:
      writer.write({})
    self.assertTrue(self.path.is_symlink())
    self.assertEqual(target.read_text(), "{}\n")

  def test_no_folder(self):
    path = self.folder / "none" / "answers.jsonl"
    with self.assertRaises(ValueError) as caught:
      answers_file.check(path)
    self.assertEqual(
      str(caught.exception),
      f"--output={path}: {str(path.parent)!r} is no folder; expected an "
      "existing one, make it first",
    )

  def test_what_is_no_file(self):
    with self.assertRaisesRegex(ValueError, "this is a folder; expected the"):
      answers_file.Writer(self.folder)
    pipe = self.folder / "pipe"
    os.mkfifo(pipe)
    with self.assertRaisesRegex(ValueError, "this is no regular file; expect"):
      answers_file.Writer(pipe)

  def test_a_folder_that_cannot_be_written_to(self):
    with mock.patch.object(os, "access", return_value=False):
      with self.assertRaises(ValueError) as caught:
        answers_file.check(self.path)
    self.assertEqual(
      str(caught.exception),
      f"--output={self.path}: {str(self.folder)!r} cannot be written to; give "
      "another folder",
    )

  def test_checking_creates_nothing(self):
    self.assertEqual(answers_file.check(self.path), self.path)
    self.assertEmpty(self.names())


if __name__ == "__main__":
  absltest.main()
