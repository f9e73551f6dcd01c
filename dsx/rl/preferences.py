"""What people, or a judge, thought of responses: the data of reward models.

DeepSeek-R1's helpful model learns from pairs (Bradley and Terry), its safety
model from single responses that are labelled (section 2.3.2's later version:
66,000 pairs and 106,000 labelled prompts). A line of the file is one of

  {"prompt": ..., "chosen": ..., "rejected": ...}
  {"prompt": ..., "response": ..., "good": true}

and a file has one kind. Helpfulness is judged by the summary alone, which is
what follows the chain of thought; safety by the whole response.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any
from typing import Literal

Part = Literal["summary", "whole"]
PARTS = ("summary", "whole")
_END_OF_THOUGHT = "</think>"
_ANSWER = ("<answer>", "</answer>")
_KINDS = {
  "pair": {"prompt": str, "chosen": str, "rejected": str},
  "label": {"prompt": str, "response": str, "good": bool},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """Two responses to a prompt, the first of them preferred."""

  prompt: str
  chosen: str
  rejected: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
  """A response that is `good`, or is not."""

  prompt: str
  response: str
  good: bool


Preference = Pair | Label


def read(path: str | os.PathLike[str]) -> list[Preference]:
  """Reads a file of preferences.

  Args:
    path: of JSON lines, all of one kind; further fields are let be.

  Raises:
    ValueError: in one line with the file's name and the line's number, what is
      wrong.
  """
  path = pathlib.Path(path).expanduser()
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "is not UTF-8"
    raise ValueError(
      f"{path}: {reason}: expected a file of preferences, one JSON object a"
      " line; correct the path"
    ) from None
  found: list[Preference] = []
  for number, line in enumerate(lines, 1):
    if line.strip():
      found.append(_parsed(line, f"{path}:{number}"))
      if type(found[0]) is not type(found[-1]):
        raise ValueError(
          f"{path}:{number}: another kind than in the lines before: expected"
          " pairs alone, or labels alone; write two files"
        )
  if not found:
    raise ValueError(f"{path}: no preference: expected one JSON object a line")
  return found


def _parsed(line: str, place: str) -> Preference:
  try:
    record: Any = json.loads(line)
  except ValueError as error:
    raise ValueError(f"{place}: {error}: expected a JSON object") from None
  if not isinstance(record, dict):
    raise ValueError(f"{place}: {record!r:.60}: expected a JSON object")
  kind = "label" if "response" in record else "pair"
  fields = {}
  for name, cls in _KINDS[kind].items():
    if not isinstance(record.get(name), cls):
      what = "true or false" if cls is bool else "text"
      raise ValueError(
        f"{place}: {name}={record.get(name)!r:.60}: expected {what}; a line has"
        f" {' and '.join(_KINDS[kind])}"
      )
    fields[name] = record[name]
  return Pair(**fields) if kind == "pair" else Label(**fields)


def write(path: str | os.PathLike[str], found: Sequence[Preference]) -> None:
  """Writes what `read` reads."""
  path = pathlib.Path(path)
  partial = path.with_name(f"{path.name}.partial")
  with partial.open("w", encoding="utf-8") as file:
    for preference in found:
      record = dataclasses.asdict(preference)
      file.write(json.dumps(record, ensure_ascii=False) + "\n")
  os.replace(partial, path)


def split(
  found: Sequence[Preference], share: float
) -> tuple[list[Preference], list[Preference]]:
  """Divides by a hash of the prompt, so that no prompt is on both sides.

  Args:
    found: preferences.
    share: of the prompts to be held out.

  Returns:
    (to train on, held out).
  """
  parts: tuple[list[Preference], list[Preference]] = ([], [])
  for preference in found:
    digest = hashlib.sha256(preference.prompt.encode()).digest()
    parts[int.from_bytes(digest[:4], "big") < share * 2**32].append(preference)
  return parts


def judged(response: str, part: Part) -> str:
  """The part of a response that is judged.

  >>> judged("<think>2+2</think> <answer>4</answer>", "summary")
  '4'
  >>> judged("It is 4.", "summary")
  'It is 4.'
  """
  if part == "whole":
    return response
  text = response.rpartition(_END_OF_THOUGHT)[2].strip()
  begin, end = _ANSWER
  if text.startswith(begin) and text.endswith(end):
    text = text[len(begin) : -len(end)].strip()
  return text
