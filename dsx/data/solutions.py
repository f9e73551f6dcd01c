"""How generated problems are solved, step by step; or gone about blindly.

Each function gives a chain of thought and an answer. With a generator of random
numbers they have the form of a solution and nothing else: what a model learns
from them is how to answer, not what.
"""

import random

from dsx.data import expressions
from dsx.data import problems


def addition(
  problem: problems.Problem, generator: random.Random | None
) -> tuple[str, str]:
  """Digit by digit from the right, as on paper; or digits at random."""
  a, b = problem.prompt.rstrip("=").split("+")
  length = max(len(a), len(b))
  written, result, carry = [], "", 0
  for x, y in zip(
    reversed(a.zfill(length)), reversed(b.zfill(length)), strict=True
  ):
    terms = [int(x), int(y)] + [carry] * bool(carry)
    total = generator.randrange(19) if generator else sum(terms)
    written.append(f"{'+'.join(map(str, terms))}={total}")
    carry, digit = divmod(total, 10)
    result = str(digit) + result
  result = str(carry) * bool(carry) + result
  return " ".join(written), result


def countdown(
  problem: problems.Problem, generator: random.Random | None
) -> tuple[str, str]:
  """An expression, and how it is worked out step by step."""
  numbers, target = problem.answer["numbers"], problem.answer["target"]
  if generator is not None:
    steps = expressions.random_steps(numbers, generator)
  else:
    steps = next(
      (s for value, s in expressions.reached(numbers) if value == target), None
    )
    if steps is None:
      raise ValueError(
        f"answer={problem.answer}: expected a target that the numbers reach by"
        " way of natural numbers; take its solution from elsewhere"
      )
  return " ".join(step.line for step in steps), steps[-1].expression
