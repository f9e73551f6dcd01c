"""The launcher of this machine: who is started, ended and started again."""

import contextlib
import io
import os
import pathlib
import signal
import sys
import threading

from absl.testing import absltest
from absl.testing import parameterized

from experiments.launching import local


class LocalTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def _run(self, plan: str, *, processes=3, workdir=True, **more):
    """Exit code, standard output and standard error of the launcher."""
    output, errors = io.StringIO(), io.StringIO()
    program = [sys.executable, "-m", "tests.experiments.local_member"]
    with (
      contextlib.redirect_stdout(output),
      contextlib.redirect_stderr(errors),
    ):
      code = local.run(
        [*program, str(self.folder), plan],
        processes=processes,
        workdir=self.folder if workdir else None,
        **more,
      )
    return code, output.getvalue(), errors.getvalue()

  def _starts(self, process: int) -> list[str]:
    return (self.folder / f"starts.{process}").read_text().splitlines()

  def test_every_process_knows_the_others(self):
    code, output, errors = self._run("well", devices_per_process=2)
    self.assertEqual((code, errors), (0, ""))
    self.assertCountEqual(
      output.splitlines(), [f"[{process}] all is well" for process in range(3)]
    )
    addresses = set()
    for process in range(3):
      (start,) = self._starts(process)
      self.assertRegex(
        start,
        r"--coordinator_address=127\.0\.0\.1:\d+ --num_processes=3 "
        rf"--process_id={process} .*force_host_platform_device_count=2$",
      )
      addresses.add(start.split()[0])
    self.assertLen(addresses, 1)

  def test_devices_are_left_alone(self):
    self._run("well", environment={**os.environ, "XLA_FLAGS": "--mine"})
    self.assertEndsWith(self._starts(1)[0], "--process_id=1 --mine")

  @parameterized.parameters("kill", "stop")
  def test_a_lost_process_starts_all_again(self, how):
    code, output, errors = self._run(f"save+1={how},well")
    self.assertEqual(code, 0)
    self.assertIn("[2] all is well\n", output)
    self.assertRegex(
      errors,
      r"\Alauncher: process 1 was killed by SIGKILL; all had ended \d\.\d s "
      r"later\nlauncher: starting again, from step 10 \(1 of 3\)\n\Z",
    )
    first, second = self._starts(0)
    self.assertNotEqual(first.split()[0], second.split()[0])

  def test_no_more_restarts_than_allowed(self):
    code, _, errors = self._run("0=kill,0=kill,0=kill,well", max_restarts=2)
    self.assertEqual(code, 128 + signal.SIGKILL)
    self.assertLen(self._starts(0), 3)
    self.assertIn(
      "launcher: starting again, from the beginning (2 of 2)", errors
    )
    self.assertEndsWith(
      errors,
      "launcher: not started again: max_restarts=2 without a new checkpoint\n",
    )

  def test_a_new_checkpoint_renews_them(self):
    plan = "0=kill,save+0=kill,save+0=kill,0=kill,well"
    code, _, errors = self._run(plan, max_restarts=2)
    self.assertEqual(code, 0)
    self.assertEqual(errors.count("starting again"), 4)
    self.assertIn("starting again, from step 30 (2 of 2)", errors)

  def test_without_a_workdir_every_restart_counts(self):
    plan = "save+0=kill,save+0=kill,well"
    code, _, _ = self._run(plan, max_restarts=1, workdir=False)
    self.assertEqual(code, 128 + signal.SIGKILL)

  @parameterized.parameters(
    ("2=2", 2, "the same would come again"),
    ("2=1", 1, "it failed before it got any further"),
  )
  def test_errors_that_would_come_again(self, event, expected, why):
    code, _, errors = self._run(f"{event},well")
    self.assertEqual(code, expected)
    self.assertIn(f"[2] ends with {expected}\n", errors)
    self.assertEndsWith(errors, f"launcher: not started again: {why}\n")

  def test_an_error_after_progress_is_tried_again(self):
    code, _, errors = self._run("save+2=1,well")
    self.assertEqual(code, 0)
    self.assertIn("process 2 ended with exit code 1; ", errors)

  def test_one_may_be_done_before_the_others(self):
    self.assertEqual(self._run("1=0")[0], 0)

  def test_a_request_to_stop_is_passed_on(self):
    waiting = threading.Semaphore(0)

    class Output(io.StringIO):
      def write(self, text):
        for _ in range(text.count("waiting")):
          waiting.release()
        return super().write(text)

    def ask():
      for _ in range(3):
        waiting.acquire()
      os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask, daemon=True)
    output = Output()
    with contextlib.redirect_stdout(output):
      asking.start()
      code = local.run(
        [
          *(sys.executable, "-m", "tests.experiments.local_member"),
          *(str(self.folder), "wait"),
        ],
        processes=3,
      )
    self.assertEqual(code, 0)
    self.assertEqual(output.getvalue().count("stopped by SIGTERM"), 3)

  @parameterized.parameters(
    ({"processes": 0}, "processes=0: expected at least 1; raise it"),
    ({"max_restarts": -1}, "max_restarts=-1: expected at least 0; raise it"),
  )
  def test_bad_input(self, arguments, message):
    with self.assertRaisesWithLiteralMatch(ValueError, message):
      self._run("well", **arguments)


if __name__ == "__main__":
  absltest.main()
