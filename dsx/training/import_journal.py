"""How far a checkpoint that is made piece by piece has come.

One JSON line a group of parts, written when the parts are on the disk. What
comes after the last whole line is done again.
"""

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
  """A file of lines that is only ever appended to."""

  def __init__(self, path: pathlib.Path, identity: Any):
    """Reads what there is.

    Args:
      path: the file.
      identity: JSON that says what is made from what.

    Raises:
      ValueError: if the file is of something else.
    """
    self._path = path
    self._done: dict[str, Done] = {}
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if not lines:
      path.write_bytes(b"")
      self._append({"identity": identity})
      return
    found = json.loads(lines[0])["identity"]
    if found != json.loads(json.dumps(identity)):
      raise ValueError(
        f"{path.parent}: holds the beginning of another conversion, of "
        f"{found.get('source')!r} with dtype {found.get('dtype')!r}, or its "
        "files have changed since: give another target, or remove this folder"
      )
    for line in lines[1:]:
      fields = json.loads(line)
      self._done[fields["array"]] = Done(fields["parts"], fields["checksum"])
    # A line that was cut off must not run into the next.
    path.write_bytes(b"".join(line + b"\n" for line in lines))

  def done(self, array: str) -> Done:
    """What is on the disk of an array."""
    return self._done.get(array, Done(0, 0))

  def write(self, array: str, done: Done) -> None:
    """Notes that more of an array is on the disk."""
    self._done[array] = done
    self._append({"array": array, **done._asdict()})

  def _append(self, fields: dict) -> None:
    with self._path.open("ab") as file:
      file.write(json.dumps(fields).encode() + b"\n")
      file.flush()
      os.fsync(file.fileno())
