"""Real processes lose one of them, in every way, and end in one line each."""

import os
import re
import signal
import socket
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from dsx.parallel import liveness
from tests.training import tiny_run

_LIMIT = 100


class LostPeerTest(parameterized.TestCase):
  def _start(
    self, count, trouble, victim=0, absent=()
  ) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
      port = probe.getsockname()[1]
    processes = []
    for rank in set(range(count)) - set(absent):
      arguments = [port, count, rank, trouble, victim]
      process = subprocess.Popen(
        [sys.executable, "-m", "tests.multi_process.member"]
        + list(map(str, arguments)),
        cwd=tiny_run.ROOT,
        env={
          **os.environ,
          "XLA_FLAGS": "",
          "JAX_PLATFORMS": "cpu",
          "TF_CPP_MIN_LOG_LEVEL": "2",  # as the binaries have it
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      self.addCleanup(self._end, process)
      processes.append(process)
    return processes

  def _end(self, process) -> None:
    if process.poll() is None:
      process.kill()
    process.communicate()

  def _result(self, process) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=_LIMIT)
    return process.returncode, output, errors

  def _check_survivors(self, processes, victim: int, why: str) -> None:
    """Every other process ends with a code of its own, in one line."""
    for rank, process in enumerate(processes):
      if rank != victim:
        code, _, errors = self._result(process)
        self.assertEqual(code, liveness.LOST, errors)
        self.assertRegex(
          errors,
          rf"\Aprocess {victim} on {re.escape(socket.gethostname())} \(pid "
          rf"{processes[victim].pid}\) is lost: {why}; process {rank} ends, at "
          r"step \d+\n\Z",
        )

  @parameterized.parameters((2, 0), (2, 1), (3, 0), (3, 1))
  def test_one_is_killed(self, count, victim):
    processes = self._start(count, "kill", victim)
    self._check_survivors(processes, victim, "its connection broke")
    self.assertEqual(self._result(processes[victim])[0], -signal.SIGKILL)

  @parameterized.parameters(0, 2)
  def test_one_is_stopped(self, victim):
    processes = self._start(3, "stop", victim)
    self._check_survivors(
      processes, victim, r"nothing was heard of it for \d+ s"
    )
    self.assertIsNone(processes[victim].poll())
    # When it goes on, it finds out and ends too.
    processes[victim].send_signal(signal.SIGCONT)
    self.assertEqual(self._result(processes[victim])[0], liveness.LOST)

  def test_one_does_not_come_to_a_collective(self):
    processes = self._start(3, "hang", 1)
    why = (
      r"it hangs at step 4; process \d has waited for it at step \d+ for 2 s"
    )
    self._check_survivors(processes, 1, why)
    code, _, errors = self._result(processes[1])
    self.assertEqual(code, liveness.LOST)
    self.assertStartsWith(errors, "process 1 on ")

  def test_one_fails(self):
    processes = self._start(3, "fail", 2)
    self._check_survivors(processes, 2, "it failed: ValueError: a bad record")
    code, _, errors = self._result(processes[2])
    self.assertEqual(code, 1)
    self.assertEndsWith(errors, "ValueError: a bad record\n")

  @parameterized.parameters(
    (1, "not all others came at 127.0.0.1:"),
    (0, "process 0 could not be reached at 127.0.0.1:"),
  )
  def test_one_does_not_come_at_all(self, absent, said):
    (process,) = self._start(2, "absence", absent=[absent])
    code, _, errors = self._result(process)
    self.assertEqual(code, liveness.LOST, errors)
    self.assertStartsWith(errors, said)
    rank = 1 - absent
    self.assertEndsWith(errors, f" within 2 s; process {rank} of 2 ends\n")

  def test_all_end_well(self):
    for process in self._start(3, "nothing"):
      code, output, errors = self._result(process)
      self.assertEqual((code, errors), (0, ""))
      self.assertIn("total 3\n", output)


if __name__ == "__main__":
  absltest.main()
