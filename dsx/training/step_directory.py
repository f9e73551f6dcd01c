"""The directory of a run's checkpoints: one folder a step, and what to remove.

A step is complete from the moment its manifest lies in its folder. Everything
else that looks like a step is what a killed or failed save has left.
"""

from collections.abc import Iterator
import os
import pathlib
import re
import shutil

from absl import logging

from dsx.training import manifest as manifest_lib

# 300, complete or not, and 300.orbax-checkpoint-tmp, which becomes it.
_NAME = re.compile(r"(\d+)(\.orbax-checkpoint-tmp.*)?")


class StepDirectory:
  """Steps in a directory, which need not exist yet."""

  def __init__(self, root: str | os.PathLike[str]):
    """Names the directory; nothing is read or written."""
    self.root = pathlib.Path(root).expanduser().absolute()

  def path(self, step: int) -> pathlib.Path:
    """Where a step is or would be."""
    return self.root / str(step)

  def share(self, step: int, process: int) -> pathlib.Path:
    """Where a process leaves its part of a manifest for process 0."""
    return self.root / f"{step}.share{process}.json"

  def complete(self) -> list[int]:
    """Lists steps that have a manifest, oldest first; nothing is verified."""
    return sorted(
      step
      for path, step, suffix in self._entries()
      if not suffix and os.path.lexists(path / manifest_lib.NAME)
    )

  def present(self) -> list[int]:
    """Lists the folders named as steps, with or without a manifest."""
    return sorted(step for _, step, suffix in self._entries() if not suffix)

  def remove(self, step: int) -> None:
    """Removes a step, its manifest first: half a step must not count."""
    (self.path(step) / manifest_lib.NAME).unlink(missing_ok=True)
    _remove_tree(self.path(step))

  def remove_unfinished(self, only: int | None = None) -> None:
    """Removes what unfinished saves have left, of all steps or of one.

    Of all it is news; of one step the caller says what became of it.
    """
    complete = self.complete()
    for path, step, suffix in self._entries():
      if only in (None, step) and (suffix or step not in complete):
        if only is None:
          logging.warning("Removing %s: its save did not finish", path)
        _remove_tree(path)

  def set_aside(self, step: int) -> None:
    """Renames a damaged step: its name is free, and a person can look."""
    if not self.path(step).exists():
      return
    kept = self.path(step).with_name(f"{step}.damaged")
    while kept.exists():
      kept = kept.with_name(f"{kept.name}+")
    self.path(step).rename(kept)
    logging.warning("Kept damaged step %d as %s", step, kept)

  def _entries(self) -> Iterator[tuple[pathlib.Path, int, str]]:
    """Yields (path, step, suffix) of folders named as steps, in any state."""
    if not self.root.is_dir():
      return
    for path in sorted(self.root.iterdir()):
      match = _NAME.fullmatch(path.name)
      # Not 007, which would be a second name of step 7.
      if match and path.is_dir() and str(int(match[1])) == match[1]:
        yield path, int(match[1]), match[2] or ""


def _remove_tree(path: pathlib.Path) -> None:
  """Removes a folder; that it stays is no reason to stop a run."""
  try:
    if path.is_symlink():
      path.unlink()
    else:
      shutil.rmtree(path)
  except OSError as error:
    logging.warning("Cannot remove %s: %s", path, error)
