"""The fields of a `config.json`, read with checks that name the file."""

import math
import pathlib
import sys
from typing import NoReturn

_LARGEST = 2**31 - 1  # of any size; JAX has no integers beyond


class Fields:
  """The fields of one file, read with checks that name the file."""

  def __init__(self, path: pathlib.Path, raw: dict):
    """Holds `raw`, the content of the file `path`."""
    self.path = path
    self.raw = raw

  def fail(self, field: str, expected: str, remedy: str) -> NoReturn:
    """Raises a ValueError about a field."""
    shown = f"={self.raw[field]!r}" if field in self.raw else " is missing"
    raise ValueError(
      f"{self.path}: {field}{shown}: expected {expected}; {remedy}"
    )

  def integer(self, field: str) -> int:
    """The integer that a field has to be."""
    value = self.raw.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
      self.fail(field, "an integer", "give the checkpoint's own config.json")
    if abs(value) > _LARGEST:
      self.fail(field, f"at most {_LARGEST}", "fix it")
    return value

  def number(self, field: str) -> float:
    """The finite number that a field has to be."""
    value = self.raw.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
      self.fail(field, "a number", "give the checkpoint's own config.json")
    if abs(value) > sys.float_info.max or not math.isfinite(value):
      self.fail(
        field, "a finite number", "give the checkpoint's own config.json"
      )
    return float(value)

  def choice(self, field: str, choices: tuple, default=None):
    """The choice that a field is, or `default` where it is absent or null."""
    value = self.raw.get(field)
    value = default if value is None else value
    if value not in choices:
      expected = " or ".join(map(repr, choices))
      self.fail(field, expected, "dsx has no other form of it")
    return choices[choices.index(value)]
