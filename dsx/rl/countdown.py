"""Countdown: reach a number with others, each used exactly once.

An answer is an arithmetic expression. It is parsed here, exactly, in fractions,
and never handed to an interpreter: whatever a policy may write is a number, or
an error with a place.
"""

from collections.abc import Sequence
from fractions import Fraction
import re

_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))", re.ASCII)
# A chain longer than this is no honest answer; nor is a number of more digits.
_LONGEST = 200
_DIGITS = 9


class Mistake(ValueError):
  """An answer that is no expression, or has no value."""


def value(expression: str) -> tuple[Fraction, list[int]]:
  """The value of an expression and the numbers in it, in order.

  Args:
    expression: integers, `+ - * /`, parentheses and white space, at most 200
      characters. A leading minus is not among them: it would let a number be
      used with either sign.

  Raises:
    Mistake: it is something else, or divides by zero.

  >>> value("(7 - 3) * 6")
  (Fraction(24, 1), [7, 3, 6])
  """
  if len(expression) > _LONGEST:
    raise Mistake(f"{len(expression)} characters: expected at most {_LONGEST}")
  reader = _Reader(_tokens(expression))
  result = reader.sum()
  if reader.next is not None:
    raise Mistake(f"{reader.next!r} after the end of an expression")
  return result, reader.numbers


def solves(answer: str, numbers: Sequence[int], target: int) -> bool:
  """Whether an answer reaches the target with each number exactly once.

  Args:
    answer: an expression, or such a one followed by `= target`.
    numbers: what there is to use.
    target: what to reach.
  """
  expression, equals, result = answer.partition("=")
  if equals and result.strip() != str(target):
    return False
  try:
    reached, used = value(expression)
  except Mistake:
    return False
  return reached == target and sorted(used) == sorted(numbers)


def _tokens(text: str) -> list[str]:
  tokens, at = [], 0
  text = text.rstrip()
  while at < len(text):
    match = _TOKEN.match(text, at)
    if match is None:
      raise Mistake(f"{text[at:].lstrip()[:1]!r} in an expression")
    number, operator = match.groups()
    if number and len(number) > _DIGITS:
      raise Mistake(f"a number of {len(number)} digits")
    tokens.append(number or operator)
    at = match.end()
  return tokens


class _Reader:
  """A recursive descent: a sum of products of atoms."""

  def __init__(self, tokens: list[str]):
    self._tokens = tokens
    self._at = 0
    self.numbers: list[int] = []

  @property
  def next(self) -> str | None:
    """The token at hand; None at the end."""
    return self._tokens[self._at] if self._at < len(self._tokens) else None

  def _take(self) -> str | None:
    token = self.next
    self._at += 1
    return token

  def sum(self) -> Fraction:
    """Products, added and subtracted from left to right."""
    total = self._product()
    while self.next in ("+", "-"):
      sign = 1 if self._take() == "+" else -1
      total += sign * self._product()
    return total

  def _product(self) -> Fraction:
    total = self._atom()
    while self.next in ("*", "/"):
      times = self._take() == "*"
      other = self._atom()
      if not times and other == 0:
        raise Mistake("a division by zero")
      total = total * other if times else total / other
    return total

  def _atom(self) -> Fraction:
    token = self._take()
    if token == "(":
      inner = self.sum()
      if self._take() != ")":
        raise Mistake("a parenthesis is not closed")
      return inner
    if token is None or not token.isdigit():
      raise Mistake(f"{token!r} where a number should be")
    self.numbers.append(int(token))
    return Fraction(int(token))
