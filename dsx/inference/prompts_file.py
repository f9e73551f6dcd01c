"""Prompts from a file: plain lines, or JSON lines with a `prompt` field.

A file is read as JSON lines if its name ends in .jsonl or if its first line is
an object with a prompt; other fields are ignored. Empty lines hold no prompt
and are skipped, in both kinds. A line is what ends in a line feed, with or
without a carriage return before it, and nothing else: other characters that
look like line ends belong to the prompt.
"""

import json
import os
import pathlib
from typing import NamedTuple

from dsx.data import vocab

_FIELD = "prompt"
_LONGEST_SHOWN = 60  # characters of a line in a message


class Prompt(NamedTuple):
  """A text to continue.

  Attributes:
    text: at least one character.
    place: where it comes from, as messages name it.
  """

  text: str
  place: str


def read(path: str | os.PathLike[str]) -> list[Prompt]:
  """Reads the prompts of a file, in its order; at least one.

  Raises:
    ValueError: the file cannot be read or holds no prompt, or a line none.
  """
  file = pathlib.Path(path).expanduser()
  try:
    raw = file.read_bytes()
  except OSError as error:
    raise ValueError(
      f"--prompts_file: cannot read {str(file)!r} ({error.strerror}), expected "
      "a file of prompts; give one a line"
    ) from None
  lines = [
    (f"{file}:{number}", line.removesuffix("\r"))
    for number, line in enumerate(_text(file, raw).split("\n"), 1)
  ]
  first = lines[0][1]
  as_json = file.suffix == ".jsonl" or _is_object_with_prompt(first)
  prompts = [
    Prompt(_of_json(place, line) if as_json else line, place)
    for place, line in lines
    if line and not (as_json and line.isspace())
  ]
  if not prompts:
    raise ValueError(f"{file}: no prompts; expected one on each line")
  return prompts


def _text(file: pathlib.Path, raw: bytes) -> str:
  try:
    return raw.decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    line = raw.count(b"\n", 0, error.start) + 1
    raise ValueError(
      f"{file}:{line}: not UTF-8 at byte {error.start} ({error.reason}); "
      "expected UTF-8 text, convert it"
    ) from None


def _is_object_with_prompt(line: str) -> bool:
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    return False
  return isinstance(value, dict) and _FIELD in value


def _of_json(place: str, line: str) -> str:
  """The prompt of a JSON line."""
  expected = 'expected an object such as {"prompt": "some text"}'
  try:
    value = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{place}: not JSON ({error}); {expected} on each line"
    ) from None
  if not isinstance(value, dict) or _FIELD not in value:
    shown = line if len(line) <= _LONGEST_SHOWN else line[:57] + "..."
    raise ValueError(f"{place}: got {shown}; {expected}")
  prompt = value[_FIELD]
  if not isinstance(prompt, str) or not prompt:
    raise ValueError(
      f"{place}: prompt={prompt!r}: expected text of at least one character"
    )
  try:
    vocab.utf8(prompt)
  except ValueError as error:
    raise ValueError(f"{place}: prompt: {error}") from None
  return prompt
