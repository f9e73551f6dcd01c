"""Calls that end, and calls that are ended."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from dsx.rl import pool
from tests.rl import pool_functions


def _command(process: pathlib.Path) -> bytes:
  """The command line of a process; empty if there is none any more."""
  try:
    return (process / "cmdline").read_bytes()
  except OSError:
    return b""


class PoolTest(parameterized.TestCase):
  def test_in_order(self):
    with pool.Pool(2, seconds=30) as workers:
      got = workers.map(pool_functions.slowly, [(i,) for i in range(6)])
      self.assertEqual([o.value for o in got], list(range(6)))
      self.assertEqual([o.error for o in got], [""] * 6)
      got = workers.map(pool_functions.process, [(i,) for i in range(8)])
      self.assertLessEqual(len({o.value for o in got}), 2)
      self.assertEqual(workers.map(pool_functions.double, []), [])

  def test_a_time_of_its_own(self):
    with pool.Pool(1, seconds=0.2) as workers:
      workers.map(pool_functions.double, [(1,)])
      call = [(0,)]
      got = workers.map(pool_functions.slowly, call, seconds=30)
      self.assertEqual(got[0], pool.Outcome(0))
      got = workers.map(pool_functions.behave, [("hang",)])
      self.assertEqual(got[0].error, "took more than 0.2 s")

  def test_whatever_happens_there_is_an_outcome(self):
    how = ["well", "raise", "hang", "crash", "exit", "leave", "eat", "well"]
    with pool.Pool(2, seconds=1.0, memory_bytes=2**32) as workers:
      got = workers.map(pool_functions.behave, [(h,) for h in how])
      again = workers.map(pool_functions.double, [(2,), (3,)])
    errors = [
      "",
      "ValueError: no such thing",
      "took more than 1 s",
      "its process ended with signal 11",
      "its process ended with exit code 3",
      "its process ended with exit code 4",
      "MemoryError",
      "",
    ]
    self.assertEqual([o.error for o in got], errors)
    self.assertEqual([got[0].value, got[-1].value], [1.0, 1.0])
    self.assertEqual([o.value for o in again], [4, 6])

  def test_a_hanging_call_ends_with_who_asked(self):
    script = (
      "from dsx.rl import pool\n"
      "from tests.rl import pool_functions\n"
      "if __name__ == '__main__':\n"
      "  with pool.Pool(1, seconds=1000) as workers:\n"
      "    workers.map(pool_functions.say_and_hang, [()])\n"
    )
    path = self.create_tempfile(content=script).full_path
    root = pathlib.Path(__file__).parents[2]
    with subprocess.Popen(
      [sys.executable, path],
      stdout=subprocess.PIPE,
      env={**os.environ, "PYTHONPATH": str(root)},
    ) as asking:
      assert asking.stdout is not None
      worker = pathlib.Path("/proc") / asking.stdout.readline().decode().strip()
      self.assertTrue(worker.exists())
      asking.kill()
      # Its end of the pipe closes with the worker, or never.
      self.assertEqual(asking.communicate(timeout=60)[0], b"")
    self.assertNotIn(b"pool", _command(worker))

  @parameterized.parameters({"processes": 0}, {"seconds": 0})
  def test_refused(self, **changes):
    ((name, _),) = changes.items()
    with self.assertRaisesRegex(ValueError, f"{name}=0: expected more than 0"):
      pool.Pool(**{"processes": 1, "seconds": 1, **changes})


if __name__ == "__main__":
  absltest.main()
