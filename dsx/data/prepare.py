"""Preparing a data set once, so that training reads it without TensorFlow.

`ensure` is for programs that must stay free of TensorFlow: it runs
`python -m experiments.prepare_data` as a process of its own. `prepare` does the
work, in this process.

A data set is written to a hidden folder, read back and compared, and renamed to
its place as the last act: what bears the name is whole. Two processes that want
the same data set at once take turns by a lock file, and the second finds it
done; where the file system has no locks both work, and the first to rename
wins.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

from dsx.data import corpus
from dsx.data import export
from dsx.data import pipeline
from dsx.data import store


def ensure(
  data: pipeline.Data, report: Callable[[str], None] = print
) -> pathlib.Path:
  """Prepares `data` in another process, unless that is done already.

  Args:
    data: what to prepare.
    report: is given each line of progress.

  Returns:
    The directory.

  Raises:
    ValueError: sources or vocabulary cannot be read.
    export.PreparationError: the process failed.
  """
  directory = pipeline.prepared_directory(data)
  if pipeline.is_prepared(data):
    return directory
  if data.prepared:
    raise export.PreparationError(
      f"Data.prepared: there is no data set in {data.prepared!r}; expected the "
      "directory of a prepared one, or '' to prepare it from its sources"
    )
  command = [sys.executable, "-m", "experiments.prepare_data"]
  for field in dataclasses.fields(data):
    value = getattr(data, field.name)
    command.append(f"--gin_bindings=Data.{field.name} = {value!r}")
  with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
    with subprocess.Popen(
      command,
      env=_environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
      errors="replace",
    ) as process:
      for line in process.stdout or ():
        report(line.rstrip("\n"))
    errors.seek(0)
    log = errors.read()
  if process.returncode or not pipeline.is_prepared(data):
    raise export.PreparationError(_explained(process.returncode, log))
  return directory


def prepare(
  data: pipeline.Data, report: Callable[[str], None] = print
) -> pathlib.Path:
  """Prepares `data` here, importing TensorFlow, unless it is done already.

  Args:
    data: what to prepare.
    report: is given each line of progress.

  Returns:
    The directory.

  Raises:
    ValueError: sources or vocabulary cannot be read, or are too short.
  """
  directory = pipeline.prepared_directory(data)
  if pipeline.is_prepared(data):
    report(f"{data.task} is prepared in {directory}")
    return directory
  if data.task == "mixture":
    _prepare_mixture(directory, pipeline.components(data), report)
  elif data.task in pipeline.SOURCES:
    # Reading it all before TensorFlow is imported finds mistakes at once.
    source = pipeline.corpus_of(data)
    survey = source.survey()
    report(
      f"preparing {data.task}: {len(source.files)} files, "
      f"{survey.documents} documents, {survey.bytes / 1e6:.2f} MB"
      + (f", {survey.skipped} files not UTF-8" if survey.skipped else "")
    )
    with _new_directory(directory) as place:
      if place is not None:
        _prepare_source(data, survey, place, report)
        if pipeline.prepared_directory(data) != directory:
          raise export.PreparationError(
            f"Data.task: the files of {data.task!r} changed while they were "
            "read; try again when nothing writes them"
          )
  else:
    _prepare_registered(data, directory, report)
  report(f"prepared in {directory}")
  return directory


def _prepare_source(
  data: pipeline.Data,
  survey: corpus.Survey,
  place: pathlib.Path,
  report: Callable[[str], None],
) -> None:
  with _without_native_chatter():
    from dsx.data import tasks

  export.write_task(data, tasks.build(data, survey), place, report, survey)


def _prepare_registered(
  data: pipeline.Data,
  directory: pathlib.Path,
  report: Callable[[str], None],
) -> None:
  with _without_native_chatter():
    import seqio

    from dsx.data import tasks

  found = tasks.registered(data.task)
  if isinstance(found, seqio.Mixture):
    parts = [
      (dataclasses.replace(data, task=task.name), found.get_rate(task))
      for task in found.tasks
    ]
    _prepare_mixture(directory, parts, report)
    return
  report(f"preparing {data.task}")
  with _new_directory(directory) as place:
    if place is not None:
      export.write_task(data, tasks.from_registered(data, found), place, report)


def _prepare_mixture(
  directory: pathlib.Path,
  parts: list[tuple[pipeline.Data, float]],
  report: Callable[[str], None],
) -> None:
  """Prepares the components and describes the mixture."""
  components = [(prepare(part, report), weight) for part, weight in parts]
  with _new_directory(directory) as place:
    if place is not None:
      export.write_mixture(components, place)


@contextlib.contextmanager
def _new_directory(
  directory: pathlib.Path,
) -> Iterator[pathlib.Path | None]:
  """Gives a folder to fill that becomes `directory` if all goes well.

  Yields:
    The folder; or None if another process made `directory` in the meantime.
  """
  parent = directory.parent
  parent.mkdir(parents=True, exist_ok=True)
  with (parent / f".{directory.name}.lock").open("w") as lock:
    with contextlib.suppress(OSError):  # a file system without locks
      fcntl.flock(lock, fcntl.LOCK_EX)
      # Whoever holds the lock finds only what killed processes left behind.
      for left in parent.glob(f".{directory.name}.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    if (directory / store.METADATA).is_file():
      yield None
      return
    place = pathlib.Path(
      tempfile.mkdtemp(prefix=f".{directory.name}.tmp-", dir=parent)
    )
    try:
      yield place
      place.chmod(0o755)
      try:
        place.rename(directory)
      except OSError:
        # Without locks another process may have been first.
        if not (directory / store.METADATA).is_file():
          raise
    finally:
      shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _without_native_chatter() -> Iterator[None]:
  """Drops what TensorFlow's C++ prints when it is imported.

  It greets on the file descriptor, past Python's stderr and its own flags;
  exceptions pass through.
  """
  sys.stderr.flush()
  kept = os.dup(2)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    yield
  finally:
    sys.stderr.flush()
    os.dup2(kept, 2)
    os.close(nowhere)
    os.close(kept)


def _environment() -> dict[str, str]:
  """For the other process: quiet, off the accelerators, our code in reach."""
  root = str(pathlib.Path(__file__).resolve().parents[2])
  path = os.environ.get("PYTHONPATH")
  return {
    **os.environ,
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join([root, *([path] if path else [])]),
    "PYTHONUNBUFFERED": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }


def _explained(code: int, log: str) -> str:
  """One line about why the other process failed."""
  if code < 0:
    return (
      f"preparing the data was stopped by {signal.Signals(-code).name}; if "
      "nobody stopped it, the machine ran out of memory"
    )
  lines = [line for line in log.splitlines() if line.strip()]
  return lines[-1] if lines else f"preparing the data ended with code {code}"
