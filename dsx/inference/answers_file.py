"""A file of answers, one JSON object a line, that is whole or not there.

Lines are written to a file beside it as they come, and that one takes the name
at the end. What a run had finished when it was cut off stays under the other
name.
"""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from absl import logging

_PARTIAL = ".partial"


def check(path: str | os.PathLike[str]) -> pathlib.Path:
  """Refuses a file that could not be written; creates nothing.

  Returns:
    Its path, absolute.

  Raises:
    ValueError: its folder does not exist or cannot be written to, or it is
      there and no file.
  """
  # A link stays one; what it leads to is replaced.
  file = pathlib.Path(os.path.realpath(pathlib.Path(path).expanduser()))
  if not file.parent.is_dir():
    raise ValueError(
      f"--output={path}: {str(file.parent)!r} is no folder; expected an "
      "existing one, make it first"
    )
  if file.exists() and not file.is_file():
    what = "a folder" if file.is_dir() else "no regular file"
    raise ValueError(
      f"--output={path}: this is {what}; expected the name of a file"
    )
  if not os.access(file.parent, os.W_OK | os.X_OK):
    raise ValueError(
      f"--output={path}: {str(file.parent)!r} cannot be written to; give "
      "another folder"
    )
  return file


class Writer:
  """Writes the file; a context manager.

  On an error inside the context the file keeps what it had before, and its
  name with `.partial` at the end has the lines so far, if there are any.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens the file beside it.

    Raises:
      ValueError: see `check`.
      OSError: the file cannot be made.
    """
    self._file = check(path)
    self.partial = self._file.with_name(self._file.name + _PARTIAL)
    self._lines = 0
    self._failed = False
    self._out = self.partial.open("w", encoding="utf-8", newline="\n")

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, error, *unused) -> None:
    try:
      with self._out:
        self._out.flush()
        os.fsync(self._out.fileno())
    except OSError as failure:
      # What is left of a line that the disk refused before is no news.
      if not self._failed:
        raise self._explained(failure) from failure
    if error is None:
      os.replace(self.partial, self._file)
    elif self._lines:
      logging.info("%s has the answers so far: %d", self.partial, self._lines)
    else:
      self.partial.unlink()

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends a line.

    Args:
      record: of what JSON can hold; numbers that are not finite become null.

    Raises:
      ValueError: the disk is full, or fails.
    """
    line = json.dumps(_finite(record), ensure_ascii=False) + "\n"
    try:
      self._out.write(line)
      self._out.flush()
    except OSError as error:
      self._failed = True
      raise self._explained(error) from error
    self._lines += 1

  def _explained(self, error: OSError) -> ValueError:
    return ValueError(
      f"{self.partial}: {error.strerror or error} after {self._lines} "
      "answer(s); make room, or give another --output"
    )


def _finite(value: Any) -> Any:
  """`value` with null for numbers that JSON has no words for."""
  if isinstance(value, float):
    return value if abs(value) < float("inf") else None
  if isinstance(value, Mapping):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  return value
