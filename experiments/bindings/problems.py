"""Mistakes in a gin file, one line each: where, what came, what to do."""

from collections.abc import Iterable
import difflib
import re
from typing import NamedTuple

_LONGEST_LINE = 600
_LONGEST_NAME = 200
_LONG_WORD = re.compile(r"(\S{80})\S{80,}(\S{40})")


class Place(NamedTuple):
  """Where something was written.

  Attributes:
    file: path as a person would type it, or the name of a flag.
    line: line in the file from 1, or the how-manieth use of the flag.
  """

  file: str
  line: int

  def __str__(self):
    return f"{self.file}:{self.line}"


class Problem(NamedTuple):
  """One mistake.

  Attributes:
    place: where it was written.
    message: what came, what was expected and the remedy.
  """

  place: Place
  message: str

  def __str__(self):
    return printable(f"{self.place}: {self.message}")


class Refused(ValueError):
  """Gin files or flags that must not be run.

  Attributes:
    problems: the mistakes, in the order of their places; at least one.
  """

  def __init__(self, problems: Iterable[Problem]):
    self.problems = tuple(dict.fromkeys(problems))
    super().__init__("\n".join(map(str, self.problems)))


def printable(text: str) -> str:
  """Returns `text` as one line without control characters, cut if very long.

  Whatever stands in a gin file may end up in a message: it must not be able
  to move the cursor, start a second line or break an ASCII terminal's writer.
  """
  kept = "".join(
    character if character.isprintable() else repr(character)[1:-1]
    for character in text
  )
  # A remedy stands at the end: what makes a line long is cut in the middle.
  kept = _LONG_WORD.sub(r"\1...\2", kept)
  if len(kept) > _LONGEST_LINE:
    kept = kept[: _LONGEST_LINE - 3] + "..."
  return kept


def nearest(name: str, names: Iterable[str]) -> str | None:
  """Returns the name that `name` is most likely a misspelling of, or None."""
  names = list(names)
  if len(name) > _LONGEST_NAME:  # matching takes time with the square of it
    return None
  exact = {candidate.lower(): candidate for candidate in names}
  if name.lower() in exact:
    return exact[name.lower()]
  # Half the letters in common is enough: `b3` must still find `b1`.
  matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  return matches[0] if matches else None


def suggestion(name: str, names: Iterable[str], quote: str = "'") -> str:
  """Returns the remedy for an unknown `name`, given the valid `names`."""
  names = list(names)
  match = nearest(name, names)
  if match is not None:
    return f"did you mean {quote}{match}{quote}?"
  if not names:
    return "there is none to name here"
  shown = ", ".join(sorted(names)[:12])
  return f"expected one of {shown}{', ...' if len(names) > 12 else ''}"
