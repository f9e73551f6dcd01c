"""A whole run, and runs that are disturbed in every way and end as it did.

The reference is one undisturbed run with several updates to a rollout, a
reference that is renewed, a balance loss and router biases that move. It keeps
every checkpoint, so that other tests go on from the middle of it.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.rl import completions
from dsx.rl import explorer
from dsx.rl import learner
from dsx.rl import loop
from dsx.rl import measures
from dsx.rl import pending
from dsx.rl import report
from dsx.training import observer
from dsx.training import restore
from dsx.training import workdir as workdir_lib
from tests.rl import tiny_reinforcement
from tests.training import tiny_run

_kept = contextlib.ExitStack()


def setUpModule():
  global _folder, _reference, _summary, _printed
  _folder = _kept.enter_context(tiny_run.folder())
  _kept.enter_context(tiny_reinforcement.one_device())
  _reference = _folder / "reference"
  printed = io.StringIO()
  run = tiny_reinforcement.run(checkpoint_every=1)
  with contextlib.redirect_stdout(printed):
    _summary = loop.reinforce(run, _reference, resume_command="the command")
  _printed = printed.getvalue()


def tearDownModule():
  _kept.close()


def _reinforce(workdir, **changes) -> tuple[dict, str]:
  """Summary and standard output of a run without pictures."""
  printed = io.StringIO()
  with (
    contextlib.redirect_stdout(printed),
    mock.patch.object(report, "write", return_value=[]),
  ):
    summary = loop.reinforce(tiny_reinforcement.run(**changes), workdir)
  return summary, printed.getvalue()


def _from_step(step: int, name: str):
  """A copy of the reference as it was when it had saved `step`."""
  workdir = _folder / name
  shutil.copytree(_reference, workdir)
  for path in (workdir / workdir_lib.CHECKPOINTS).iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  return workdir


@contextlib.contextmanager
def _before_step(step: int, action, *, what: str = "take"):
  """Does something when the loop is about to take a step, or to `explore`."""
  method = getattr(learner.Learner, what)

  def called(self, progress):
    if progress.step == step:
      action()
    return method(self, progress)

  with mock.patch.object(learner.Learner, what, called):
    yield


class WholeRunTest(parameterized.TestCase):
  def test_summary(self):
    written = json.loads((_reference / "summary.json").read_text())
    self.assertEqual(written, _summary)
    self.assertEqual(_summary["steps"], tiny_reinforcement.STEPS)
    self.assertTrue(_summary["finished"])
    self.assertRegex(_summary["state_digest"], "^[0-9a-f]{64}$")
    self.assertEqual(_summary["resume_command"], "the command")
    self.assertIn("to resume: the command", _printed)

  def test_every_step_is_recorded(self):
    found = report.read(_reference)
    steps = [record["step"] for record in found.steps]
    self.assertEqual(steps, list(range(1, tiny_reinforcement.STEPS + 1)))
    self.assertEqual([r["rollout"] for r in found.steps], [0, 0, 0, 1, 1, 1, 2])
    self.assertEqual([r["age"] for r in found.steps], [0, 1, 2, 0, 1, 2, 0])
    self.assertEqual([r["problems"] for r in found.steps][::3], [6, 12, 18])
    self.assertEqual([r["reference_step"] for r in found.steps][::3], [0, 3, 6])
    for record in found.steps:
      self.assertEqual(record["finite"], 1)
      self.assertGreater(record["grad_norm"], 0)
      self.assertLess(record["mismatch_max"], 1e-4)
      self.assertGreater(record["seconds_generate"], 0)
    # The reference is the policy itself at first, and then no more.
    self.assertLess(abs(found.steps[0]["kl"]), 1e-6)
    self.assertGreater(found.steps[2]["kl"], 1e-5)

  def test_what_is_recorded_is_documented(self):
    documented = re.findall(r"\w+[*]?", measures.__doc__ or "")
    for field in report.read(_reference).steps[-1]:
      prefix = field.split("_")[0]
      known = {field, f"{prefix}_*", f"{prefix}_PART"}
      self.assertNotEmpty(known.intersection(documented), field)

  def test_examined_first_often_and_last(self):
    found = report.read(_reference).examinations
    self.assertEqual([r["step"] for r in found], [0, 4, 7])
    self.assertEqual([r["problems"] for r in found], [4, 4, 4])
    self.assertEqual(list(completions.read(_reference)), [0, 4, 7])

  def test_alarms_are_said_once_and_recorded(self):
    found = report.read(_reference).alarms
    rules = [record["rule"] for record in found]
    self.assertIn("truncation", rules)
    self.assertLen(set(rules), len(rules))

  def test_pictures_and_completions(self):
    pictures = {path.stem for path in (_reference / "report").glob("*.png")}
    self.assertContainsSubset({"overview", "accuracy", "time"}, pictures)
    text = (_reference / completions.FILE).read_text()
    self.assertIn("step 0: wrong", text)
    self.assertIn("step 7:", text)

  def test_its_model_can_be_used(self):
    trained = restore.load(_reference)
    self.assertEqual(trained.step, tiny_reinforcement.STEPS)
    self.assertEqual(trained.model.config, tiny_reinforcement.run().config)

  def test_keeps_the_rollouts_that_checkpoints_need(self):
    kept = sorted(p.name for p in (_reference / pending.FOLDER).iterdir())
    self.assertEqual(kept, [f"rollout_{n}.npz" for n in (0, 1, 2)])

  def test_finished_run_is_left_as_it_is(self):
    workdir = _from_step(99, "finished")
    before = tiny_reinforcement.records(workdir)
    summary, printed = _reinforce(workdir)
    self.assertIn("resumed at step 7", printed)
    self.assertEqual(summary["state_digest"], _summary["state_digest"])
    self.assertEqual(tiny_reinforcement.records(workdir), before)


class DisturbedRunTest(parameterized.TestCase):
  """Compares a run with the reference, bit for bit."""

  def assert_as_undisturbed(self, workdir, summary):
    self.assertEqual(summary["state_digest"], _summary["state_digest"])
    self.assertEqual(
      tiny_reinforcement.leaves(workdir), tiny_reinforcement.leaves(_reference)
    )
    self.assertEqual(
      tiny_reinforcement.records(workdir),
      tiny_reinforcement.records(_reference),
    )

  @parameterized.parameters(1, 4)
  def test_goes_on_from_any_checkpoint(self, step):
    workdir = _from_step(step, f"from_{step}")
    summary, printed = _reinforce(workdir)
    self.assertIn(f"resumed at step {step}", printed)
    self.assert_as_undisturbed(workdir, summary)

  def test_killed_process(self):
    workdir = _folder / "killed"
    environment = {**os.environ, "WORKDIR": str(workdir)}
    process = subprocess.run(
      [sys.executable, "-m", "tests.rl.killed_learner"],
      cwd=tiny_run.ROOT,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
    self.assertEqual(process.returncode, -signal.SIGKILL, process.stderr)
    summary, printed = _reinforce(workdir)
    self.assertIn("resumed at step 4", printed)
    self.assert_as_undisturbed(workdir, summary)

  def test_signal_saves_and_leaves(self):
    workdir = _folder / "signalled"
    with _before_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM)):
      summary, printed = _reinforce(workdir)
    self.assertIn("stopped by SIGTERM after step 5", printed)
    self.assertEqual((summary["steps"], summary["finished"]), (5, False))
    self.assertIsNone(summary["state_digest"])
    summary, printed = _reinforce(workdir)
    self.assertIn("resumed at step 5", printed)
    self.assert_as_undisturbed(workdir, summary)

  def test_signal_while_answers_are_drawn_keeps_them(self):
    workdir = _folder / "signalled_drawing"

    def ask():
      os.kill(os.getpid(), signal.SIGTERM)

    with _before_step(3, ask, what="explore"):
      summary, _ = _reinforce(workdir)
    self.assertEqual(summary["steps"], 3)
    self.assertTrue(pending.path(workdir, 1).exists())
    refuse = mock.patch.object(explorer.Explorer, "explore")
    with refuse as explore, _before_step(4, ask):
      _reinforce(workdir)
    explore.assert_not_called()
    summary, _ = _reinforce(workdir)
    self.assert_as_undisturbed(workdir, summary)

  def test_signal_at_an_examination_leaves_it_for_later(self):
    workdir = _folder / "signalled_examination"
    with _before_step(3, lambda: os.kill(os.getpid(), signal.SIGINT)):
      _, printed = _reinforce(workdir)
    self.assertIn("stopped by SIGINT after step 4", printed)
    examined = [r["step"] for r in report.read(workdir).examinations]
    self.assertEqual(examined, [0])
    summary, _ = _reinforce(workdir)
    self.assert_as_undisturbed(workdir, summary)

  def test_lost_rollout_is_passed_over(self):
    workdir = _from_step(5, "lost_rollout")
    pending.path(workdir, 1).unlink()
    summary, printed = _reinforce(workdir)
    # Steps 5 and 4 need it; step 3 lies between two rollouts.
    self.assertIn("resumed at step 3; step 5 is passed over", printed)
    self.assert_as_undisturbed(workdir, summary)


class RefusedTest(parameterized.TestCase):
  def test_another_run(self):
    workdir = _from_step(99, "another")
    with self.assertRaisesRegex(
      workdir_lib.WorkdirError, "learning_rate=0.01, this one has 0.1"
    ):
      _reinforce(workdir, learning_rate=0.1)

  def test_other_problems(self):
    workdir = _from_step(99, "other_problems")
    run = tiny_reinforcement.run()
    other = dataclasses.replace(run.problems.generated[0], seed=1)
    problems = dataclasses.replace(run.problems, generated=(other,))
    with self.assertRaisesRegex(observer.TrainingError, "bring the old files"):
      _reinforce(workdir, problems=problems)

  def test_vocabulary_that_does_not_fit(self):
    config = dataclasses.replace(tiny_reinforcement.run().config, vocab_size=64)
    with self.assertRaisesRegex(
      observer.TrainingError, "config.vocab_size=64: expected at least 320"
    ):
      _reinforce(_folder / "small", config=config)

  def test_alarm_that_stops(self):
    run = tiny_reinforcement.run()
    alarms = dataclasses.replace(run.alarms, stop_on=("truncation",))
    summary, printed = _reinforce(_folder / "stopped", alarms=alarms)
    self.assertEqual((summary["steps"], summary["finished"]), (2, False))
    self.assertIn("stopped by alarm 'truncation' after step 2", printed)


if __name__ == "__main__":
  absltest.main()
