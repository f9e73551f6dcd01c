"""The folder of a run: whether it can be used, and what describes it.

run.json       what the run is; another run is refused
config.gin     every value in use
versions.json  libraries, commit and command line
checkpoints/   see `checkpoint.py`
metrics.jsonl  see `metrics.py`
summary.json   how the run ended
"""

import dataclasses
import json
import os
import pathlib
import shutil

import jax

from dsx import cost
from dsx.training import pretraining

IDENTITY = "run.json"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"


class WorkdirError(ValueError):
  """A folder that this run cannot use; the message says why."""


def difference(old, new, name: str = ""):
  """The first (name, old, new) in which two JSON values differ, or None.

  >>> difference({"a": {"b": 1}}, {"a": {"b": 2}})
  ('a.b', 1, 2)
  """
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted(old.keys() | new.keys()):
      inner = f"{name}.{key}" if name else key
      found = difference(old.get(key), new.get(key), inner)
      if found:
        return found
    return None
  return None if old == new else (name, old, new)


def claim(
  path: str | os.PathLike[str], run: pretraining.Pretraining
) -> pathlib.Path:
  """Makes the folder of a run, or finds that it holds this very run.

  Args:
    path: the folder.
    run: what is to be trained.

  Returns:
    The path.

  Raises:
    WorkdirError: it cannot be written, has no room for one checkpoint, or
      holds checkpoints of another run.
  """
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".probe-{os.getpid()}"
    probe.write_text("")
    probe.unlink()
  except OSError as error:
    raise WorkdirError(
      f"workdir {path} cannot be written: {error.strerror}; give another "
      "--workdir"
    ) from error
  _check_identity(path, run)
  if jax.process_index() == 0:
    _check_room(path, run)
    describe(path, **{IDENTITY: json.dumps(run.identity(), indent=1)})
  return path


def _check_identity(path: pathlib.Path, run: pretraining.Pretraining) -> None:
  saved = path / IDENTITY
  checkpoints = path / CHECKPOINTS
  if not saved.exists() or not checkpoints.is_dir():
    return
  # What a run left that never saved is nothing to lose.
  if not any(checkpoints.iterdir()):
    return
  try:
    old = json.loads(saved.read_text())
  except ValueError as error:
    raise WorkdirError(
      f"{saved} is damaged: {error}; restore it, or give another --workdir"
    ) from error
  found = difference(old, run.identity())
  if found:
    name, before, now = found
    raise WorkdirError(
      f"workdir {path} holds a run with {name}={before!r}, this one has "
      f"{now!r}: give another --workdir, or the old value to resume"
    )


def _check_room(path: pathlib.Path, run: pretraining.Pretraining) -> None:
  parameters = cost.parameters(run.config) + cost.mtp_parameters(run.config)
  moment = 2 if run.optimizer.moment_dtype == "bfloat16" else 4
  average = 0 if run.ema_decay is None else 4
  needed = parameters * (4 + 2 * moment + average)
  free = shutil.disk_usage(path).free
  if free < needed:
    raise WorkdirError(
      f"workdir {path} has {free / 2**20:,.1f} MiB free, and one checkpoint "
      f"takes about {needed / 2**20:,.1f} MiB: make room, or give another "
      "--workdir"
    )


def vocabulary(path: pathlib.Path, name: str) -> str:
  """What `data.vocab.load` takes, given the name in the run's identity.

  A workdir may bring its tokenizer along; its name is then relative to the
  workdir, which can be moved.
  """
  own = path / name
  return str(own) if name != "byte" and own.exists() else name


def with_vocabulary(
  run: pretraining.Pretraining, path: pathlib.Path
) -> pretraining.Pretraining:
  """The run with its data's vocabulary found; see `vocabulary`."""
  name = vocabulary(path, run.data.vocabulary)
  data = dataclasses.replace(run.data, vocabulary=name)
  return dataclasses.replace(run, data=data)


def describe(path: pathlib.Path, **files: str) -> None:
  """Writes texts that describe the run, by file name (process 0 alone).

  A kill, or another process that reads, finds the old text or the new one.
  """
  if jax.process_index() == 0:
    for name, text in files.items():
      partial = path / f"{name}.partial"
      partial.write_text(text)
      os.replace(partial, path / name)
