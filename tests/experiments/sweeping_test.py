"""What a sweep varies; how trials are told apart, run, resumed and compared."""

import csv
import fcntl
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st

from experiments.bindings import problems
from experiments.sweeping import plot
from experiments.sweeping import pool
from experiments.sweeping import space
from experiments.sweeping import table
from experiments.sweeping import trial as trial_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CI = "gin_configs/runs/ci.gin"
_TARGET = "dsx.training.pretraining.Pretraining"


def _grid(*texts: str):
  return [space.grid(text, n) for n, text in enumerate(texts, 1)]


def _draws(*texts: str):
  return [space.draw(text, n) for n, text in enumerate(texts, 1)]


class SpaceTest(parameterized.TestCase):
  @parameterized.parameters(
    ("A.b = [1e-3, 3]", ["A.b = 0.001", "A.b = 3"]),
    ("A.b=[None, 'x', (1, 2)]", ["A.b = None", "A.b = 'x'", "A.b = (1, 2)"]),
    ("A.b = [@c.D(), %E]", ["A.b = @c.D()", "A.b = %E"]),
    ("LENGTH = [\n 16,\n 32]", ["LENGTH = 16", "LENGTH = 32"]),
    ("s/A.b = ['a = [1]']", ["s/A.b = 'a = [1]'"]),
  )
  def test_a_grid_is_a_list_of_gin_values(self, text, bindings):
    found = [choice.binding for choice in space.grid(text, 1)]
    self.assertEqual(found, bindings)

  @parameterized.parameters(
    ("A.b = 1", r".*: expected KEY = \[VALUE, ...\]; write a list"),
    ("A.b = []", ".*: expected one or more values, all different"),
    ("A.b = [1, 1]", ".*: expected one or more values, all different"),
    ("A.b = [1]\nA.c = [2]", ".*: expected KEY = .*"),
    ("A.b = [x]", ".* quote it .*"),
    ("[1]", ".* is not gin .*"),
    ("import os", ".*: expected KEY = .*"),
    ("", ".*: expected KEY = .*"),
  )
  def test_grids_that_are_refused(self, text, line):
    with self.assertRaisesRegex(problems.Refused, f"^--grid:3: {line}$"):
      space.grid(text, 3)

  @parameterized.parameters(
    ("A.b = f.g(0, 1)", "f.g: expected one of choice, .*"),
    ("A.b = logunifrom(0, 1)", "logunifrom: did you mean 'log_uniform'.*"),
    ("A.b = uniform(1, 0)", ".*the lower bound first, then a higher one"),
    ("A.b = log_uniform(0, 1)", ".*a higher one, both above 0"),
    ("A.b = uniform(1)", ".*: expected two numbers"),
    ("A.b = uniform('a', 2)", ".*: expected two finite numbers"),
    ("A.b = uniform(0, 1e999)", ".*: expected two finite numbers"),
    ("A.b = integers(1, 2.5)", ".*: expected two whole numbers"),
    ("A.b = choice()", ".*: expected one or more values"),
    ("A.b = uniform(__import__('os'), 1)", ".*: expected KEY = LAW.*"),
    ("A.b = 1", ".*: expected KEY = LAW.*"),
    ("uniform(0, 1)", ".*: expected KEY = LAW.*"),
    (" = uniform(0, 1)", "'': expected a gin name.*"),
    ("a b = uniform(0, 1)", "'a b': expected a gin name.*"),
  )
  def test_draws_that_are_refused(self, text, line):
    with self.assertRaisesRegex(problems.Refused, f"^--draw:1: {line}$"):
      space.draw(text, 1)

  @hypothesis.settings(max_examples=200, deadline=None)
  @hypothesis.given(
    st.sampled_from(["uniform", "log_uniform", "integers", "log_integers"]),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.integers(0, 10**9),
  )
  def test_draws_keep_to_their_bounds_and_survive_gin(self, law, low, more, n):
    high = low + more
    scale = 1 if "integers" in law else 1e-4
    text = f"A.b = {law}({low * scale!r}, {high * scale!r})"
    choice = space.draw(text, 1).at(0, n)
    (again,) = space.grid(f"{choice.key} = [{choice.text}]", 1)
    self.assertEqual(again.text, choice.text)
    self.assertBetween(choice.value, low * scale, high * scale)
    self.assertIsInstance(choice.value, int if "integers" in law else float)

  @parameterized.parameters(
    ("uniform(0, 1)", 0.5, 0.0),
    ("log_uniform(1e-4, 1e-2)", 1e-3, 1e-4),
    ("integers(1, 3)", 2, 1),
    ("log_integers(1, 99)", 9, 1),
    ("choice(1, 2, 3)", 2, 1),
  )
  def test_laws(self, law, median, least):
    (draw,) = _draws(f"A.b = {law}")
    found = sorted(draw.at(0, number).value for number in range(2001))
    self.assertAlmostEqual(found[1000] / median, 1, delta=0.15)
    self.assertAlmostEqual(found[0], least, delta=0.05 * median)

  def test_a_draw_depends_on_its_seed_number_and_name_alone(self):
    draw, other = _draws("A.b = uniform(0, 1)", "A.c = uniform(0, 1)")
    found = {
      d.at(s, n).value for d in (draw, other) for s in (0, 1) for n in range(3)
    }
    self.assertLen(found, 12)
    self.assertEqual(draw.at(0, 0).text, "0.6276")  # in every version


class TrialsTest(parameterized.TestCase):
  def test_every_combination_with_every_draw_and_seed(self):
    found = trial_lib.trials(
      _grid("A.b = [1, 2]", "A.c = ['x', 'y']"),
      _draws("A.d = uniform(0, 1)"),
      count=3,
      seeds=[5, 6],
    )
    self.assertLen(found, 2 * 2 * 3 * 2)
    self.assertLen({trial.name for trial in found}, 24)
    drawn = {trial.choices[2].text for trial in found}
    self.assertLen(drawn, 3)  # every point of the grid gets the same draws

  def test_more_values_and_draws_keep_the_trials_there_are(self):
    draws = _draws("A.d = uniform(0, 1)")
    few = trial_lib.trials(_grid("A.b = [1, 2]"), draws, count=2)
    many = trial_lib.trials(_grid("A.b = [0, 1, 2]"), draws, count=5)
    self.assertContainsSubset([t.name for t in few], [t.name for t in many])

  def test_draws_that_come_again_are_one_trial(self):
    draws = _draws("A.b = choice(1, 2)")
    self.assertLen(trial_lib.trials([], draws, count=40), 2)

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(st.text(max_size=200))
  def test_names_are_those_of_one_folder(self, text):
    place = problems.Place("--grid", 1)
    name = trial_lib.Trial((space.Choice("A.b", repr(text), place),), 1).name
    self.assertRegex(name, r"\A[A-Za-z0-9_.=-]{9,89}\Z")
    self.assertNotIn(name[0], "-.")

  def test_what_is_varied_twice_is_refused(self):
    with self.assertRaisesRegex(problems.Refused, "--draw:1: A.b is varied tw"):
      trial_lib.trials(_grid("A.b = [1]"), _draws("A.b = uniform(0, 1)"))

  def test_too_many_are_refused(self):
    with self.assertRaisesRegex(problems.Refused, "20000 trials: expected at"):
      trial_lib.trials(_grid("A.b = [1, 2]"), [], seeds=range(10_000))

  def test_every_trial_is_checked_and_mistakes_have_their_place(self):
    wrong = _grid("Schedule.learning_rate = [1e-3, 'fast', 2e-3, 'slow']")
    with self.assertRaises(problems.Refused) as refused:
      trial_lib.check(
        trial_lib.trials(wrong, []), [_CI], ["Data.seed = 1"], target=_TARGET
      )
    self.assertEqual(
      str(refused.exception).splitlines(),
      [
        f"--grid:1: schedules.Schedule.learning_rate = '{word}': expected"
        " float; give float"
        for word in ("fast", "slow")
      ],
    )

  def test_what_is_bound_counts_and_not_where(self):
    trials = trial_lib.trials(_grid("Data.seed = [1, 2]"), [])

    def digests(*bindings):
      found = trial_lib.check(trials, [_CI], bindings, target=_TARGET)
      return list(found.values())

    one = digests("Pretraining.log_every = 5", "Pretraining.ema_every = 7")
    two = digests("Pretraining.ema_every = 7", "Pretraining.log_every = 5")
    self.assertEqual(one, two)
    self.assertNotEqual(one, digests("Pretraining.log_every = 5"))
    self.assertNotEqual(*one)


# Stands for a run: notes that it began, then ends as the folder says.
_RUN = """\
import json, os, pathlib, signal, sys
folder = pathlib.Path(sys.argv[1])
with open(folder / "began", "a") as began:
  print(os.environ.get("CUDA_VISIBLE_DEVICES"), file=began)
(folder / "metrics.jsonl").touch()
def stop(*unused):
  sys.exit("asked to stop")
signal.signal(signal.SIGTERM, stop)
if (folder / "hold").exists():
  (folder / "holds").open("w").close()  # a pipe: somebody reads it
  signal.pause()
if (folder / "fail").exists():
  sys.exit("it is broken\\x1b[2J")
text = json.dumps({"state_digest": "0", "validation_bits_per_byte": 2.0})
(folder / "summary.json").write_text(text)
"""


class PoolTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.run_file = self.folder / "run.py"
    self.run_file.write_text(_RUN)
    self.trials = trial_lib.trials(_grid("A.b = [1, 2, 3]"), [])
    self.records = [
      trial_lib.Record(self.folder / trial.name) for trial in self.trials
    ]
    self.lines = []

  def run_all(self, parallel=2, gpus=None):
    tasks = [
      pool.Task(
        trial, record, [sys.executable, str(self.run_file), record.folder], "d"
      )
      for trial, record in zip(self.trials, self.records, strict=True)
      if not record.finished
    ]
    environment = {k: v for k, v in os.environ.items() if "CUDA" not in k}
    runner = pool.Pool(parallel, environment, gpus, self.lines.append)
    return runner.run(tasks)

  def statuses(self):
    return [record.status() for record in self.records]

  def began(self, record):
    return (record.folder / "began").read_text().split()

  def test_finished_ones_are_not_run_again_and_failed_ones_are(self):
    self.assertEqual(self.statuses(), ["waiting"] * 3)
    self.records[1].folder.mkdir()
    (self.records[1].folder / "fail").touch()
    self.assertTrue(self.run_all())
    self.assertEqual(self.statuses(), ["finished", "failed (1)", "finished"])
    self.assertRegex(
      "\n".join(self.lines),
      r"\[2/3\] b=2: failed with exit code 1: it is broken\\x1b\[2J after",
    )
    (self.records[1].folder / "fail").unlink()
    self.assertTrue(self.run_all())
    self.assertEqual(self.statuses(), ["finished"] * 3)
    counts = [len(self.began(record)) for record in self.records]
    self.assertEqual(counts, [1, 2, 1])

  def test_each_has_gpus_of_its_own(self):
    self.run_all(parallel=1, gpus=2)
    self.assertEqual(self.began(self.records[2]), ["0,1"])

  def test_all_have_all_gpus_by_default(self):
    self.run_all()
    self.assertEqual(self.began(self.records[0]), ["None"])

  def _hold(self, record):
    record.folder.mkdir()
    (record.folder / "hold").touch()
    os.mkfifo(record.folder / "holds")

  def _sweep(self, parallel):
    """The pool in a process of its own, as `experiments.sweep` has it."""
    program = textwrap.dedent("""
      import pathlib, sys
      sys.path.insert(0, sys.argv[1])
      from tests.experiments import sweeping_test
      test = sweeping_test.PoolTest("run_all")
      test.folder = pathlib.Path(sys.argv[2])
      test.run_file = test.folder / "run.py"
      test.trials = sweeping_test.trial_lib.trials(
        sweeping_test._grid("A.b = [1, 2, 3]"), []
      )
      test.records = [
        sweeping_test.trial_lib.Record(test.folder / trial.name)
        for trial in test.trials
      ]
      test.lines = []
      went_on = test.run_all(parallel=int(sys.argv[3]))
      print("\\n".join(test.lines))
      sys.exit(0 if went_on else 130)
    """)
    process = subprocess.Popen(
      [sys.executable, "-c", program, _ROOT, self.folder, str(parallel)],
      stdout=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.wait)
    self.addCleanup(process.kill)
    return process

  @parameterized.parameters(signal.SIGINT, signal.SIGTERM)
  def test_a_stop_reaches_every_trial_and_no_other_begins(self, number):
    for record in self.records[:2]:
      self._hold(record)
    sweep = self._sweep(parallel=2)
    for record in self.records[:2]:
      (record.folder / "holds").read_text()  # until it holds
    sweep.send_signal(number)
    output, _ = sweep.communicate(timeout=60)
    self.assertEqual(sweep.returncode, 130)
    self.assertEqual(output.count("stopped"), 2)
    self.assertEqual(self.statuses(), ["stopped", "stopped", "waiting"])
    for record in self.records[:2]:
      (record.folder / "hold").unlink()
    self.assertTrue(self.run_all())
    self.assertEqual(self.statuses(), ["finished"] * 3)

  def test_a_trial_outlives_its_sweep_and_keeps_its_folder(self):
    held = self.records[0]
    self._hold(held)
    sweep = self._sweep(parallel=1)
    (held.folder / "holds").read_text()
    sweep.kill()
    sweep.communicate()
    self.assertEqual(held.status(), "running")
    self.assertTrue(self.run_all())
    self.assertIn("another process runs it", "\n".join(self.lines))
    self.assertLen(self.began(held), 1)
    self.assertEqual(self.statuses(), ["running", "finished", "finished"])
    # Ends the trial by what it left on the disk, and waits for its lock.
    (held.folder / "hold").unlink()
    self._end_holder(held)
    self.assertTrue(self.run_all())
    self.assertEqual(self.statuses(), ["finished"] * 3)
    self.assertLen(self.began(held), 2)

  def _end_holder(self, record):
    """Kills the process that holds a trial, and waits until it is gone."""
    name = str(record.folder).encode()
    for entry in pathlib.Path("/proc").iterdir():
      try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
      except OSError:
        continue
      if name in words and str(self.run_file).encode() in words:
        os.kill(int(entry.name), signal.SIGKILL)
    with (record.folder / "lock").open() as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)


def _row(bindings, seed, bits, status="finished"):
  place = problems.Place("--grid", 1)
  choices = tuple(space.Choice(k, v, place) for k, v in bindings.items())
  summary = {
    "validation_bits_per_byte": bits,
    "tokens_per_second": 1000.0,
    "steps": 10,
  }
  trial = trial_lib.Trial(choices, seed)
  return table.Row(trial, status, summary, trial.name)


class TableTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.rows = [
      _row({"S.rate": "0.1", "A.b": "None"}, 0, 3.0),
      _row({"S.rate": "0.1", "A.b": "None"}, 1, 4.0),
      _row({"S.rate": "0.2", "A.b": "'[red]x$'"}, 0, 2.0),
      _row({"S.rate": "0.2", "A.b": "'[red]x$'"}, 1, 9.0, "stopped"),
      _row({"S.rate": "0.3", "A.b": "1"}, 0, None, "failed (1)"),
    ]

  def test_settings_are_means_over_seeds_best_first(self):
    found = table.settings(self.rows, "validation_bits_per_byte")
    self.assertEqual([s.mean for s in found[:2]], [2.0, 3.5])
    self.assertAlmostEqual(found[1].deviation, math.sqrt(0.5))
    self.assertTrue(math.isnan(found[0].deviation))
    self.assertTrue(math.isnan(found[2].mean))

  def test_screen(self):
    lines = table.to_screen(self.rows, "validation_bits_per_byte").splitlines()
    self.assertEqual(
      [line.split() for line in lines if "─" not in line],
      [
        "rate b validation_bits_per_byte +- tokens/s trials".split(),
        "0.2 '[red]x$' 2.0000 1,000 1 finished, 1 stopped".split(),
        "0.1 None 3.5000 0.7071 1,000 2 finished".split(),
        "0.3 1 failed (1)".split(),
      ],
    )

  def test_csv(self):
    rows = list(csv.DictReader(table.to_csv(self.rows).splitlines()))
    self.assertLen(rows, 5)
    self.assertEqual(rows[2]["rate"], "0.2")
    self.assertEqual(rows[2]["b"], "[red]x$")
    self.assertEqual(rows[2]["validation_bits_per_byte"], "2.0")
    self.assertEqual(rows[3]["validation_bits_per_byte"], "")
    self.assertEqual([row["seed"] for row in rows], ["0", "1", "0", "1", "0"])

  def test_fields_of_one_name_are_told_apart(self):
    rows = [_row({"A.b": "1", "C.b": "2"}, 0, 1.0)]
    names = table.headings([row.trial for row in rows])
    self.assertEqual(names, {"A.b": "A.b", "C.b": "C.b"})

  def test_plot_shows_what_finished(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for row in self.rows:
      (folder / row.name).mkdir()
      records = [
        {"kind": "train", "step": step, "loss": 5.0 / step}
        for step in range(1, 4)
      ]
      text = "".join(json.dumps(record) + "\n" for record in records)
      (folder / row.name / "metrics.jsonl").write_text(text)
    picture = folder / "summary.png"
    metric = "validation_bits_per_byte"
    self.assertTrue(plot.write(self.rows, metric, folder, picture))
    first = picture.read_bytes()
    self.assertStartsWith(first, b"\x89PNG")
    self.assertTrue(plot.write(self.rows[:3], metric, folder, picture))
    self.assertEqual(picture.read_bytes(), first)  # the others did not finish
    self.assertTrue(plot.write(self.rows[:2], metric, folder, picture))
    self.assertNotEqual(picture.read_bytes(), first)
    self.assertFalse(plot.write(self.rows[3:], metric, folder, picture))


if __name__ == "__main__":
  absltest.main()
