"""Roads of stages: what decides a folder, what is run again, what is told."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from experiments.bindings import problems
from experiments.staging import plan
from experiments.staging import record
from experiments.staging import report
from experiments.staging import stage as stage_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PROBLEMS = "gin_configs/rl/problems_tiny.gin"
_WORKDIR = pathlib.Path("/nowhere")


def _stage(name: str, *bindings: str, **fields) -> stage_lib.Stage:
  return stage_lib.Stage(
    name=name,
    binary="make_problems",
    gin_files=(_PROBLEMS,),
    gin_bindings=bindings,
    evaluate=False,
    **fields,
  )


def _road(*stages: stage_lib.Stage, **fields) -> stage_lib.Road:
  return stage_lib.Road(stages=stages, **fields)


def _takes(name: str) -> str:
  """A binding that takes from a stage, of `_taking`."""
  return f"pipeline.Data.files = ('{{{name}}}/samples.jsonl',)"


def _taking(name: str, *bindings: str) -> stage_lib.Stage:
  return stage_lib.Stage(
    name=name,
    binary="sft",
    gin_files=("gin_configs/rl/sft_tiny.gin",),
    gin_bindings=bindings,
    evaluate=False,
  )


def _folders(road: stage_lib.Road, workdir=_WORKDIR) -> dict[str, str]:
  return {c.stage.name: c.folder.name for c in plan.commands(road, workdir)}


class PlanTest(parameterized.TestCase):
  def test_a_change_moves_what_stands_on_it_and_nothing_else(self):
    train = "arithmetic.Generated.train = {}".format
    first, second = _stage("a", train(2000)), _stage("b", train(3000))
    third = _taking("c", _takes("b"))
    before = _folders(_road(first, second, third))
    self.assertLen(set(before.values()), 3)
    later = _folders(_road(first, second, _taking("c", _takes("a"))))
    self.assertEqual(before["a"], later["a"])
    self.assertEqual(before["b"], later["b"])
    self.assertNotEqual(before["c"], later["c"])
    later = _folders(_road(first, _stage("b", train(3001)), third))
    self.assertEqual(before["a"], later["a"])
    self.assertNotEqual(before["b"], later["b"])
    self.assertNotEqual(before["c"], later["c"])
    # Neither a title nor a place says what is made; a seed does.
    titled = dataclasses.replace(second, title="Other")
    found = _folders(_road(first, titled, third), pathlib.Path("/else/where"))
    self.assertEqual(before, found)
    self.assertNotEqual(before, _folders(_road(first, second, third, seed=1)))

  def test_files_that_are_read_count(self):
    path = pathlib.Path(self.create_tempfile("data").full_path)
    path.write_text("one")
    stage = _stage("a", reads=(str(path),))
    before = _folders(_road(stage))
    path.write_text("two")
    self.assertNotEqual(before, _folders(_road(stage)))
    path.unlink()
    with self.assertRaisesRegex(ValueError, "No such file .*: expected a file"):
      self.assertIsNone(_folders(_road(stage)))

  def test_folders_are_filled_in(self):
    _, second = plan.commands(
      _road(_stage("a"), _taking("b", _takes("a"))), _WORKDIR
    )
    (binding,) = [a for a in second.arguments if "Data.files" in a]
    self.assertRegex(
      binding, r" = \('/nowhere/stages/a-[0-9a-f]{10}/samples.jsonl',\)$"
    )
    self.assertEqual([p.name[:2] for p in second.needs], ["a-"])

  def test_mistakes_name_the_stage(self):
    road = _road(_stage("a"), _stage("b", "arithmetic.Generated.trainn = 3"))
    with self.assertRaises(problems.Refused) as caught:
      plan.commands(road, _WORKDIR)
    self.assertRegex(
      str(caught.exception.problems[0]),
      r"stage 'b': arithmetic.Generated has no field 'trainn'; did you mean",
    )

  @parameterized.parameters(
    (("a", "a"), (), "two are named 'a'"),
    (("a",), (_takes("b"),), "'a' binds .*: expected in braces one of .* none"),
    (("a", "b"), (_takes("b"),), "expected in braces one of the stages before"),
    (("A",), (), "name='A': expected small letters"),
    (("stage",), (), "name='stage': expected small letters"),
  )
  def test_refused(self, names, bindings, message):
    with self.assertRaisesRegex(ValueError, message):
      self.assertIsNone(_road(*(_stage(name, *bindings) for name in names)))

  def test_targets_are_those_of_the_binaries(self):
    for binary, target in plan.TARGETS.items():
      text = (_ROOT / "experiments" / f"{binary}.py").read_text()
      if "target=pretrain.TARGET" in text:
        text = (_ROOT / "experiments" / "pretrain.py").read_text()
      (found,) = re.findall(r'^TARGET = "(.*)"$', text, re.MULTILINE)
      self.assertEqual(found, target, binary)


class ReportTest(parameterized.TestCase):
  def test_table_plot_and_lineage(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    stages = [
      dataclasses.replace(_stage(name), evaluate=True, title=name.upper())
      for name in ("a", "b")
    ]
    road = _road(*stages, title="A road")
    policy = "start.Start.path = '{stage}'"
    road = dataclasses.replace(
      road,
      evaluation=stage_lib.Evaluation(
        gin_files=("gin_configs/rl/evaluate_tiny.gin",), gin_bindings=(policy,)
      ),
    )
    commands = plan.commands(road, workdir)
    self.assertEqual([c.evaluates for c in commands], [False, True] * 2)
    for number, command in enumerate(commands[:2]):
      command.folder.mkdir(parents=True)
      if command.evaluates:
        score = {"k": 8, "pass_1": 0.5, "pass_1_low": 0.4, "pass_1_high": 0.6}
        score |= {f"pass_k{end}": 0.75 for end in ("", "_low", "_high")}
        score |= {f"accuracy_sums{end}": 0.25 for end in ("", "_low", "_high")}
        summary = command.folder / record.SUMMARY
        summary.write_text(json.dumps(score | {"length": 12.25}))
      record.Record(command).finish(10.0 + number, ["-m", "x"])
    written = report.write(road, commands, workdir)
    self.assertEqual(
      [p.name for p in written],
      ["stages.md", "stages.csv", "lineage.json", "stages.png"],
    )
    lines = written[0].read_text().splitlines()
    self.assertEqual(
      lines[0],
      "| stage | pass@1 | pass@8 | cons@8 | sums | tokens | seconds |",
    )
    self.assertEqual(
      lines[2],
      "| A | 0.500 [0.400, 0.600] | 0.750 [0.750, 0.750] |  |"
      " 0.250 [0.250, 0.250] | 12.2 | 10 |",
    )
    self.assertEqual(lines[3], "| B |  |  |  |  |  |  |")
    lineage = json.loads(written[2].read_text())
    self.assertEqual(lineage[0]["command"], ["-m", "x"])
    self.assertEqual(lineage[1]["needs"], [commands[0].folder.name])
    self.assertIn("0.500 [0.400, 0.600]", report.to_screen(road, commands))


class WalkTest(absltest.TestCase):
  """The road as a person goes it, of stages that only write files."""

  def go(self, folder: pathlib.Path, *arguments: str):
    return subprocess.run(
      [
        sys.executable,
        "-m",
        "experiments.r1",
        f"--gin_file={folder / 'road.gin'}",
        f"--workdir={folder / 'road'}",
        *arguments,
      ],
      env={"PYTHONPATH": str(_ROOT), "PATH": "/usr/bin:/bin"},
      capture_output=True,
      text=True,
      check=False,
    )

  def test_what_is_done_is_not_done_again(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    lines = [
      "from __gin__ import dynamic_registration",
      "from experiments.staging import stage",
      "stage.Road.stages = (@one/stage.Stage(), @two/stage.Stage())",
    ]
    for name, count in (("one", 3), ("two", 0)):  # the second one is refused
      prefix = f"{name}/stage.Stage"
      lines += [
        f"{prefix}.name = '{name}'",
        f"{prefix}.binary = 'make_problems'",
        f"{prefix}.gin_files = ('{_PROBLEMS}',)",
        f"{prefix}.gin_bindings = ('problem_files.Solved.count = {count}',)",
        f"{prefix}.evaluate = False",
      ]
    (folder / "road.gin").write_text("\n".join(lines))
    planned = self.go(folder, "--dry_run")
    self.assertEqual(planned.returncode, 0, planned.stderr)
    self.assertIn("# one: to run\npython -m experiments.make_p", planned.stdout)
    self.assertFalse((folder / "road").exists())

    failed = self.go(folder)
    self.assertEqual(failed.returncode, 1, failed.stdout)
    self.assertRegex(
      failed.stderr,
      r"^stage 'two' ended with exit code 1; its log is .*/two-.*/log.txt; the "
      r"same command goes on from there\n$",
    )
    self.assertRegex(failed.stdout, r"  one \| samples: 3\n")
    self.assertRegex(failed.stdout, r"  two \| .*count=0: expected 1 to")
    (log,) = (folder / "road" / "stages").glob("two-*/log.txt")
    self.assertIn("count=0", log.read_text())

    right = "two/Stage.gin_bindings = ('problem_files.Solved.count = 5',)"
    done = self.go(folder, f"--gin_bindings={right}")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertRegex(done.stdout, r"\[1/2\] one: done before, in \d+ s")
    self.assertRegex(done.stdout, r"\[2/2\] two: done in \d+ s")
    self.assertIn("samples: 5", done.stdout)
    lineage = folder / "road" / "report" / "lineage.json"
    ran = [entry["stage"] for entry in json.loads(lineage.read_text())]
    self.assertEqual(ran, ["one", "two"])


if __name__ == "__main__":
  absltest.main()
