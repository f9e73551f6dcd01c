"""Right answers in many forms; wrong ones that try to pass for right."""

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies

from dsx.evals import grading


class NumberTest(parameterized.TestCase):
  @parameterized.parameters(
    ("4", 4),
    (" 4.\n", "4"),
    ("+4", "4"),
    ("4.0", "4"),
    ("4.", "4"),
    (".5", "1/2"),
    ("$4$", "4"),
    ("$$4$$", "4"),
    ("\\(4\\)", "4"),
    ("\\boxed{4}", "4"),
    ("$\\boxed{\\text{4}}$", "4"),
    ("-4", "-4"),
    ("\u22124", "-4"),
    ("1,000,000", 10**6),
    ("1e6", 10**6),
    ("2.5E-1", "0.25"),
    ("2/4", "0.5"),
    ("-\\frac{1}{2}", "-0.5"),
    ("\\dfrac{-1}{2}", "-0.5"),
    ("9" * 900, "9" * 900),
    ("1e900", "1" + "0" * 900),
  )
  def test_right(self, answer, reference):
    self.assertTrue(grading.number(answer, reference))

  @parameterized.parameters(
    "",
    " ",
    "$",
    "$$",
    "\\boxed{}",
    "5",
    "44",
    "-4",
    "4 4",
    "4 5",
    "4, 5",
    "4 or 5",
    "4/5",
    "4/0",
    "4/",
    "4-0",
    "2*2",
    "2+2",
    "four",
    "the answer is 4",
    "4 apples",
    "0x4",
    "4_0",
    "0,4",
    "10,00",
    "\u0664",
    "\uff14",
    "\u2463",
    "\u2074",
    "4\u200b",
    "4e",
    "nan",
    "inf",
    "1e999999",
    "1e-999999",
    "9" * 100_000,
    "4" + "0" * 5000 + "e-5000",
    "\\boxed{4}\\boxed{5}",
    "\\boxed{4} 5",
    "__import__('os')",
  )
  def test_wrong(self, answer):
    self.assertFalse(grading.number(answer, "4"))

  def test_reference(self):
    with self.assertRaisesRegex(ValueError, "answer='x': expected a number"):
      grading.number("4", "x")

  @hypothesis.given(strategies.text(max_size=60))
  def test_nothing_is_raised(self, text):
    grading.number(text, 4)
    grading.number_set(text, [4])
    grading.choice(text, "A")


class SetTest(parameterized.TestCase):
  @parameterized.parameters(
    "1, 0.5",
    "1/2,1",
    "{1; 0.5}",
    "\\{1, \\frac{1}{2}\\}",
    "$\\{1, 0.5\\}$",
    "1 and 0.5",
    "[1, 0.5]",
    "1, 1, 0.5",
  )
  def test_right(self, answer):
    self.assertTrue(grading.number_set(answer, [1, "0.5"]))

  @parameterized.parameters(
    "",
    "{}",
    "1",
    "0.5",
    "1, 0.5, 2",
    "1, 0.5,",
    "1 0.5",
    "1,0.5 or 1,2",
    ",".join(str(i / 2) for i in range(100)),
    "1," * 10_000 + "0.5",
  )
  def test_wrong(self, answer):
    self.assertFalse(grading.number_set(answer, [1, "0.5"]))

  def test_words(self):
    self.assertTrue(
      grading.number_set("red,  dark  blue", ["dark blue", "red"])
    )
    self.assertFalse(grading.number_set("Red", ["red"]))

  def test_reference(self):
    with self.assertRaisesRegex(ValueError, r"answer=\[\]: expected elements"):
      grading.number_set("1", [])


class ChoiceTest(parameterized.TestCase):
  @parameterized.parameters(
    "B",
    "b",
    "(B)",
    "[B]",
    "B)",
    "B.",
    "**B**",
    "option B",
    "Answer: (B)",
    "$B$",
    "\\boxed{B}",
    "\\text{(B)}",
  )
  def test_right(self, answer):
    self.assertTrue(grading.choice(answer, "B"))

  @parameterized.parameters(
    "",
    "A",
    "ABCD",
    "A B C D",
    "A, B, C, D",
    "(A)(B)(C)(D)",
    "B or C",
    "B and not A",
    "BB",
    "B B",
    "B because it is so",
    "\uff22",
    "\u0392",
    "\u0412",
    "B\u0301",
  )
  def test_wrong(self, answer):
    self.assertFalse(grading.choice(answer, "B"))

  def test_letters_that_fold(self):
    self.assertFalse(grading.choice("\u212a", "K"))
    self.assertFalse(grading.choice("\u017f", "S"))


class MathematicsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("0.5", "\\frac{1}{2}"),
    ("1/2", "\\frac12"),
    ("$\\frac{2}{4}$", "\\frac{1}{2}"),
    ("\\boxed{\\frac{1}{2}}", "0.5"),
    ("x = 6", "6"),
    ("3 + 3 = 6", "6"),
    ("6\\text{ cm}", "6"),
    ("3 \\times 10^2", "300"),
    ("2^{10}", "1024"),
    ("-3", "-3"),
    ("50\\%", "50\\%"),
    ("-\\frac{3}{4}", "-0.75"),
    ("\\sqrt{12}", "2\\sqrt{3}"),
    ("(x+1)^2", "x^2+2x+1"),
    ("\\{2, 1\\}", "\\{1, 2\\}"),
    ("(1, 2)", "(1,2)"),
    ("2 < x", "x > 2"),
    ("(-\\infty, 2)", "(-\\infty, 2)"),
    ("\\infty", "\\infty"),
    ("$\\boxed{6}$.", "6"),
  )
  def test_right(self, answer, reference):
    self.assertTrue(grading.mathematics(answer, reference))

  @parameterized.parameters(
    ("", "6"),
    ("\\boxed{}", "6"),
    ("5", "6"),
    ("5, 6", "6"),
    ("5 \\text{ or } 6", "6"),
    ("1, 2, 3, 4, 5, 6, 7, 8", "6"),
    ("\\{5, 6\\}", "6"),
    ("6} \\boxed{7", "6"),
    ("7} \\boxed{6", "6"),
    ("\\boxed{6} \\boxed{7}", "6"),
    ("$6$ $7$", "6"),
    ("\\pm 6", "6"),
    ("7 = 6", "6"),
    ("5 = 6", "6"),
    ("1 < x < 10", "6"),
    ("\u0666", "6"),
    ("\\frac{6}{0}", "6"),
    ("{" * 500, "6"),
    ("6" + " " * 3000, "6"),
    ("2 \\cdot 3", "6"),
    ("2 + 4", "6"),
    ("7 = 2 + 4", "6"),
    ("3!", "6"),
    ("\\int_0^6 1 dx", "6"),
    ("\\pi\\infty^{2}", "6"),
    ("x = \\pi\\infty^{2}", "6"),
    ("\\pi\\infty^{2}", "\\pi"),
    ("7 \\boxed{6}", "6"),
    ("0.5 \\cdot 12", "6"),
    ("\\boxed{6} 7", "6"),
    ("I think that it is \\boxed{6}.", "6"),
    ("\\frac{1}{3} | \\frac{1}{2}", "\\frac{1}{2}"),
    ("\\to \\log ) \\frac{1}{2}", "\\frac{1}{2}"),
    ("\\sum_{i=1}^{3} i", "6"),
    ("x \\geq 2", "x > 2"),
  )
  def test_wrong(self, answer, reference):
    self.assertFalse(grading.mathematics(answer, reference))

  def test_reference(self):
    with self.assertRaisesRegex(ValueError, "answer='': expected LaTeX that"):
      grading.mathematics("6", "")


if __name__ == "__main__":
  absltest.main()
