"""What an interrupted conversion needs to go on: conversion.json.

It lies in the target from before the first shard to the end, and says what is
converted, how, and which shards are finished. It is replaced, never changed,
so that whenever the process dies one of two consistent versions is there.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import pathlib
from typing import Any

from absl import logging

from dsx.convert import folder as folder_lib
from dsx.convert import safetensors

FILE = "conversion.json"
_VERSION = 1
_READ_AT_ONCE = 1 << 22


@dataclasses.dataclass
class Journal:
  """The state of one conversion.

  Attributes:
    folder: the target.
    task: what is converted and how; JSON.
    shards: of finished shards, name to size and sha256.
    complete: whether everything is written.
  """

  folder: pathlib.Path
  task: dict[str, Any]
  shards: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  complete: bool = False

  def save(self) -> None:
    """Replaces the file."""
    folder_lib.write_json(
      self.folder / FILE,
      {
        "version": _VERSION,
        "complete": self.complete,
        "task": self.task,
        "shards": self.shards,
      },
    )

  def finish_shard(self, name: str, sha256: str) -> None:
    """Writes down that a shard is finished."""
    size = (self.folder / name).stat().st_size
    self.shards[name] = {"size": size, "sha256": sha256}
    self.save()

  def verify(self, progress: Callable[[int, int, str], None] | None) -> None:
    """Forgets finished shards that are not what they were."""
    total = sum(entry["size"] for entry in self.shards.values())
    done = 0
    for name, entry in list(self.shards.items()):
      if not _is_intact(self.folder / name, entry):
        logging.warning(
          "%s: not as it was finished; written again", self.folder / name
        )
        del self.shards[name]
      done += entry["size"]
      if progress is not None:
        progress(done, total, f"verifying {name}")


def _is_intact(path: pathlib.Path, entry: dict[str, Any]) -> bool:
  if not path.is_file() or path.stat().st_size != entry["size"]:
    return False
  digest = hashlib.sha256()
  with path.open("rb") as file:
    while data := file.read(_READ_AT_ONCE):
      digest.update(data)
  return digest.hexdigest() == entry["sha256"]


def open_or_new(folder: pathlib.Path, task: dict[str, Any]) -> Journal:
  """The journal in a target, or a new one if nothing is there.

  Args:
    folder: the target; it may not exist.
    task: what is to be converted and how: JSON, `options` among it.

  Raises:
    ValueError: if something else is there.
  """
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: a file: expected a new or an empty folder")
  path = folder / FILE
  if not path.exists():
    present = (
      sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    )
    left = [n for n in present if n != FILE + safetensors.UNFINISHED]
    if left:
      raise ValueError(
        f"{folder}: holds {left[0]} already; give an empty folder"
      )
    return Journal(folder, task)
  found = folder_lib.read_json(folder, FILE)
  if not _is_journal(found):
    raise ValueError(
      f"{path}: not the journal of a conversion by this version; give an empty "
      "folder"
    )
  for part, value in task.items():
    if found["task"].get(part) != value:
      raise ValueError(
        f"{folder}: holds a conversion with different {part}"
        f"{_shown(part, found['task'].get(part), value)}; give an empty "
        "folder, or resume with what it was begun with"
      )
  return Journal(folder, task, found["shards"], found["complete"])


def _shown(part: str, found, value) -> str:
  """What differs, if it is short enough to be said."""
  if part != "options" or not isinstance(found, dict):
    return ""
  differs = [key for key in value if found.get(key) != value[key]]
  return "".join(
    f": {key}={found.get(key)!r}, now {value[key]!r}" for key in differs[:1]
  )


def _is_journal(found: dict) -> bool:
  shards = found.get("shards")
  return (
    found.get("version") == _VERSION
    and isinstance(found.get("complete"), bool)
    and isinstance(found.get("task"), dict)
    and isinstance(shards, dict)
    and all(
      pathlib.PurePath(name).name == name
      and isinstance(entry, dict)
      and isinstance(entry.get("size"), int)
      and isinstance(entry.get("sha256"), str)
      for name, entry in shards.items()
    )
  )
