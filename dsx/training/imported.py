"""A folder in Hugging Face's layout made the workdir of a run.

What comes out is read like any run's: `restore.load`, `pretrained.find`,
generation, evaluation and conversion back. It holds one checkpoint, step 0, of
parameters and router biases without optimizer state; the tokenizer and the
other files that came with the weights lie beside it.

Neither the model nor one of its arrays is ever whole in memory. The arrays are
written part by part into `checkpoints/importing`, with a journal; an import
that was interrupted goes on there when it is called again. Last comes what
Orbax says of arrays, and the manifest that makes the checkpoint count.
"""

from collections.abc import Callable
import contextlib
import itertools
import json
import os
import pathlib
import shutil

import numpy as np

from dsx.convert import byte_progress
from dsx.convert import conversion
from dsx.convert import data_check
from dsx.convert import encoding as encoding_lib
from dsx.convert import huggingface_source
from dsx.convert import inventory
from dsx.training import array_database
from dsx.training import checksum
from dsx.training import commit
from dsx.training import import_description
from dsx.training import import_journal
from dsx.training import import_plan
from dsx.training import manifest as manifest_lib
from dsx.training import orbax_store
from dsx.training import step_directory
from dsx.training import verified_read
from dsx.training import workdir as workdir_lib

Progress = Callable[[int, int, str], None]
FP8 = "fp8"
DTYPES = ("float32", "bfloat16", "float16", FP8)

_STEP = import_description.STEP
_STAGING, _DATABASE, _JOURNAL = "importing", "database", "journal.jsonl"
# Parts that are on their way to the disk at once.
_GROUP = 2
_TIMEOUT_SECONDS = 1200


def plan(source: str | os.PathLike[str], *, dtype: str | None = None) -> str:
  """Says in one line what `write` would write; reads no tensor.

  Raises:
    ValueError: in one line, what is wrong with the source.
  """
  encoding = _encoding(huggingface_source.find(source), dtype)
  arrays = import_plan.arrays(encoding)
  sizes: dict[str, int] = {}
  for array in arrays:
    sizes[array.dtype.name] = sizes.get(array.dtype.name, 0) + array.n_bytes
  shown = ", ".join(
    f"{name} {byte_progress.size(size)}" for name, size in sorted(sizes.items())
  )
  return (
    f"{encoding.source.place}: {len(encoding.source.entries)} tensors make "
    f"{len(arrays)} arrays, {byte_progress.size(sum(sizes.values()))} ({shown})"
  )


def write(
  source: str | os.PathLike[str],
  target: str | os.PathLike[str],
  *,
  dtype: str | None = None,
  progress: Progress | None = None,
) -> str:
  """Makes a workdir of a Hugging Face folder, or goes on with it.

  Args:
    source: folder with config.json and *.safetensors, bfloat16 or FP8.
    target: a new or empty folder, or one that an import of the same source
      into it was interrupted in.
    dtype: of the arrays; by default what the files have, and nothing is lost.
      `fp8` quantises matrices that are not FP8, other dtypes dequantise those
      that are.
    progress: called with bytes done, bytes in all and what is being done:
      the files are read once to be checked and once to be written.

  Returns:
    What was done, in one line.

  Raises:
    ValueError: in one line, what is wrong with the source or the target.
  """
  encoding = _encoding(huggingface_source.find(source), dtype)
  arrays = import_plan.arrays(encoding)
  target = pathlib.Path(target).expanduser()
  identity = {
    "source": str(encoding.source.folder.resolve()),
    "files": encoding.source.identity,
    "dtype": dtype,
  }
  if _is_complete(target, identity):
    return f"{target}: complete already; nothing was done"
  resumed = _claim(target)
  conversion.check_apart(source, target)
  size = sum(array.n_bytes for array in arrays)
  try:
    if not resumed:
      _check_room(target, size)
      encoding.source.check_copies()
      data_check.check(encoding, progress)
    _write(encoding, arrays, target, identity, _Written(size, progress))
  except OSError as error:
    raise _interrupted(target, error) from error
  went_on = "; part of it was there already" if resumed else ""
  return f"{target}: {byte_progress.size(size)} written as step 0{went_on}"


def _encoding(source, dtype: str | None) -> encoding_lib.Encoding:
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(f"dtype={dtype!r}: expected {', '.join(DTYPES)}")
  if dtype is None or (dtype == FP8 and inventory.has_fp8(source.entries)):
    fp8 = inventory.has_fp8(source.entries)
    return encoding_lib.Encoding(
      source, fp8=fp8, dtype=None, scale_format=None, keeps_fp8=True
    )
  fp8 = dtype == FP8
  return encoding_lib.choose(source, fp8=fp8, dtype=None if fp8 else dtype)


def _is_complete(target: pathlib.Path, identity: dict) -> bool:
  """Whether this very import was done before."""
  step = target / workdir_lib.CHECKPOINTS / str(_STEP)
  if not (step / manifest_lib.NAME).exists():
    return False
  try:
    found = verified_read.metadata(step, verified_read.manifest(step))
  except manifest_lib.ManifestError:
    return False
  expected = json.loads(json.dumps(identity))
  return found.get("imported", {}).get("identity") == expected


def _claim(target: pathlib.Path) -> bool:
  """Whether an import was interrupted in the folder, which else is new.

  Raises:
    ValueError: if it holds anything else.
  """
  checkpoints = target / workdir_lib.CHECKPOINTS
  manifest = checkpoints / str(_STEP) / manifest_lib.NAME
  if (checkpoints / _STAGING / _JOURNAL).is_file() and not manifest.exists():
    return True
  if target.exists() and not target.is_dir():
    raise workdir_lib.WorkdirError(
      f"{target}: a file: expected a new or an empty folder"
    )
  present = sorted(p.name for p in target.iterdir()) if target.exists() else ()
  if present:
    raise workdir_lib.WorkdirError(
      f"{target}: holds {present[0]} already; give a new or an empty folder"
    )
  return False


def _check_room(target: pathlib.Path, size: int) -> None:
  """Refuses a disk that cannot be written, or lacks room for the arrays."""
  places = (target.absolute(), *target.absolute().parents)
  disk = next(place for place in places if place.exists())
  if not disk.is_dir() or not os.access(disk, os.W_OK | os.X_OK):
    raise workdir_lib.WorkdirError(
      f"{target}: {disk} cannot be written; give another target"
    )
  free = shutil.disk_usage(disk).free
  if free < size:
    raise workdir_lib.WorkdirError(
      f"{target} has {free / 2**20:,.1f} MiB free, and the checkpoint takes "
      f"{size / 2**20:,.1f} MiB: make room, or give another target"
    )


def _interrupted(target: pathlib.Path, error: Exception) -> ValueError:
  return verified_read.CheckpointError(
    f"{target}: the import was interrupted: {verified_read.one_line(error)}; "
    "mend that and do the same again, it goes on where it stopped"
  )


class _Written:
  """Counts the bytes of arrays that are written."""

  def __init__(self, size: int, progress: Progress | None):
    self._size, self._done = size, 0
    self._report = progress

  def add(self, size: int, name: str) -> None:
    """More of an array."""
    self._done += size
    if self._report is not None:
      self._report(self._done, self._size, f"writing {name}")


def _write(encoding, arrays, target, identity, written: _Written) -> None:
  """Writes the arrays that are not there, and all that goes with them."""
  directory = step_directory.StepDirectory(target / workdir_lib.CHECKPOINTS)
  staging = directory.root / _STAGING
  staging.mkdir(parents=True, exist_ok=True)
  with import_journal.Journal(staging / _JOURNAL, identity) as journal:
    _bring_back(directory, staging / _DATABASE)
    database = array_database.ArrayDatabase(staging / _DATABASE)
    assembler = import_plan.Assembler(encoding.source)
    for array in arrays:
      _write_array(database, journal, assembler, array, written)
    run = import_description.run(encoding, arrays)
    import_description.write(encoding, run, target)
    metadata = import_description.metadata(encoding, arrays, run, identity)
    _complete(arrays, metadata, directory, journal)
  shutil.rmtree(staging)


def _complete(arrays, metadata: dict, directory, journal) -> None:
  """Makes arrays that are on the disk a checkpoint that counts."""
  with _disk_errors():
    orbax_store.OrbaxStore(_TIMEOUT_SECONDS).adopt(
      directory.path(_STEP),
      [array.name for array in arrays],
      directory.root / _STAGING / _DATABASE,
      metadata,
    )
  pending = commit.Pending(
    step=_STEP,
    serial=0,
    leaves={array.name: (array.shape, array.dtype.name) for array in arrays},
    sums={array.name: journal.done(array.name).checksum for array in arrays},
  )
  commit.commit(directory, pending, timeout_seconds=_TIMEOUT_SECONDS)


def _bring_back(directory, database: pathlib.Path) -> None:
  """Undoes an end that was interrupted between Orbax and the manifest."""
  for place in directory.root.glob(f"{_STEP}*/arrays*/{orbax_store.OWN_PART}"):
    place.rename(database)
  directory.remove_unfinished(only=_STEP)


def _write_array(database, journal, assembler, array, written) -> None:
  """Writes the parts of an array that are not on the disk."""
  parts, total = journal.done(array.name)
  boxes = array.boxes()
  for box in itertools.islice(boxes, parts):
    written.add(_size(box) * array.dtype.itemsize, array.name)
  with _disk_errors():
    store = database.create(array.name, array.shape, array.dtype, array.chunk)
  while group := list(itertools.islice(boxes, _GROUP)):
    writes = []
    for box in group:
      data = assembler.make(array, box)
      total += checksum.of_pieces([(tuple(s.start for s in box), data)])
      writes.append(
        store[box].write(data, can_reference_source_data_indefinitely=True)
      )
      written.add(data.nbytes, array.name)
    with _disk_errors():
      for pending in writes:
        pending.result()
    parts += len(group)
    journal.write(array.name, import_journal.Done(parts, total % 2**64))


@contextlib.contextmanager
def _disk_errors():
  """Makes OSErrors of what TensorStore and Orbax raise of a failing disk."""
  try:
    yield
  except Exception as error:
    raise OSError(verified_read.one_line(error)) from error


def _size(box: tuple[slice, ...]) -> int:
  return int(np.prod([part.stop - part.start for part in box], dtype=np.int64))
