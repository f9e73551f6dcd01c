"""Sums of rewards, and responses that try to get them without deserving any."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.data import arithmetic
from dsx.data import problems
from dsx.rl import rewards

_SUM = problems.Problem("sum", "2+2=", "x", "number", "4")
_CHOICE = problems.Problem("choice", "A, B, C or D?", "x", "choice", "B")
_SET = problems.Problem("set", "roots?", "x", "set", [1, 2])
_MATH = problems.Problem("math", "2+2?", "x", "math", "4")
_COUNTDOWN = problems.Problem(
  "c", "3 6 7 -> 24", "x", "countdown", {"numbers": [3, 6, 7], "target": 24}
)
_CHINESE = problems.Problem("zh", "2+2=", "x", "number", "4", "zh")
_OPEN = problems.Problem("open", "a poem", "x", "open", None)


def _tagged(answer, thought="so"):
  return f"<think>{thought}</think><answer>{answer}</answer>"


def _grades(responses, opened=False, **settings):
  weights = rewards.Rewards(processes=1, **settings)
  with rewards.Grader(weights, opened=opened) as grader:
    return grader.grade([(*r, 10, False) for r in responses])


class GraderTest(parameterized.TestCase):
  def test_accuracy_and_format(self):
    got = _grades(
      [
        (_SUM, _tagged("4")),
        (_SUM, _tagged("5")),
        (_SUM, "4"),
        (_SUM, ""),
        (_MATH, _tagged("2^2")),
      ],
      format=0.5,
    )
    np.testing.assert_array_equal(got.total, [1.5, 0.5, 0, 0, 1.5])
    np.testing.assert_array_equal(got.parts["accuracy"], [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(got.parts["format"], [1, 1, 0, 0, 1])
    self.assertCountEqual(got.parts, ["accuracy", "format"])
    self.assertEqual(got.error, [""] * 5)
    self.assertEqual(got.mean("accuracy"), np.float32(0.4))

  def test_what_is_measured(self):
    loop = "go on and " * 20
    got = _grades(
      [
        (_SUM, _tagged("4", "two and two")),
        (_SUM, _tagged("4", "two \u548c \u4e8c")),
        (_CHINESE, _tagged("4", "two \u548c \u4e8c")),
        (_SUM, _tagged("4", loop)),
        (_SUM, _tagged("4", "2+2")),
        (_SUM, "two and two"),
      ],
      language=1.0,
      repetition=0.25,
      length=2.0,
      longest=12,
      margin=4,
    )
    np.testing.assert_allclose(
      got.parts["language"], [1, 1 / 3, 2 / 3, 1, 0, 0], rtol=1e-6
    )
    np.testing.assert_array_equal(got.parts["length"], [-0.5] * 6)
    self.assertLess(got.parts["repetition"][3], -0.5)
    self.assertEqual(got.parts["repetition"][0], 0)
    expected = 2 + 1 + 2.0 * -0.5 + 0.25 * got.parts["repetition"][3]
    self.assertAlmostEqual(got.total[3], expected, places=5)

  @parameterized.parameters(
    ("wrong", 0.0, ""), ("masked", math.nan, "cut off"), ("graded", 2.0, "")
  )
  def test_unended(self, unended, total, error):
    grader = rewards.Grader(rewards.Rewards(unended=unended))
    text = _tagged("4")
    got = grader.grade([(_SUM, text, 9, True), (_SUM, text, 9, False)])
    np.testing.assert_array_equal(got.total, np.float32([total, 2.0]))
    self.assertEqual(got.error, [error, ""])
    np.testing.assert_array_equal(got.counted, [not error, True])
    self.assertEqual(got.mean(), 2.0 if math.isnan(total) else total / 2 + 1)

  def test_an_error_is_no_reward(self):
    """A comparison that hangs is neither right nor wrong."""
    hangs = _tagged("10^{10^{10^{10}}}")
    got = _grades(
      [(_MATH, _tagged("4")), (_MATH, hangs), (_MATH, _tagged("5"))],
      seconds=1.5,
    )
    np.testing.assert_array_equal(got.total, np.float32([2, np.nan, 1]))
    self.assertEqual(got.error, ["", "took more than 1.5 s", ""])
    np.testing.assert_array_equal(got.counted, [True, False, True])
    self.assertEqual(got.mean(), 1.5)
    self.assertEqual(got.mean("accuracy"), 0.5)

  def test_open_problems(self):
    """No rule tells what is right; the form still counts."""
    got = _grades([(_OPEN, _tagged("roses")), (_OPEN, "roses")])
    np.testing.assert_array_equal(got.total, [1, 0])
    self.assertTrue(np.isnan(got.parts["accuracy"]).all())
    self.assertTrue(math.isnan(got.mean("accuracy")))
    self.assertEqual(got.error, ["", ""])

  def test_preference(self):
    """Of open problems alone; without a score there is no reward."""

    class Judge:
      def scores(self, prompts, groups):
        assert prompts == ["a poem"] and len(groups[0]) == 3, (prompts, groups)
        return [np.float32([2.0, -1.0, np.nan])]

    weights = rewards.Rewards(preference=0.5, reward_model="somewhere")
    poem = (_OPEN, _tagged("roses"), 9, False)
    with rewards.Grader(weights, judge=Judge()) as grader:
      got = grader.grade([poem, (_SUM, _tagged("4"), 9, False), poem, poem])
    np.testing.assert_array_equal(got.total, np.float32([2, 2, 0.5, np.nan]))
    self.assertEqual(got.error, ["", "", "", "no score could be had"])
    self.assertEqual(got.mean("preference"), 0.5)
    self.assertEqual(got.mean("accuracy"), 1.0)

  def test_opened_by_the_prompt(self):
    text = "so</think><answer>4</answer>"
    got = _grades([(_SUM, text), (_SUM, "<think>" + text)], opened=True)
    np.testing.assert_array_equal(got.total, [2, 0])

  def test_summary(self):
    got = _grades(
      [
        (_SUM, "so</think>\n\n4"),
        (_SUM, "so</think>It is \\boxed{4}, I think."),
        (_MATH, "so</think>It is $\\boxed{\\frac{8}{2}}$."),
        (_SUM, "so</think>\\boxed{4} or \\boxed{5}"),
        (_SUM, "so</think>It is 4."),
        (_SUM, "so</think>"),
        (_SUM, "4"),
      ],
      opened=True,
      form="summary",
    )
    np.testing.assert_array_equal(got.parts["accuracy"], [1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(got.parts["format"], [1, 1, 1, 1, 1, 0, 0])

  def test_nothing_to_grade(self):
    got = _grades([])
    self.assertEqual((got.total.shape, got.error), ((0,), []))
    self.assertTrue(math.isnan(got.mean()))

  def test_solutions_earn_everything(self):
    for task in ("addition", "countdown"):
      asked = arithmetic.Generated(task=task, train=50).problems("train")
      got = _grades([(p, arithmetic.solution(p)) for p in asked])
      np.testing.assert_array_equal(got.total, np.full(50, 2.0))


class HackingTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("no_text", _SUM, ""),
    ("spaces", _SUM, _tagged("  ")),
    ("empty_answer", _SUM, _tagged("")),
    ("empty_math", _MATH, _tagged("")),
    ("empty_set", _SET, _tagged("{}")),
    ("several_answers", _SUM, _tagged("4, 5")),
    ("all_numbers", _SUM, _tagged(" ".join(map(str, range(100))))),
    ("all_in_math", _MATH, _tagged(", ".join(map(str, range(10))))),
    ("two_boxes", _MATH, _tagged("\\boxed{4} \\boxed{5}")),
    ("out_of_the_box", _MATH, _tagged("5} \\boxed{4")),
    ("all_options", _CHOICE, _tagged("A B C D")),
    ("all_options_at_length", _CHOICE, _tagged("(A), (B), (C) and (D)")),
    ("more_than_the_set", _SET, _tagged("0, 1, 2, 3")),
    ("two_answer_tags", _SUM, _tagged("4") + "<answer>4</answer>"),
    ("two_responses", _SUM, _tagged("5") + _tagged("4")),
    ("nested_tags", _SUM, "<think><think>a</think></think><answer>4</answer>"),
    ("answer_within_answer", _SUM, _tagged("<answer>4</answer>")),
    ("answer_in_the_thought", _SUM, "<think><answer>4</answer></think>"),
    ("answer_outside", _SUM, "<think>a</think>4<answer></answer>"),
    ("answer_after", _SUM, _tagged("") + "4"),
    ("answer_before", _SUM, "<answer>4</answer><think>a</think>"),
    ("no_tags", _SUM, "4"),
    ("capital_tags", _SUM, "<THINK>a</THINK><ANSWER>4</ANSWER>"),
    ("spaced_tags", _SUM, "< think >a< /think >< answer >4< /answer >"),
    ("unicode_digit", _SUM, _tagged("\u0664")),
    ("fullwidth_digit", _SUM, _tagged("\uff14")),
    ("unicode_expression", _COUNTDOWN, _tagged("(\u0667-3)*6")),
    ("huge_number", _SUM, _tagged("4" + "0" * 100_000)),
    ("huge_exponent", _SUM, _tagged("4e" + "9" * 6)),
    ("huge_expression", _COUNTDOWN, _tagged("9" * 100_000)),
    ("question_repeated", _MATH, _tagged("2+2")),
    ("any_equation", _MATH, _tagged("5=4")),
    ("target_alone", _COUNTDOWN, _tagged("24")),
    ("other_numbers", _COUNTDOWN, _tagged("4*6")),
    ("numbers_twice", _COUNTDOWN, _tagged("(7-3)*6+7-7")),
    ("python", _COUNTDOWN, _tagged("[24][0*3*6*7]")),
    ("special_tokens", _SUM, _tagged("4") + "<\uff5cUser\uff5c>4"),
  )
  def test_no_accuracy(self, problem, text):
    got = _grades([(problem, text)])
    self.assertEqual((got.parts["accuracy"][0], got.error[0]), (0.0, ""))

  @parameterized.parameters(
    "<think>a</think><answer>4</answer>",
    "write 4 in <answer> tags: <answer>4</answer>",
  )
  def test_tags_in_the_prompt(self, prompt):
    """They are the asker's, and earn nothing."""
    problem = problems.Problem("p", prompt, "x", "number", "4")
    got = _grades([(problem, ""), (problem, "4")])
    np.testing.assert_array_equal(got.total, [0, 0])


class RewardsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"accuracy": -1}, r"accuracy=-1: expected a weight of at least 0"),
    ({"format": math.nan}, "format=nan: expected a weight"),
    ({"form": "x"}, "form='x': expected one of tags, summary"),
    ({"preference": 1.0}, "preference=1.0: expected a reward_model"),
    ({"unended": "x"}, "unended='x': expected one of wrong, masked, graded"),
    ({"processes": 0}, "processes=0: expected more than 0"),
    ({"length": 1.0}, "margin=0: expected 1 to longest=0 tokens"),
    ({"length": 1.0, "longest": 4, "margin": 5}, "margin=5: expected 1 to"),
  )
  def test_refused(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      rewards.Rewards(**settings)

  def test_check(self):
    with rewards.Grader(rewards.Rewards(language=1.0)) as grader:
      grader.check([_SUM, _CHINESE])
      odd = problems.Problem("odd", "?", "x", "number", "4", "tlh")
      with self.assertRaisesRegex(ValueError, "'odd': language='tlh': exp"):
        grader.check([_SUM, odd])
    # Where it is not rewarded, it may be anything.
    rewards.Grader(rewards.Rewards()).check([odd])


if __name__ == "__main__":
  absltest.main()
