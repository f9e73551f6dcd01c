"""Programs in the sandbox: honest ones, and fifty that are not.

Where a machine has no sandbox, the same tests see that nothing is run.
"""

import os
import pathlib
import subprocess
import sys
import time

from absl.testing import absltest
from absl.testing import parameterized

from dsx.rl import code_reward
from dsx.rl import sandbox
from tests.rl import hostile_programs

_LIMITS = sandbox.Limits(seconds=1.0)
_CASE = code_reward.Case("", "42")


def _available() -> bool:
  try:
    sandbox.check()
  except sandbox.Unavailable:
    return False
  return True


_AVAILABLE = _available()


def _inside() -> set[int]:
  """Processes that run in a sandbox of this one's making."""
  found = set()
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      words = path.read_bytes().split(b"\0")
      status = path.with_name("status").read_text()
    except OSError:
      continue
    jailed = any(
      w in (b"/tmp/main.py",) or w.endswith(b"/jail.py") for w in words
    )
    # A zombie that its parent is about to reap runs no more.
    if jailed and "\nState:\tZ" not in status:
      found.add(int(path.parent.name))
  return found


class SandboxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not _AVAILABLE:
      with self.assertRaisesRegex(sandbox.Unavailable, "no sandbox"):
        sandbox.run("print(42)")
    self._available = _AVAILABLE

  def _run(self, program, limits=_LIMITS, **more):
    if self._available:
      return sandbox.run(program, limits, **more)
    with self.assertRaises(sandbox.Unavailable):
      sandbox.run(program, limits, **more)
    return None

  def test_honest(self):
    outcome = self._run("print(int(input()) * 6)", stdin="7\n")
    if outcome is not None:
      self.assertEqual((outcome.end, outcome.code), ("exited", 0))
      self.assertEqual((outcome.stdout, outcome.stderr), ("42\n", ""))

  def test_standard_library(self):
    outcome = self._run(
      "import json, math, collections, itertools, decimal\n"
      "open('/tmp/a', 'w').write('42')\nprint(open('/tmp/a').read())"
    )
    if outcome is not None:
      self.assertEqual(outcome.stdout, "42\n", outcome.stderr)

  @parameterized.parameters(
    ("raise ValueError('oh')", 1), ("import os; os.abort()", -6), ("1 +", 1)
  )
  def test_exit_codes(self, program, code):
    outcome = self._run(program)
    if outcome is not None:
      self.assertEqual((outcome.end, outcome.code), ("exited", code))

  def test_text(self):
    outcome = self._run("print('\u4e09' + '\udc80' [:0])\r\nprint(1)\n")
    if outcome is not None:
      self.assertEqual(outcome.stdout, "\u4e09\n1\n")

  @parameterized.named_parameters(hostile_programs.ALL.items())
  def test_hostile(self, program):
    os.environ["DSX_SECRET"] = "42"
    try:
      before, began = _inside(), time.monotonic()
      if self._available:
        self.assertEqual(code_reward.grade(program, [_CASE], _LIMITS), 0.0)
      else:
        self._run(program)
      self.assertLess(time.monotonic() - began, _LIMITS.seconds + 1.0)
      self.assertEmpty(_inside() - before)
    finally:
      del os.environ["DSX_SECRET"]

  def test_there_are_fifty(self):
    self.assertGreaterEqual(len(hostile_programs.ALL), 50)

  def test_ends_with_its_parent(self):
    """A run that is killed leaves no program behind."""
    if not self._available:
      return self.assertIsNone(self._run("print(42)"))
    script = (
      "from dsx.rl import sandbox\nprint('begun', flush=True)\n"
      "sandbox.run('import time; time.sleep(1000)',"
      " sandbox.Limits(seconds=1000))"
    )
    before = _inside()
    with subprocess.Popen(
      [sys.executable, "-c", script], stdout=subprocess.PIPE
    ) as process:
      assert process.stdout is not None
      process.stdout.readline()
      deadline = time.monotonic() + 30
      while not _inside() - before and time.monotonic() < deadline:
        os.sched_yield()
      self.assertNotEmpty(_inside() - before)
      process.kill()
      process.wait()
    while _inside() - before and time.monotonic() < deadline:
      os.sched_yield()
    self.assertEmpty(_inside() - before)

  @parameterized.parameters("seconds", "memory_bytes", "processes")
  def test_limits_refused(self, field):
    with self.assertRaisesRegex(ValueError, f"{field}=0: expected more than 0"):
      sandbox.Limits(**{field: 0})


class GradeTest(parameterized.TestCase):
  @parameterized.parameters(
    ("print(2 * int(input()))", 1.0),
    ("print(2 * int(input()), '\\n')", 1.0),
    ("print(8)", 0.0),
    ("print(2 * int(input())); raise SystemExit(1)", 0.0),
    ("", 0.0),
  )
  def test_all_cases_count(self, program, expected):
    cases = [code_reward.Case("4\n", "8"), code_reward.Case("5\n", "10\n")]
    if _AVAILABLE:
      self.assertEqual(code_reward.grade(program, cases), expected)
    else:
      with self.assertRaises(sandbox.Unavailable):
        code_reward.grade(program, cases)

  def test_no_case(self):
    with self.assertRaisesRegex(ValueError, r"cases=\(\): expected at least"):
      code_reward.grade("print(42)", [])


if __name__ == "__main__":
  absltest.main()
