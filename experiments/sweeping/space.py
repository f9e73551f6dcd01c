"""What a sweep varies: lists of values to combine, and laws to draw from.

    Schedule.learning_rate = [1e-3, 3e-3]           a grid: each value
    Schedule.learning_rate = log_uniform(1e-4, 1e-2)      a draw

A drawn value depends on the sweep's seed, the number of the draw and the name
of what is drawn, and on nothing else: more draws, or a further axis, leave the
trials that exist as they are.
"""

import ast
from collections.abc import Callable
import dataclasses
import math
import random
from typing import Any
from typing import NoReturn

from experiments.bindings import problems
from experiments.bindings import reader
from experiments.bindings import values

_DIGITS = 4  # of a drawn number: it is to be read and typed


@dataclasses.dataclass(frozen=True)
class Choice:
  """One value of one thing that is varied.

  Attributes:
    key: what a gin binding has before its `=`.
    text: the value in gin.
    place: the flag that says so.
  """

  key: str
  text: str
  place: problems.Place

  @property
  def binding(self) -> str:
    """The gin binding."""
    return f"{self.key} = {self.text}"

  @property
  def value(self) -> Any:
    """The value where it is a literal, else its text."""
    try:
      return ast.literal_eval(self.text)
    except (ValueError, SyntaxError):
      return self.text


@dataclasses.dataclass(frozen=True)
class Draw:
  """Something that is drawn anew for every trial.

  Attributes:
    key: what a gin binding has before its `=`.
    law: gives a value for a number that is uniform from 0 to 1.
    place: the flag that says so.
  """

  key: str
  law: Callable[[float], Any]
  place: problems.Place

  def at(self, seed: int, number: int) -> Choice:
    """The value of the draw of this number."""
    # Python promises the same numbers from a text seed in every version.
    uniform = random.Random(f"{seed}/{number}/{self.key}").random()
    text = values.written(self.law(uniform), {})
    return Choice(self.key, text, self.place)


def grid(text: str, number: int) -> list[Choice]:
  """The values of the `number`-th --grid.

  Raises:
    problems.Refused: it is no binding to a list of values that differ.
  """
  place = problems.Place("--grid", number)
  statements, mistake = reader.parse(text)
  if mistake is not None:
    _refuse(place, mistake[1])
  options = getattr(statements[0], "value", None) if statements else None
  if len(statements) != 1 or not isinstance(options, list):
    _refuse(place, f"{text!r}: expected KEY = [VALUE, ...]; write a list")
  key = text.partition("=")[0].strip()
  choices = [Choice(key, _gin(value), place) for value in options]
  if not choices or len(set(choices)) < len(choices):
    _refuse(place, f"{text!r}: expected one or more values, all different")
  return choices


def _gin(value: Any) -> str:
  names = {
    leaf.name: leaf.shown
    for leaf in values.leaves(value)
    if isinstance(leaf, values.Reference)
  }
  return values.written(value, names)


def draw(text: str, number: int) -> Draw:
  """What the `number`-th --draw draws.

  Raises:
    problems.Refused: it is no binding to a law with its numbers.
  """
  place = problems.Place("--draw", number)
  key, equals, right = text.partition("=")
  key = key.strip()
  try:
    call = ast.parse(right.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or call.keywords or not equals:
      raise ValueError
    name = ast.unparse(call.func)
    numbers = [ast.literal_eval(argument) for argument in call.args]
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    _refuse(place, f"{text!r}: expected KEY = LAW(...), such as {_EXAMPLE}")
  if name not in _LAWS:
    _refuse(place, f"{name}: {problems.suggestion(name, _LAWS)}")
  try:
    law = _LAWS[name](*numbers)
  except (TypeError, ValueError) as error:
    expected = error if type(error) is ValueError else "two numbers"
    _refuse(place, f"{right.strip()}: expected {expected}")
  _, mistake = reader.parse(f"{key} = 1")
  if not key or mistake is not None:
    _refuse(place, f"{key!r}: expected a gin name, such as {_EXAMPLE}")
  return Draw(key, law, place)


_EXAMPLE = "Schedule.learning_rate = log_uniform(1e-4, 1e-2)"


def _refuse(place: problems.Place, message: str) -> NoReturn:
  raise problems.Refused([problems.Problem(place, message)])


def _bounds(low: Any, high: Any, *, above: float, whole: bool) -> None:
  kinds = (int,) if whole else (int, float)
  for number in (low, high):
    if type(number) not in kinds or not math.isfinite(number):
      raise ValueError("two whole numbers" if whole else "two finite numbers")
  if not above < low < high:
    more = f", both above {above:g}" if math.isfinite(above) else ""
    raise ValueError(f"the lower bound first, then a higher one{more}")


def _rounded(value: float, low: float, high: float) -> float:
  return min(max(float(f"{value:.{_DIGITS}g}"), float(low)), float(high))


def _uniform(low, high):
  _bounds(low, high, above=-math.inf, whole=False)
  return lambda u: _rounded(low + (high - low) * u, low, high)


def _log_uniform(low, high):
  _bounds(low, high, above=0.0, whole=False)
  span = math.log(high) - math.log(low)
  return lambda u: _rounded(math.exp(math.log(low) + span * u), low, high)


def _integers(low, high):
  _bounds(low, high, above=-math.inf, whole=True)
  return lambda u: low + int(u * (high - low + 1))


def _log_integers(low, high):
  _bounds(low, high, above=0, whole=True)
  span = math.log(high + 1) - math.log(low)
  return lambda u: min(int(math.exp(math.log(low) + span * u)), high)


def _choice(*options):
  if not options:
    raise ValueError("one or more values")
  return lambda u: options[int(u * len(options))]


_LAWS: dict[str, Callable[..., Callable[[float], Any]]] = {
  "uniform": _uniform,
  "log_uniform": _log_uniform,
  "integers": _integers,
  "log_integers": _log_integers,
  "choice": _choice,
}
