"""Problems without end, with solutions: addition, and countdown.

What a 100,000-parameter model can learn in minutes, and enough to see a whole
road from base model to reasoner on a laptop. Which problems are held out is
decided by a hash of each problem (of a sum whatever the order of its terms),
so that no choice of seed, number or settings ever moves one to the other side.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import random
from typing import Literal

from dsx.data import expressions
from dsx.data import problems
from dsx.data import solutions

SPLITS = ("train", "held_out")
# Share of all problems. A constant: with another, other problems are held out.
HELD_OUT = 0.125

# Draws for each problem asked for, after which there seem to be no more.
_PATIENCE = 40
Split = Literal["train", "held_out"]
_SOLUTIONS = {
  "addition": solutions.addition,
  "countdown": solutions.countdown,
}


def addition(
  digits: int, n: int, seed: int, split: Split = "train"
) -> list[problems.Problem]:
  """Sums of two numbers.

  Args:
    digits: of each number.
    n: how many problems, all different.
    seed: which of them, in which order.
    split: `train` or `held_out`.

  Raises:
    ValueError: an argument is out of range, or there are fewer than n.

  >>> addition(2, 1, 0)[0].prompt
  '66+15='
  """
  _check_at_least("digits", digits, 1)
  least = 10 ** (digits - 1) if digits > 1 else 0

  def draw(generator: random.Random) -> tuple[str, problems.Problem]:
    a = generator.randrange(least, 10**digits)
    b = generator.randrange(least, 10**digits)
    problem = problems.Problem(
      name=f"addition/{a}+{b}",
      prompt=f"{a}+{b}=",
      domain="addition",
      kind="number",
      answer=str(a + b),
    )
    return f"addition {min(a, b)} {max(a, b)}", problem

  return _distinct(draw, n, seed, split)


def countdown(
  numbers: int = 3,
  *,
  n: int,
  seed: int,
  split: Split = "train",
  largest: int = 9,
  largest_target: int = 99,
) -> list[problems.Problem]:
  """Numbers, each to be used once, and a target that they reach.

  Args:
    numbers: how many, 2 to 5.
    n: how many problems, all different.
    seed: which of them, in which order.
    split: `train` or `held_out`.
    largest: numbers are 1 to this, and may come twice.
    largest_target: targets are 1 to this, each that the numbers reach being
      as likely as another.

  Raises:
    ValueError: an argument is out of range, or there are fewer than n.
  """
  if not 2 <= numbers <= 5:
    raise ValueError(f"numbers={numbers!r}: expected 2 to 5; change it")
  _check_at_least("largest", largest, 1)
  _check_at_least("largest_target", largest_target, 1)

  def draw(
    generator: random.Random,
  ) -> tuple[str, problems.Problem] | None:
    given = [generator.randint(1, largest) for _ in range(numbers)]
    targets = expressions.targets(given, largest_target)
    if not targets:
      return None
    target = generator.choice(targets)
    shown = " ".join(map(str, given))
    problem = problems.Problem(
      name=f"countdown/{'_'.join(map(str, given))}={target}",
      prompt=f"{shown} -> {target}",
      domain="countdown",
      kind="countdown",
      answer={"numbers": given, "target": target},
    )
    return f"countdown {sorted(given)} {target}", problem

  return _distinct(draw, n, seed, split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
  """Problems of this file, as a run's settings name them.

  Attributes:
    task: `addition` or `countdown`.
    digits: of addition.
    numbers: of countdown.
    largest: of countdown's numbers.
    largest_target: of countdown.
    train: how many to train on.
    held_out: how many to evaluate with.
    seed: which of them.
  """

  task: Literal["addition", "countdown"] = "addition"
  digits: int = 2
  numbers: int = 3
  largest: int = 9
  largest_target: int = 99
  train: int = 2048
  held_out: int = 256
  seed: int = 0

  def __post_init__(self):
    if self.task not in _SOLUTIONS:
      raise ValueError(
        f"task={self.task!r}: expected one of {', '.join(_SOLUTIONS)}; change"
        " it"
      )

  def problems(self, split: Split) -> list[problems.Problem]:
    """The problems of a split, always the same ones."""
    n = self.train if split == "train" else self.held_out
    if self.task == "addition":
      return addition(self.digits, n, self.seed, split)
    return countdown(
      self.numbers,
      n=n,
      seed=self.seed,
      split=split,
      largest=self.largest,
      largest_target=self.largest_target,
    )


def solution(
  problem: problems.Problem,
  *,
  form: Literal["tags", "summary"] = "tags",
  format_only: bool = False,
  steps: bool = True,
) -> str:
  """A response to a problem of this file.

  Args:
    problem: of this file.
    form: `tags` as R1-Zero answers, <think>...</think><answer>...</answer>;
      `summary` as R1 does, <think>...</think>...
    format_only: give a response of the right form that was made without
      looking for the answer, to teach the form and no more: numbers at random
      for a sum, an expression of the given numbers at random for countdown. It
      may be right by chance.
    steps: whether the chain of thought shows how; else it is empty.

  Returns:
    Text without EOS; the same for the same arguments.

  Raises:
    ValueError: the problem is of another kind, or has no solution.
  """
  solve = _SOLUTIONS.get(problem.domain)
  if solve is None or not problem.name.startswith(f"{problem.domain}/"):
    raise ValueError(
      f"problem.name={problem.name!r}: expected a problem of data/arithmetic.py"
      f", got domain {problem.domain!r} and kind {problem.kind!r}; take its"
      " solution from elsewhere"
    )
  generator = random.Random(f"solution {problem.name}")
  thought, answer = solve(problem, generator if format_only else None)
  thought = thought if steps else ""
  if form == "summary":
    return f"<think>{thought}</think>{answer}"
  if form != "tags":
    raise ValueError(f"form={form!r}: expected tags or summary; change it")
  return f"<think>{thought}</think><answer>{answer}</answer>"


def split_of(key: str) -> Split:
  """The split of a problem, by the hash of what it is."""
  digest = hashlib.sha256(key.encode()).digest()
  share = int.from_bytes(digest[:8], "big") / 2**64
  return "held_out" if share < HELD_OUT else "train"


def _check_at_least(name: str, value: int, least: int) -> None:
  if not isinstance(value, int) or value < least:
    raise ValueError(
      f"{name}={value!r}: expected an integer of at least {least}; raise it"
    )


def _distinct(
  draw: Callable[[random.Random], tuple[str, problems.Problem] | None],
  n: int,
  seed: int,
  split: str,
) -> list[problems.Problem]:
  """The first n different problems of a split that are drawn."""
  if split not in SPLITS:
    raise ValueError(
      f"split={split!r}: expected {' or '.join(SPLITS)}; change it"
    )
  _check_at_least("n", n, 1)
  generator = random.Random(f"arithmetic {seed}")
  found: dict[str, problems.Problem] = {}
  sides: dict[str, str] = {}
  for _ in range(_PATIENCE * n + 2000):
    drawn = draw(generator)
    if drawn is None:
      continue
    key, problem = drawn
    side = sides.get(key)
    if side is None:
      side = sides[key] = split_of(key)
    if side == split:
      found.setdefault(problem.name, problem)
      if len(found) == n:
        return list(found.values())
  raise ValueError(
    f"n={n}: expected at most as many as there are, about {len(found)} in"
    f" {split}; ask for fewer, or for larger problems"
  )
