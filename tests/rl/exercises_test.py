"""Problems of files and generators, on the side where they belong."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import arithmetic
from dsx.data import problems
from dsx.rl import exercises

_SUMS = arithmetic.Generated(digits=1, train=20, held_out=4)


def _problem(name: str, prompt: str = "") -> problems.Problem:
  return problems.Problem(name, prompt or name, "words", "choice", "A")


class ExercisesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def _write(self, name: str, *found: problems.Problem) -> str:
    problems.write(self.folder / name, found)
    return str(self.folder / name)

  def test_generated(self):
    found = exercises.Exercises(generated=[_SUMS])
    self.assertLen(found.train(), 20)
    self.assertLen(found.held_out(), 4)
    self.assertEqual(found.train(), _SUMS.problems("train"))

  def test_files_in_order_then_generated(self):
    self._write("b.jsonl", _problem("b"))
    self._write("a.jsonl", _problem("a"), _problem("c"))
    held_out = self._write("held.jsonl", _problem("d"))
    found = exercises.Exercises(
      files=(str(self.folder / "[ab].jsonl"),),
      held_out_files=(held_out,),
      generated=(_SUMS,),
    )
    names = [problem.name for problem in found.train()]
    self.assertEqual(names[:3], ["a", "c", "b"])
    self.assertLen(names, 23)
    self.assertEqual(found.held_out()[0].name, "d")
    self.assertLen(found.held_out(), 5)

  def test_no_held_out_files_is_no_held_out_problem(self):
    file = self._write("a.jsonl", _problem("a"))
    self.assertEmpty(exercises.Exercises(files=(file,)).held_out())

  def test_what_is_trained_on_is_not_held_out(self):
    train = self._write("a.jsonl", _problem("a", "the same"))
    held = self._write("b.jsonl", _problem("b", "the same"))
    found = exercises.Exercises(files=(train,), held_out_files=(held,))
    with self.assertRaisesRegex(ValueError, "'b' is trained on as well"):
      found.held_out()

  def test_names_differ(self):
    a = self._write("a.jsonl", _problem("a", "one"))
    b = self._write("b.jsonl", _problem("a", "two"))
    with self.assertRaisesRegex(ValueError, "two problems are named 'a'"):
      exercises.Exercises(files=(a, b)).train()

  def test_missing_files(self):
    with self.assertRaisesRegex(ValueError, "'no/.*' matches no file"):
      exercises.Exercises(files=("no/*.jsonl",)).train()

  @parameterized.parameters(
    ({}, "expected globs of files of problems"),
    ({"files": "a.jsonl"}, "expected a tuple of globs"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      exercises.Exercises(**fields)

  def test_digest_tells_problems_apart(self):
    a, b = _problem("a"), _problem("b")
    digests = {exercises.digest(x) for x in ([], [a], [a, b], [b, a])}
    self.assertLen(digests, 4)


if __name__ == "__main__":
  absltest.main()
