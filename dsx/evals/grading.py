"""Whether an answer is the right one.

DeepSeek-R1 section 2.2.2: answers are compared by rule, so that no model can be
talked into a reward. An answer here is all that stands where the answer should
be; it must be the right one and nothing more. Several answers, lists of all
options and numbers among words are wrong, because whoever gives them has not
decided. Every function is pure; `mathematics` may take for ever or fail, and is
called where it can be stopped.
"""

from collections.abc import Sequence
from fractions import Fraction
import functools
import re
from typing import Any

# An answer longer than this is not read.
LONGEST = 2000
_MOST_DIGITS = 1000
_LARGEST_EXPONENT = 1000
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = re.compile(
  rf"([-+]?)({_DIGITS}(?:\.\d*)?|\.\d+)(?:[eE]([-+]?\d{{1,6}}))?", re.ASCII
)
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", re.ASCII)
_BOXED = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\{(.*)\}", re.DOTALL)
_CHOICE = re.compile(
  r"(?:(?:option|choice|answer)\s*:?\s*)?"
  r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])\)?)[.:]?",
  re.ASCII | re.IGNORECASE,
)
_SEPARATOR = re.compile(r"\s*[,;]\s*|\s+and\s+")
_BRACES = (("\\{", "\\}"), ("{", "}"), ("[", "]"), ("(", ")"))


def number(answer: str, reference: int | str) -> bool:
  """Whether an answer is a number, and equal to the reference.

  Integers, decimals, powers of ten (1e6), fractions (1/2 and \\frac) and
  thousands (1,000), exactly; within $...$ or \\boxed{...} too. Only the digits
  0 to 9 are digits.

  Raises:
    ValueError: the reference is no number.

  >>> number("0.50", "1/2"), number("4 or 5", "4"), number("\u0664", "4")
  (True, False, False)
  """
  expected = _value(str(reference))
  if expected is None:
    raise ValueError(
      f"answer={reference!r}: expected a number as the reference; change it, or"
      " its problem's kind"
    )
  return _value(answer) == expected


def number_set(answer: str, reference: Sequence[int | str]) -> bool:
  """Whether an answer lists the elements of a set, in any order.

  Elements stand between commas, semicolons or "and", in braces or not; numbers
  are compared as `number` does, all else letter by letter. Naming one twice is
  no mistake; one too many is.

  Raises:
    ValueError: the reference is empty.

  >>> number_set("{3, 1/2}", ["0.5", 3]), number_set("1, 2, 3", [1, 2])
  (True, False)
  """
  if not reference:
    raise ValueError("answer=[]: expected elements in the reference; add some")
  text = _bare(answer)
  for left, right in _BRACES:
    if text.startswith(left) and text.endswith(right):
      text = text[len(left) : -len(right)].strip()
      break
  if not text or len(text) > LONGEST:
    return False
  elements = {_element(part) for part in _SEPARATOR.split(text)}
  return elements == {_element(str(part)) for part in reference}


def choice(answer: str, reference: str) -> bool:
  """Whether an answer names one option by its letter, and the right one.

  >>> choice("(B)", "B"), choice("A B C D", "B")
  (True, False)
  """
  match = _CHOICE.fullmatch(_bare(answer).strip("*"))
  if match is None:
    return False
  return next(filter(None, match.groups())).upper() == reference


def mathematics(answer: str, reference: str) -> bool:
  """Whether two LaTeX texts are the same mathematics, by math-verify.

  For a process of its own: sympy may compute for ever on what a policy writes,
  and the library's own time limits are signals, which threads don't have, so
  they are off. On top of the library's judgement an answer must be one
  expression as a whole, an equation between numbers must be true, infinities
  equal no number, and a plain number is not answered by a sum or product that
  nobody worked out, else repeating the question would do.

  Args:
    answer: with or without dollars or \\boxed.
    reference: likewise.

  Raises:
    ValueError: the reference is no mathematics.
    Exception: whatever sympy raises as it compares.

  >>> mathematics("0.5", "\\\\frac{1}{2}"), mathematics("2 \\\\cdot 3", "6")
  (True, False)
  """
  expected = _parsed(reference)
  if not expected:
    raise ValueError(
      f"answer={reference!r}: expected LaTeX that math-verify reads as the"
      " reference; change it, or its problem's kind"
    )
  if len(answer) > LONGEST or not _balanced(_bare(answer)):
    return False
  given = _parsed(answer)
  if len(given) != 1 or not _is_honest(given[0], expected[0]):
    return False
  return _verified(expected, given)


def _bare(answer: str) -> str:
  """Without white space, dollars, a box and a full stop around it."""
  text = answer.strip()
  for _ in range(4):
    before = text
    text = text.removesuffix(".").strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)")):
      both = text.startswith(left) and text.endswith(right)
      if both and len(text) > len(left + right):
        text = text[len(left) : -len(right)].strip()
    boxed = _BOXED.fullmatch(text)
    text = (boxed.group(1) if boxed else text).strip()
    if text == before:
      break
  return text


def _value(text: str) -> Fraction | None:
  """The number that a text is; None if it is none."""
  if len(text) > LONGEST:
    return None
  text = _bare(text).replace("\u2212", "-")
  over = _FRACTION.fullmatch(text)
  if over is not None:
    sign, above, below = over.groups()
  else:
    sign, (above, slash, below) = "", text.partition("/")
    if not slash:
      return _decimal(text)
  numerator, denominator = _decimal(above.strip()), _decimal(below.strip())
  if numerator is None or not denominator:
    return None
  value = numerator / denominator
  return -value if sign == "-" else value


def _decimal(text: str) -> Fraction | None:
  match = _NUMBER.fullmatch(text)
  if match is None or len(text) > _MOST_DIGITS:
    return None
  sign, digits, exponent = match.groups()
  power = int(exponent or 0)
  if abs(power) > _LARGEST_EXPONENT:
    return None
  value = Fraction(digits.replace(",", "").rstrip(".")) * Fraction(10) ** power
  return -value if sign == "-" else value


def _element(text: str) -> Fraction | str:
  value = _value(text)
  return " ".join(_bare(text).split()) if value is None else value


@functools.cache
def _library():
  """math-verify, imported when it is first needed: it brings sympy."""
  import logging

  import math_verify

  # It warns, once a process, that time limits are somebody else's business.
  logging.getLogger("math_verify").setLevel(logging.ERROR)
  return math_verify


def _parsed(text: str) -> list[Any]:
  """The one expression that the whole of a text is; empty if it is none."""
  library = _library()
  return library.parse(
    f"\\boxed{{{_bare(text)}}}",
    [library.LatexExtractionConfig(boxed_match_priority=0)],
    fallback_mode="no_fallback",
    # What is in the box, and no part of it that can be read if it can't.
    extraction_mode="first_match",
    parsing_timeout=0,
  )


def _verified(expected: list[Any], given: list[Any]) -> bool:
  return _library().verify(
    expected, given, timeout_seconds=0, raise_on_error=True
  )


def _balanced(text: str) -> bool:
  """Whether braces are closed, and no box is left among other things."""
  depth = 0
  for brace in re.findall(r"(?<!\\)[{}]", text):
    depth += 1 if brace == "{" else -1
    if depth < 0:
      return False
  return depth == 0 and "\\boxed" not in text


def _is_honest(given: Any, expected: Any) -> bool:
  """Whether an answer is more than a true statement about the reference."""
  import sympy

  if isinstance(given, sympy.Eq):
    left, right = given.args
    if not left.free_symbols and not _verified([left], [right]):
      return False
    given = right
  # To the library some products with an infinity equal every number.
  endless = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
  if given.has(*endless) and not expected.has(*endless):
    return False
  if not isinstance(expected, sympy.Number):
    return True
  if not isinstance(given, sympy.Expr):
    return True
  undone = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit)
  undone += (sympy.Derivative, sympy.Function)
  return not given.has(*undone) and not any(
    _is_undone(node) for node in sympy.preorder_traversal(given)
  )


def _is_undone(node: Any) -> bool:
  """Whether it is a sum, or a product of several numbers."""
  import sympy

  if isinstance(node, sympy.Add):
    return True
  if not isinstance(node, sympy.Mul):
    return False
  # Signs and per cent are no factors to be multiplied out.
  free = (1, -1, sympy.Rational(1, 100))
  return sum(f.is_Number and f not in free for f in node.args) > 1
