"""Real processes get a signal, anywhere and any time, and stop together."""

import os
import re
import socket
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from tests.multi_process import asked_to_stop
from tests.training import tiny_run

_LIMIT = 200
_COUNT = 3


class StopTest(parameterized.TestCase):
  def _outputs(self, *arguments) -> list[str]:
    """What all say, who have to end well."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
      port = probe.getsockname()[1]
    processes = []
    for rank in range(_COUNT):
      process = subprocess.Popen(
        [sys.executable, "-m", "tests.multi_process.asked_to_stop"]
        + list(map(str, [port, _COUNT, rank, *arguments])),
        cwd=tiny_run.ROOT,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      self.addCleanup(self._end, process)
      processes.append(process)
    outputs = []
    for process in processes:
      output, errors = process.communicate(timeout=_LIMIT)
      self.assertEqual(process.returncode, 0, errors)
      outputs.append(output)
    return outputs

  def _end(self, process) -> None:
    if process.poll() is None:
      process.kill()
    process.communicate()

  @parameterized.parameters(
    ("SIGTERM", "early", "1"),
    ("SIGTERM", "compiling", "2"),
    ("SIGTERM", 5, "0"),
    ("SIGTERM", 5, "1"),
    ("SIGINT", 5, "0,1,2"),
    ("SIGTERM", asked_to_stop.STEPS, "1"),
  )
  def test_all_stop_at_one_step(self, name, when, whom):
    outputs = self._outputs(name, when, whom)
    line = rf"(?m)^({name}|the end): step (\d+), total {_COUNT}$"
    found = [re.search(line, output) for output in outputs]
    (said,) = {match and match.groups() for match in found}
    assert said is not None, outputs
    last = int(said[1])
    if isinstance(when, int):
      self.assertGreaterEqual(last, when)
    if when != asked_to_stop.STEPS:  # the word of it may come too late there
      self.assertEqual(said[0], name)
      self.assertLess(last, asked_to_stop.STEPS)


if __name__ == "__main__":
  absltest.main()
