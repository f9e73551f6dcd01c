"""How far a checkpoint that is made piece by piece has come.

One JSON line a group of parts, written when the parts are on the disk. What
comes after the last whole line is done again.
"""

import fcntl
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple


class Done(NamedTuple):
  """What is on the disk of one array.

  Attributes:
    parts: how many of its parts, in order.
    checksum: of these, see `checksum.of_pieces`.
  """

  parts: int
  checksum: int


class Journal:
  """A file of lines that is only ever appended to, by one process."""

  def __init__(self, path: pathlib.Path, identity: Any):
    """Reads what there is.

    Args:
      path: the file.
      identity: JSON that says what is made from what.

    Raises:
      ValueError: if the file is of something else, damaged, or in use.
    """
    self._file = path.open("a+b")
    self._done: dict[str, Done] = {}
    try:
      self._open(path, identity)
    except BaseException:
      self._file.close()
      raise

  def _open(self, path: pathlib.Path, identity) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f"{path.parent}: another process writes into it; wait for it to end"
      ) from error
    self._file.seek(0)
    whole, _, _ = self._file.read().rpartition(b"\n")
    if not whole:
      self._file.truncate(0)
      self._append({"identity": identity})
      return
    # A line that was cut off must not run into the next.
    self._file.truncate(len(whole) + 1)
    try:
      self._read(path, whole.split(b"\n"), identity)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
      raise ValueError(
        f"{path} is damaged ({error}): remove {path.parent}, and begin anew"
      ) from error

  def _read(self, path: pathlib.Path, lines: list[bytes], identity) -> None:
    first, *rest = map(json.loads, lines)
    found, expected = first["identity"], json.loads(json.dumps(identity))
    if found != expected:
      name = next(k for k in expected if found.get(k) != expected[k])
      raise ValueError(
        f"{path.parent}: holds the beginning of another conversion, with "
        f"another {name}{_shown(found.get(name))}: give another target, or "
        "remove this folder to begin anew"
      )
    for fields in rest:
      self._done[fields["array"]] = Done(fields["parts"], fields["checksum"])

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._file.close()

  def done(self, array: str) -> Done:
    """What is on the disk of an array."""
    return self._done.get(array, Done(0, 0))

  def write(self, array: str, done: Done) -> None:
    """Notes that more of an array is on the disk."""
    self._done[array] = done
    self._append({"array": array, **done._asdict()})

  def _append(self, fields: dict) -> None:
    self._file.write(json.dumps(fields).encode() + b"\n")
    self._file.flush()
    os.fsync(self._file.fileno())


def _shown(value) -> str:
  return "" if isinstance(value, list) else f" ({value!r})"
