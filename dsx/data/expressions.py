"""Which values some numbers reach, each used once, and how.

The search behind countdown problems (`arithmetic`), by way of natural numbers
alone: no negative number and no fraction on the way.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import itertools
import random
from typing import NamedTuple

_OPERATIONS = "+-*/"


class Step(NamedTuple):
  """Two results made into one.

  Attributes:
    line: what is worked out, `7-3=4`.
    expression: all of it so far, `(7-3)*6`.
  """

  line: str
  expression: str


class _Term(NamedTuple):
  """A partial result.

  Attributes:
    value: what it is.
    text: the expression.
    binds: how tightly: a sum 1, a product 2, a number 3.
    steps: that led to it.
  """

  value: int
  text: str
  binds: int
  steps: tuple[Step, ...]


def _combined(a: _Term, b: _Term, operation: str) -> _Term | None:
  """Two results made into one; None if that is no natural number."""
  if operation == "+":
    value = a.value + b.value
  elif operation == "-":
    value = a.value - b.value
  elif operation == "*":
    value = a.value * b.value
  else:
    value, rest = divmod(a.value, b.value) if b.value else (-1, 0)
    value = -1 if rest else value
  if value < 0:
    return None
  binds = 1 if operation in "+-" else 2
  left = a.text if a.binds >= binds else f"({a.text})"
  # What stands right of - and / must bind more tightly than they do.
  needed = binds + (operation in "-/")
  right = b.text if b.binds >= needed else f"({b.text})"
  text = f"{left}{operation}{right}"
  line = f"{a.value}{operation}{b.value}={value}"
  return _Term(value, text, binds, (*a.steps, *b.steps, Step(line, text)))


def _terms(numbers: Sequence[int]) -> list[_Term]:
  return [_Term(n, str(n), 3, ()) for n in numbers]


def reached(
  numbers: Sequence[int],
) -> Iterator[tuple[int, tuple[Step, ...]]]:
  """Every value that all the numbers reach, with the steps to it, once each.

  Args:
    numbers: natural ones. The work grows like that of sets of sets: 5 take
      tens of milliseconds, 6 a second.
  """
  known: dict[int, dict[int, _Term]] = {
    1 << i: {term.value: term} for i, term in enumerate(_terms(numbers))
  }
  whole = (1 << len(numbers)) - 1
  for chosen in range(1, whole + 1):
    values = known.setdefault(chosen, {})
    part = (chosen - 1) & chosen
    while part:
      for a, b in itertools.product(
        known[part].values(), known[chosen ^ part].values()
      ):
        for operation in _OPERATIONS:
          if operation in "+*" and part < chosen ^ part:
            continue  # the other way round is the same
          term = _combined(a, b, operation)
          if term is not None:
            values.setdefault(term.value, term)
      part = (part - 1) & chosen
  for value, term in known[whole].items():
    yield value, term.steps


def targets(numbers: Sequence[int], largest: int) -> list[int]:
  """The values from 1 to `largest` that numbers reach, sorted."""
  return sorted(v for v, _ in reached(numbers) if 1 <= v <= largest)


def random_steps(
  numbers: Sequence[int], generator: random.Random
) -> tuple[Step, ...]:
  """Two results at random made into one, until one is left."""
  terms = _terms(numbers)
  while len(terms) > 1:
    generator.shuffle(terms)
    combined = _combined(terms[0], terms[1], generator.choice(_OPERATIONS))
    if combined is not None:
      terms = [combined, *terms[2:]]
  return terms[0].steps
