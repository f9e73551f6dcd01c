"""What a person sees, and when a run that learns nothing is ended."""

import contextlib
import io
import logging
import pathlib

from absl.testing import absltest

from dsx.evals import reasoning
from dsx.rl import alarms
from dsx.rl import observer
from dsx.rl import report
from dsx.training import observer as training_observer


def _record(step: int, finite: float = 1.0) -> dict:
  return {
    "step": step,
    "finite": finite,
    "reward": 0.25,
    "pass_1": 0.125,
    "entropy": 0.5,
    "length": 20.0,
    "seconds": 1.5,
  }


class ObserverTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @contextlib.contextmanager
  def _observer(self, **changes):
    fields = {
      "total_steps": 10,
      "first_step": 0,
      "log_every": 4,
      "max_skipped_in_a_row": 3,
    }
    self.printed = io.StringIO()
    with (
      contextlib.redirect_stdout(self.printed),
      observer.Observer(self.folder, **(fields | changes)) as show,
    ):
      yield show

  def test_records_now_and_then_and_the_last(self):
    with self._observer() as show:
      for step in range(1, 11):
        show.took(_record(step))
    steps = [record["step"] for record in report.read(self.folder).steps]
    self.assertEqual(steps, [1, 4, 8, 10])
    line = "step 10/10  reward 0.250  right 0.125  entropy 0.500  length 20"
    self.assertIn(line, self.printed.getvalue())
    self.assertIn("1.50 s", self.printed.getvalue())

  def test_refused_updates_end_a_run(self):
    with self._observer() as show:
      for step, finite in enumerate((0, 0, 1, 0, 0), start=1):
        show.took(_record(step, finite))
      with self.assertRaisesRegex(
        training_observer.TrainingError, "3 updates in a row up to step 6"
      ):
        show.took(_record(6, 0))

  def test_refused_updates_before_a_resume_count(self):
    with self._observer(skipped_in_a_row=2, first_step=2) as show:
      with self.assertRaisesRegex(training_observer.TrainingError, "3 updates"):
        show.took(_record(3, 0))

  def test_examination(self):
    answer = reasoning.Answered(True, "4", 3, False)
    evaluation = reasoning.Evaluation(samples=2, k=(2,))
    score = reasoning.score([[answer, answer]], evaluation)
    with self._observer() as show:
      record = show.examined(4, 10, score)
    self.assertEqual((record["step"], record["pass_1"]), (4, 1.0))
    self.assertEqual(report.read(self.folder).examinations[0]["pass_k"], 1.0)
    words = "step 4/10  held out: pass@1 1.000 [1.000, 1.000]  pass@2 1.000"
    self.assertIn(words, self.printed.getvalue())

  def test_alarm(self):
    with (
      self._observer() as show,
      self.assertLogs(level=logging.WARNING) as logs,
    ):
      show.alarmed(alarms.Alarm("entropy", 5, "it fell"))
    self.assertIn("ALARM entropy, step 5: it fell", logs.output[0])
    self.assertEqual(report.read(self.folder).alarms[0]["rule"], "entropy")


if __name__ == "__main__":
  absltest.main()
