"""Answers judged by rule, what can't be judged, and useless references."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.data import problems
from dsx.rl import accuracy
from dsx.rl import sandbox
from tests.rl import pool_functions

_HANGS = "10^{10^{10^{10}}}"
_CASES = [{"stdin": "4\n", "stdout": "8"}, {"stdin": "5\n", "stdout": "10"}]
_REFERENCES = {
  "number": ("4", "4.0", "5"),
  "set": ([1, 2], "2, 1", "1"),
  "choice": ("B", "(B)", "A"),
  "countdown": ({"numbers": [3, 6, 7], "target": 24}, "(7-3)*6", "24"),
  "math": ("\\frac{1}{2}", "0.5", "2"),
}


def _problem(kind, answer):
  return problems.Problem(f"a {kind}", "?", "x", kind, answer)


def _judge(**changes):
  settings = {
    "processes": 1,
    "seconds": 1.5,
    "memory_bytes": 2**32,
    "limits": sandbox.Limits(seconds=1.0),
  }
  return accuracy.Judge(**{**settings, **changes})


def _sandboxed() -> bool:
  try:
    sandbox.check()
  except sandbox.Unavailable:
    return False
  return True


class JudgeTest(parameterized.TestCase):
  def test_every_kind(self):
    asked, expected = [], []
    for kind, (reference, right, wrong) in _REFERENCES.items():
      problem = _problem(kind, reference)
      asked += [(problem, a) for a in (right, wrong, "", None)]
      expected += [1.0, 0.0, 0.0, 0.0]
    hanging = (_problem("math", "6"), _HANGS)
    with _judge() as judge:
      right, errors = judge.judge([hanging, *asked, hanging, asked[0]])
    np.testing.assert_array_equal(
      right, np.float32([np.nan, *expected, np.nan, 1.0])
    )
    late = "took more than 1.5 s"
    self.assertEqual(errors, [late, *[""] * len(asked), late, ""])

  def test_open_problems_are_nobodys_error(self):
    with _judge() as judge:
      right, errors = judge.judge([(_problem("open", None), "a poem")])
    self.assertTrue(np.isnan(right[0]))
    self.assertEqual(errors, [""])

  def test_nothing_to_judge(self):
    right, errors = _judge().judge([])
    self.assertEqual((right.shape, errors), ((0,), []))

  @parameterized.parameters(
    ("print(2 * int(input()))", 1.0),
    ("So:\n```python\nprint(2 * int(input()))\n```\nIt doubles.", 1.0),
    ("print(8)", 0.0),
    ("while True: pass", 0.0),
    ("```\nprint(8)\n```\n```\nprint(10)\n```", 0.0),
    ("```python\nprint(2 * int(input()))", 0.0),
  )
  def test_code(self, answer, expected):
    """A slow program is wrong. Without a sandbox none is: that's an error."""
    with _judge() as judge:
      right, errors = judge.judge([(_problem("code", _CASES), answer)])
    if _sandboxed() or expected == errors[0] == "":
      self.assertEqual((right[0], errors), (expected, [""]))
    elif errors[0]:
      self.assertIn("Unavailable: no sandbox", errors[0])
      self.assertTrue(np.isnan(right[0]))

  def test_no_sandbox(self):
    """Nothing is run, and the sample has no reward at all."""
    asked = [(_problem("code", _CASES), "print(8)")]
    forbidding = {"code": pool_functions.no_sandbox}
    with mock.patch.dict(accuracy._COSTLY, forbidding), _judge() as judge:
      right, errors = judge.judge(asked)
    self.assertTrue(np.isnan(right[0]))
    self.assertEqual(errors, ["Unavailable: no sandbox here: forbidden"])


class CheckTest(parameterized.TestCase):
  def test_good_ones(self):
    with _judge(seconds=20.0) as judge:
      judge.check([_problem(k, r[0]) for k, r in _REFERENCES.items()])

  @parameterized.parameters(
    ("number", "four", "problem 'a number': answer='four': expected a number"),
    ("math", "{", "problem 'a math': answer='{': expected mathematics that"),
  )
  def test_refused(self, kind, answer, message):
    with _judge(seconds=20.0) as judge:
      with self.assertRaises(ValueError) as caught:
        judge.check([_problem(kind, answer)])
    self.assertStartsWith(str(caught.exception), message)

  def test_code(self):
    with _judge() as judge:
      if _sandboxed():
        judge.check([_problem("code", _CASES)])
      else:
        with self.assertRaises(sandbox.Unavailable):
          judge.check([_problem("code", _CASES)])


if __name__ == "__main__":
  absltest.main()
