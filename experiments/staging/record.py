"""What a command of a road has left: whether it is done, and how it went."""

from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import json
import os
import pathlib
from typing import Any

from experiments.staging import plan

_DONE = "done.json"
_LOCK = "lock"
LOG = "log.txt"
SUMMARY = "summary.json"


class Record:
  """The folder of a command."""

  def __init__(self, command: plan.Command):
    """Reads nothing yet.

    Args:
      command: whose.
    """
    self._command = command
    self.folder = command.folder

  @property
  def log(self) -> pathlib.Path:
    """What its processes have printed."""
    return self.folder / LOG

  @property
  def done(self) -> bool:
    """Whether it has come to its end, under the same settings."""
    return self.outcome().get("digest") == self._command.digest

  def outcome(self) -> dict[str, Any]:
    """`seconds` it took and `ended`; empty if it is not done."""
    return _json(self.folder / _DONE)

  def summary(self) -> dict[str, Any]:
    """What the binary wrote of its run; empty before its end."""
    return _json(self.folder / SUMMARY)

  def finish(self, seconds: float, arguments: list[str]) -> None:
    """Writes down that it is done.

    Args:
      seconds: of the last attempt.
      arguments: the command as it was run.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    outcome = {
      "digest": self._command.digest,
      "seconds": round(seconds, 1),
      "ended": now,
      "command": arguments,
      "needs": [folder.name for folder in self._command.needs],
    }
    partial = self.folder / f"{_DONE}.partial"
    partial.write_text(json.dumps(outcome, indent=1) + "\n")
    os.replace(partial, self.folder / _DONE)

  @contextlib.contextmanager
  def lock(self) -> Iterator[int | None]:
    """Gives a descriptor that holds the folder, or None if it is held.

    The command's process inherits it, so that one that outlives its road keeps
    the folder until it ends.
    """
    self.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        yield None
        return
      except OSError:
        pass  # a file system without locks
      yield descriptor
    finally:
      os.close(descriptor)


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
