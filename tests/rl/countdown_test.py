"""Countdown's expressions: values, and everything that is not one."""

from fractions import Fraction

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies

from dsx.rl import countdown


class CountdownTest(parameterized.TestCase):
  @parameterized.parameters(
    ("1 + 2 * 3", 7, [1, 2, 3]),
    ("(1+2)*3", 9, [1, 2, 3]),
    ("8 / 3 / 2", Fraction(4, 3), [8, 3, 2]),
    ("10-4-3", 3, [10, 4, 3]),
    ("((5))", 5, [5]),
    ("  7 ", 7, [7]),
    ("2*(3-4)", -2, [2, 3, 4]),
  )
  def test_value(self, expression, expected, numbers):
    self.assertEqual(countdown.value(expression), (expected, numbers))

  @parameterized.parameters(
    "",
    "1 +",
    "+ 1",
    "-1",
    "1 2",
    "(1 + 2",
    "1 + 2)",
    "1 / (2 - 2)",
    "2 ** 3",
    "2 // 3",
    "1e3",
    "1.5",
    "0x10",
    "__import__('os')",
    "a",
    "1;2",
    "\u0661 + 1",
    "\u00b2",
    "9" * 10,
    "(" * 150 + "1" + ")" * 150,
    "1" + "+1" * 150,
  )
  def test_mistakes(self, expression):
    with self.assertRaises(countdown.Mistake):
      countdown.value(expression)

  @parameterized.parameters(
    ("(7 - 3) * 6", True),
    ("(7-3)*6 = 24", True),
    ("(7-3)*6 = 25", False),
    ("24", False),
    ("7 - 3 * 6", False),
    ("(7 - 3) * 6 + 7 - 7", False),
    ("7 * 6 - 18", False),
    ("", False),
    ("24 = (7 - 3) * 6", False),
  )
  def test_solves(self, answer, expected):
    self.assertEqual(countdown.solves(answer, [3, 6, 7], 24), expected)

  def test_each_number_as_often_as_it_is_there(self):
    self.assertTrue(countdown.solves("2 + 2", [2, 2], 4))
    self.assertFalse(countdown.solves("2 + 2", [2, 4], 4))
    self.assertFalse(countdown.solves("4", [2, 4], 4))

  @hypothesis.given(strategies.text(max_size=300))
  def test_nothing_else_is_raised(self, text):
    countdown.solves(text, [1, 2], 3)


if __name__ == "__main__":
  absltest.main()
