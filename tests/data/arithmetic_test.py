"""Generated problems: all different, never on both sides, and solvable."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import arithmetic
from dsx.data import expressions
from dsx.data import problems
from dsx.rl import countdown
from dsx.rl import response


def _terms(problem):
  return tuple(sorted(problem.prompt.rstrip("=").split("+")))


class AdditionTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 30)
  def test_sums(self, digits):
    n = 20
    got = arithmetic.addition(digits, n, 0)
    self.assertLen({p.name for p in got}, n)
    for problem in got:
      a, b = map(int, problem.prompt.rstrip("=").split("+"))
      self.assertEqual(problem.answer, str(a + b))
      self.assertLen(str(a), digits)
      self.assertLen(str(b), digits)

  def test_sides_never_meet(self):
    """Whatever the seed and the number, and whichever way round."""
    train, held_out = set(), set()
    for seed in range(5):
      train |= set(map(_terms, arithmetic.addition(2, 1500, seed)))
      held_out |= set(
        map(_terms, arithmetic.addition(2, 300, seed, "held_out"))
      )
    self.assertEmpty(train & held_out)
    self.assertGreater(len(train), 3000)
    self.assertGreater(len(held_out), 400)

  def test_fewer_are_the_first_ones(self):
    many = arithmetic.addition(2, 100, 3)
    self.assertEqual(arithmetic.addition(2, 10, 3), many[:10])
    self.assertNotEqual(arithmetic.addition(2, 10, 4), many[:10])

  def test_all_there_are(self):
    """Of 100 sums of two digits each side has its own, and no more."""
    keys = {f"addition {a} {b}" for a in range(10) for b in range(a, 10)}
    held = {k for k in keys if arithmetic.split_of(k) == "held_out"}
    n = sum(1 if k.split()[1] == k.split()[2] else 2 for k in held)
    self.assertGreater(n, 0)
    self.assertLen(arithmetic.addition(1, n, 0, "held_out"), n)
    with self.assertRaisesRegex(ValueError, f"n={n + 1}: .* about {n} in"):
      arithmetic.addition(1, n + 1, 0, "held_out")

  @parameterized.parameters(
    ({"digits": 0}, "digits=0: expected an integer of at least 1"),
    ({"n": 0}, "n=0: expected an integer of at least 1"),
    ({"split": "test"}, "split='test': expected train or held_out"),
  )
  def test_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      arithmetic.addition(**{"digits": 2, "n": 1, "seed": 0, **changes})

  def test_solution(self):
    problem = problems.Problem(
      "addition/58+67", "58+67=", "addition", "number", "125"
    )
    self.assertEqual(
      arithmetic.solution(problem),
      "<think>8+7=15 5+6+1=12</think><answer>125</answer>",
    )
    self.assertEqual(
      arithmetic.solution(problem, form="summary", steps=False),
      "<think></think>125",
    )
    with self.assertRaisesRegex(ValueError, "form='x': expected tags or"):
      arithmetic.solution(problem, form="x")

  def test_solutions_are_right(self):
    for digits in (1, 2, 5):
      for problem in arithmetic.addition(digits, 40, 0):
        parsed = response.parse(arithmetic.solution(problem))
        self.assertEqual(parsed.answer, problem.answer)

  def test_form_alone(self):
    """Of the right form, and right by chance at most."""
    right = 0
    asked = arithmetic.addition(2, 300, 0)
    for problem in asked:
      text = arithmetic.solution(problem, format_only=True)
      self.assertEqual(text, arithmetic.solution(problem, format_only=True))
      parsed = response.parse(text)
      self.assertTrue(parsed.well_formed)
      right += parsed.answer == problem.answer
    self.assertLess(right, 10)

  def test_no_solution_to_other_problems(self):
    problem = problems.Problem("x", "?", "math", "math", "1")
    with self.assertRaisesRegex(ValueError, "problem.name='x': expected a"):
      arithmetic.solution(problem)


class CountdownTest(parameterized.TestCase):
  @parameterized.parameters(2, 3, 4)
  def test_solvable(self, numbers):
    for problem in arithmetic.countdown(numbers, n=30, seed=0):
      given, target = problem.answer["numbers"], problem.answer["target"]
      self.assertLen(given, numbers)
      self.assertBetween(target, 1, 99)
      parsed = response.parse(arithmetic.solution(problem))
      self.assertTrue(countdown.solves(parsed.answer or "", given, target))
      shown = [*map(str, given), "->", str(target)]
      self.assertEqual(problem.prompt.split(), shown)

  def test_sides_never_meet(self):
    def keys(seed, n, split):
      return {
        (tuple(sorted(p.answer["numbers"])), p.answer["target"])
        for p in arithmetic.countdown(n=n, seed=seed, split=split)
      }

    train = keys(0, 800, "train") | keys(1, 400, "train")
    held_out = keys(0, 100, "held_out") | keys(2, 200, "held_out")
    self.assertEmpty(train & held_out)

  def test_form_alone(self):
    """Every number is used once; the target is met by chance at most."""
    right = 0
    for problem in arithmetic.countdown(n=200, seed=0):
      given, target = problem.answer["numbers"], problem.answer["target"]
      text = arithmetic.solution(problem, format_only=True)
      answer = response.parse(text).answer or ""
      _, used = countdown.value(answer)
      self.assertCountEqual(used, given)
      right += countdown.solves(answer, given, target)
    self.assertBetween(right, 1, 40)

  def test_limits(self):
    for problem in arithmetic.countdown(
      n=20, seed=0, largest=4, largest_target=6
    ):
      self.assertLessEqual(max(problem.answer["numbers"]), 4)
      self.assertLessEqual(problem.answer["target"], 6)

  @parameterized.parameters("numbers", "largest", "largest_target")
  def test_refused(self, field):
    with self.assertRaisesRegex(ValueError, f"{field}=0: expected"):
      arithmetic.countdown(n=1, seed=0, **{field: 0})

  def test_out_of_reach(self):
    answer = {"numbers": [1, 1], "target": 7}
    problem = problems.Problem(
      "countdown/1_1=7", "?", "countdown", "countdown", answer
    )
    with self.assertRaisesRegex(ValueError, "expected a target that the"):
      arithmetic.solution(problem)


class ExpressionsTest(parameterized.TestCase):
  def test_all_values(self):
    self.assertEqual(expressions.targets([2, 3], 99), [1, 5, 6])
    self.assertEqual(expressions.targets([2, 4], 99), [2, 6, 8])

  @parameterized.parameters(([3, 6, 7],), ([1, 2, 3, 4],), ([5, 5, 5],))
  def test_steps_lead_to_the_value(self, numbers):
    for value, steps in expressions.reached(numbers):
      got, used = countdown.value(steps[-1].expression)
      self.assertEqual(got, value)
      self.assertCountEqual(used, numbers)
      for step in steps:
        left, right = step.line.split("=")
        self.assertEqual(countdown.value(left)[0], int(right))


class GeneratedTest(parameterized.TestCase):
  def test_as_the_functions(self):
    got = arithmetic.Generated(digits=3, train=5, held_out=2, seed=1)
    self.assertEqual(got.problems("train"), arithmetic.addition(3, 5, 1))
    self.assertEqual(
      got.problems("held_out"), arithmetic.addition(3, 2, 1, "held_out")
    )
    got = arithmetic.Generated(task="countdown", numbers=2, train=5)
    self.assertEqual(
      got.problems("train"), arithmetic.countdown(2, n=5, seed=0)
    )

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, "task='x': expected one of add"):
      arithmetic.Generated(task="x")


if __name__ == "__main__":
  absltest.main()
