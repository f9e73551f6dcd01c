"""Files of problems and solutions: what they hold, and that they stay so."""

import hashlib
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import arithmetic
from dsx.data import courtesy
from dsx.data import problem_files
from dsx.data import problems
from dsx.data import sft
from dsx.data import source_files
from dsx.rl import preferences

_SUMS = arithmetic.Generated(train=20, held_out=5)
_REQUESTS = courtesy.Generated(train=6, held_out=2)


class ProblemFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self._folder = pathlib.Path(self.create_tempdir().full_path)

  def test_all_files(self):
    files = problem_files.ProblemFiles(
      generated=(_SUMS, _REQUESTS),
      solved=(
        problem_files.Solved(problems=_SUMS, count=8),
        problem_files.Solved(problems=_REQUESTS, count=4, form="summary"),
      ),
    )
    summary = files.write(self._folder)
    train = problems.read(self._folder / "train.jsonl")
    held_out = problems.read(self._folder / "held_out.jsonl")
    expected = [*_SUMS.problems("train"), *_REQUESTS.problems("train")]
    self.assertEqual(train, expected)
    self.assertEqual(summary["train_digest"], problems.digest(expected))
    self.assertEqual((summary["train"], summary["held_out"]), (26, 7))
    found = source_files.matched([str(self._folder / "samples.jsonl")])
    prompts = [s.messages[0][1] for _, s in sft.read(found[0])]
    self.assertLen(prompts, 12)
    self.assertEmpty(set(prompts) & {p.prompt for p in held_out})
    self.assertLessEqual(set(prompts), {p.prompt for p in train})
    # Mixed, the same every time, and as the digest says.
    self.assertNotEqual(prompts[:8], [p.prompt for p in train[:8]])
    raw = (self._folder / "samples.jsonl").read_bytes()
    self.assertEqual(hashlib.sha256(raw).hexdigest(), summary["samples_digest"])
    self.assertEqual(files.write(self._folder), summary)
    pairs = preferences.read(self._folder / "preferences.jsonl")
    self.assertLen(pairs, 4)
    self.assertLessEqual({p.prompt for p in pairs}, set(prompts))

  def test_form_alone(self):
    solved = problem_files.Solved(problems=_SUMS, count=20, format_only=1.0)
    summary = problem_files.ProblemFiles(solved=(solved,)).write(self._folder)
    self.assertCountEqual(summary, ["samples", "samples_digest"])
    lines = (self._folder / "samples.jsonl").read_text().splitlines()
    self.assertEqual({json.loads(line)["source"] for line in lines}, {"form"})

  def test_a_share_of_form_alone(self):
    made = arithmetic.Generated(train=200)
    few, many = (
      problem_files.Solved(problems=made, count=200, format_only=share)
      for share in (0.25, 0.5)
    )
    blind = [
      {s["problem"] for s in solved.samples() if s["source"] == "form"}
      for solved in (few, many)
    ]
    self.assertBetween(len(blind[0]), 30, 70)
    self.assertLess(blind[0], blind[1])

  def test_refused(self):
    for settings, message in (
      ({"count": 21}, "count=21: expected 1 to problems.train=20"),
      ({"count": 0}, "count=0: expected 1 to"),
      ({"form": "x"}, "form='x': expected tags or summary"),
      ({"format_only": 2}, "format_only=2: expected a share, 0 to 1"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        problem_files.Solved(**{"problems": _SUMS, "count": 1, **settings})
    with self.assertRaisesRegex(ValueError, r"generated=\(\): expected gen"):
      problem_files.ProblemFiles()


if __name__ == "__main__":
  absltest.main()
