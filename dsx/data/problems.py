"""Problems: a question, and what an answer to it is compared with.

DeepSeek-R1 section 2.2.2: where answers can be checked by rule, a reward needs
no model. A file of problems has one JSON object a line:

  {"name": "a1", "prompt": "2+2=", "domain": "arithmetic", "kind": "number",
   "answer": "4", "language": "en"}

What `answer` is depends on `kind`:

  number     an integer, or a number as text ("0.5", "1/2", "-3", "1e6")
  set        a list of numbers and texts, in any order
  choice     the letter of the one right option, "A" to "Z"
  countdown  {"numbers": [3, 6, 7], "target": 24}
  code       a list of {"stdin": ..., "stdout": ...}, test cases
  math       LaTeX, compared as mathematics ("\\\\frac{1}{2}", "(1, \\\\infty)")
  open       null, or an answer that a judge may look at; no rule decides
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from dsx.data import vocab

_FIELDS = ("name", "prompt", "domain", "kind", "answer")
_LONGEST_SHOWN = 80  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Problem:
  """A problem; see the module's docstring.

  Attributes:
    name: one of its kind in a data set.
    prompt: the bare question, without template.
    domain: what results are reported by: math, code, arithmetic, ...
    kind: how an answer is graded.
    answer: what it is compared with, as JSON has it.
    language: that the chain of thought should be in, as `rl.language` names
      it.
  """

  name: str
  prompt: str
  domain: str
  kind: str
  answer: Any
  language: str = "en"

  def __post_init__(self):
    for field in ("name", "prompt", "domain", "language"):
      value = getattr(self, field)
      if not isinstance(value, str) or not value:
        raise ValueError(
          f"{field}={_shown(value)}: expected text of at least one character;"
          " give some"
        )
      try:
        vocab.utf8(value)
      except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
    if self.kind not in KINDS:
      raise ValueError(
        f"kind={_shown(self.kind)}: expected one of {', '.join(KINDS)}; change"
        " it"
      )
    expected, fits = KINDS[self.kind]
    if not fits(self.answer):
      raise ValueError(
        f"answer={_shown(self.answer)}: expected {expected} for kind"
        f" {self.kind!r}; change either"
      )


def read(path: str | os.PathLike[str]) -> list[Problem]:
  """Reads a file of problems; empty lines are skipped.

  Raises:
    ValueError: it cannot be read, has no problem or the same name twice, or
      a line is not as expected: says file, line and field.
  """
  file = pathlib.Path(path).expanduser()
  try:
    text = file.read_bytes().decode("utf-8").removeprefix("\ufeff")
  except OSError as error:
    raise ValueError(
      f"problems: cannot read {str(file)!r} ({error.strerror}), expected a file"
      " of problems, one JSON object a line; give another path"
    ) from None
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{file}: not UTF-8 at byte {error.start} ({error.reason}); convert it"
    ) from None
  places: dict[str, str] = {}
  found = []
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      place = f"{file}:{number}"
      problem = _of_line(place, line)
      if problem.name in places:
        raise ValueError(
          f"{place}: name={problem.name!r}: expected one that no other problem"
          f" has; {places[problem.name]} has it too, rename one"
        )
      places[problem.name] = place
      found.append(problem)
  if not found:
    raise ValueError(
      f"{file}: no problems; expected one JSON object a line, add some"
    )
  return found


def write(path: str | os.PathLike[str], problems: Iterable[Problem]) -> None:
  """Writes a file of problems, whole or not at all."""
  file = pathlib.Path(path).expanduser()
  partial = file.with_name(file.name + ".partial")
  partial.write_text("".join(map(_line, problems)), encoding="utf-8")
  os.replace(partial, file)


def digest(problems: Iterable[Problem]) -> str:
  """Hex sha256 of problems in their order."""
  hashed = hashlib.sha256()
  for problem in problems:
    hashed.update(_line(problem).encode())
  return hashed.hexdigest()


def _line(problem: Problem) -> str:
  fields = dataclasses.asdict(problem)
  return json.dumps(fields, ensure_ascii=False, sort_keys=True) + "\n"


def _of_line(place: str, line: str) -> Problem:
  try:
    value = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{place}: not JSON ({error}); expected an object with"
      f" {', '.join(_FIELDS)}"
    ) from None
  if not isinstance(value, Mapping):
    raise ValueError(
      f"{place}: got {_shown(value)}; expected an object with"
      f" {', '.join(_FIELDS)}"
    )
  missing = [field for field in _FIELDS if field not in value]
  unknown = [field for field in value if field not in (*_FIELDS, "language")]
  if missing:
    raise ValueError(
      f"{place}: {missing[0]} is missing; expected {', '.join(_FIELDS)}, add it"
    )
  if unknown:
    raise ValueError(
      f"{place}: {unknown[0]!r} is unknown; expected {', '.join(_FIELDS)} and"
      " perhaps language, take it out"
    )
  try:
    return Problem(**value)
  except ValueError as error:
    raise ValueError(f"{place}: {error}") from None


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= _LONGEST_SHOWN else text[:77] + "..."


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and bool(value.strip())


def _is_value(value: Any) -> bool:
  return _is_integer(value) or _is_text(value)


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
  listed = isinstance(value, Sequence) and not isinstance(value, str)
  return listed and bool(value) and all(map(fits, value))


def _is_countdown(value: Any) -> bool:
  return (
    isinstance(value, Mapping)
    and set(value) == {"numbers", "target"}
    and _is_list(value["numbers"], lambda n: _is_integer(n) and n >= 0)
    and _is_integer(value["target"])
  )


def _is_case(value: Any) -> bool:
  return (
    isinstance(value, Mapping)
    and set(value) == {"stdin", "stdout"}
    and all(isinstance(text, str) for text in value.values())
  )


def _is_letter(value: Any) -> bool:
  return isinstance(value, str) and len(value) == 1 and "A" <= value <= "Z"


# What an answer is, in words, and whether a value is that.
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
  "number": ("an integer or a number as text", _is_value),
  "set": (
    "a list of at least one integer or text",
    lambda value: _is_list(value, _is_value),
  ),
  "choice": ("one letter from A to Z", _is_letter),
  "countdown": (
    '{"numbers": [natural numbers], "target": an integer}',
    _is_countdown,
  ),
  "code": (
    'a list of at least one {"stdin": text, "stdout": text}',
    lambda value: _is_list(value, _is_case),
  ),
  "math": ("LaTeX as text", _is_text),
  "open": (
    "null or text",
    lambda value: value is None or isinstance(value, str),
  ),
}
