"""From one checkpoint folder to another, tensor by tensor.

    source = huggingface_source.find("DeepSeek-V3")
    conversion.write(source, "DeepSeek-V3-bf16", Conversion(target_format="hf"))

Nothing is written before everything is checked: names, shapes, dtypes, then
every number. Memory is bounded by the largest tensor. A target is written in
shards; when the process dies, the same call goes on after the last finished
one. A folder looks like a checkpoint only when it is one: config.json comes
last.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from typing import Literal

from dsx.convert import byte_progress
from dsx.convert import data_check
from dsx.convert import encoding as encoding_lib
from dsx.convert import folder as folder_lib
from dsx.convert import journal as journal_lib
from dsx.convert import quantization
from dsx.convert import safetensors
from dsx.convert import tensor_source

Progress = Callable[[int, int, str], None]
FORMATS = ("hf", "hf_fp8", "orbax")
_SLACK = 1 << 20  # bytes of a target beside its tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
  """What to make of a checkpoint.

  Attributes:
    target_format: `hf`, Hugging Face's layout in one dtype; `hf_fp8`, the same
      with linear layers in FP8; `orbax`, the workdir of a dsx run.
    dtype: of weights that are not FP8; by default bfloat16.
    scale_format: of FP8: `float32`; `ue8m0`, powers of two in float32 as V3.1
      has them; `e8m0`, powers of two in one byte. By default the source's, or
      float32.
    shard_bytes: bytes of tensors after which a new file is begun.
  """

  target_format: Literal["hf", "hf_fp8", "orbax"] = "hf"
  dtype: Literal["bfloat16", "float32", "float16"] | None = None
  scale_format: Literal["float32", "ue8m0", "e8m0"] | None = None
  shard_bytes: int = 5_000_000_000

  def __post_init__(self):
    if self.target_format not in FORMATS:
      raise ValueError(
        f"target_format={self.target_format!r}: expected {', '.join(FORMATS)}"
      )
    if self.dtype not in (None, *encoding_lib.DTYPES):
      raise ValueError(
        f"dtype={self.dtype!r}: expected {', '.join(encoding_lib.DTYPES)}"
      )
    if self.scale_format is not None:
      quantization.check_scale_format(self.scale_format)
    if self.shard_bytes < 1:
      raise ValueError(
        f"shard_bytes={self.shard_bytes}: expected a positive number of bytes"
      )


@dataclasses.dataclass(frozen=True)
class Plan:
  """What would be written.

  Attributes:
    encoding: the dtype of every tensor.
    shards: the files.
    options: what it was made with, as JSON.
  """

  encoding: encoding_lib.Encoding
  shards: tuple[folder_lib.Shard, ...]
  options: dict

  @property
  def n_bytes(self) -> int:
    """Bytes of all tensors."""
    return sum(shard.n_bytes for shard in self.shards)

  @property
  def description(self) -> str:
    """One line: how many tensors, bytes and shards, and which dtypes."""
    tensors = [t for shard in self.shards for t in shard.tensors]
    sizes: dict[str, int] = {}
    for tensor in tensors:
      name = safetensors.NAMES[tensor.dtype]
      sizes[name] = sizes.get(name, 0) + tensor.n_bytes
    shown = ", ".join(
      f"{name} {byte_progress.size(n)}" for name, n in sorted(sizes.items())
    )
    return (
      f"{self.encoding.source.place}: {len(tensors)} tensors, "
      f"{byte_progress.size(self.n_bytes)} ({shown}) in {len(self.shards)} "
      "shard(s)"
    )

  @property
  def digest(self) -> str:
    """sha256 of names, shapes, dtypes, shards and config.json."""
    layout = [
      [shard.name, [[t.name, t.shape, t.dtype.name] for t in shard.tensors]]
      for shard in self.shards
    ]
    text = json.dumps([layout, self.encoding.fields()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plan(source: tensor_source.TensorSource, options: Conversion) -> Plan:
  """Plans a conversion to Hugging Face's layout; reads no tensor.

  Raises:
    ValueError: if source and options do not go together.
  """
  encoding = encoding_lib.choose(
    source,
    fp8=options.target_format == "hf_fp8",
    dtype=options.dtype,
    scale_format=options.scale_format,
  )
  shards = folder_lib.shards(encoding.planned(), options.shard_bytes)
  return Plan(encoding, tuple(shards), dataclasses.asdict(options))


def write(
  source: tensor_source.TensorSource,
  target: str | os.PathLike[str],
  options: Conversion,
  *,
  progress: Progress | None = None,
) -> str:
  """Converts to Hugging Face's layout, or goes on with it.

  Args:
    source: what to convert.
    target: a new or empty folder, or one that this conversion was begun in.
    options: what to make of it.
    progress: called with bytes done, bytes in all and what is being done
      (`checking`, `verifying` or `writing`, and a name).

  Returns:
    What was done, in one line.

  Raises:
    ValueError: in one line, what is wrong; or that the disk is full. What is
      written by then stays, for the next attempt.
  """
  target = pathlib.Path(target).expanduser()
  planned = plan(source, options)
  check_apart(source.place, target)
  task = {
    "source": json.loads(json.dumps(source.identity)),
    "options": planned.options,
    "plan": planned.digest,
  }
  journal = journal_lib.open_or_new(target, task)
  if journal.complete:
    return f"{target}: complete already; nothing was done"
  companions = source.companions
  _check_room(target, planned, journal)
  is_new = not (target / journal_lib.FILE).exists()
  if is_new:
    data_check.check(planned.encoding, progress)
  with _explained(target), _alone(target):
    if is_new:
      journal.save()
    else:
      journal.verify(progress)
    resumed = len(journal.shards)
    _write_shards(planned, journal, progress)
    for name, content in companions.items():
      folder_lib.write_file(target / name, content)
    folder_lib.finish(target, planned.encoding.fields(), planned.shards)
    journal.complete = True
    journal.save()
  went_on = f"; {resumed} shard(s) were there already" if resumed else ""
  return f"{target}: {byte_progress.size(planned.n_bytes)} written{went_on}"


def check_apart(
  source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> None:
  """Refuses a target that is the source, or lies in it.

  Raises:
    ValueError: if it does.
  """
  home, goal = (
    pathlib.Path(place).expanduser().resolve() for place in (source, target)
  )
  if goal == home or home in goal.parents:
    raise ValueError(
      f"{target}: the source or a folder in it; give another target"
    )


def _nearest(target: pathlib.Path) -> pathlib.Path:
  """The folder itself, or the closest one above that exists."""
  return next(
    p for p in (target.absolute(), *target.absolute().parents) if p.exists()
  )


def _check_room(target: pathlib.Path, planned: Plan, journal) -> None:
  """Refuses a disk that cannot be written or lacks room for the shards."""
  disk = _nearest(target)
  if not disk.is_dir() or not os.access(disk, os.W_OK | os.X_OK):
    raise ValueError(f"{target}: {disk} cannot be written; give another target")
  left = [s for s in planned.shards if s.name not in journal.shards]
  needed = sum(shard.n_bytes for shard in left) + _SLACK
  free = shutil.disk_usage(disk).free
  if free < needed:
    raise ValueError(
      f"{target}: {byte_progress.size(free)} are free, and "
      f"{byte_progress.size(needed)} are to be written; make room, or give "
      "another target"
    )


@contextlib.contextmanager
def _explained(target: pathlib.Path):
  """Says of a failing disk that the conversion can go on afterwards."""
  try:
    yield
  except OSError as error:
    raise ValueError(
      f"{error.filename or target}: {error.strerror or error}; what is done "
      "stays: mend that, and run the same command again"
    ) from error


@contextlib.contextmanager
def _alone(target: pathlib.Path):
  """Creates the target and keeps other conversions out of it."""
  target.mkdir(parents=True, exist_ok=True)
  folder = os.open(target, os.O_RDONLY)
  try:
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    os.close(folder)
    if error.errno not in (errno.EAGAIN, errno.EACCES):
      raise
    raise ValueError(
      f"{target}: another process writes into it; wait for it to end"
    ) from error
  try:
    yield
  finally:
    os.close(folder)


def _write_shards(planned: Plan, journal, progress: Progress | None) -> None:
  """Writes the shards that are not finished."""
  for leftover in journal.folder.glob(f"*{safetensors.UNFINISHED}"):
    leftover.unlink()
  done = 0

  def counted(tensor: safetensors.Planned):
    nonlocal done
    for part in tensor.parts():
      yield part
      done += part.nbytes
      if progress is not None:
        progress(done, planned.n_bytes, f"writing {tensor.name}")

  for shard in planned.shards:
    if shard.name in journal.shards:
      done += shard.n_bytes
      continue
    tensors = [
      tensor._replace(parts=lambda tensor=tensor: counted(tensor))
      for tensor in shard.tensors
    ]
    digest = safetensors.write(journal.folder / shard.name, tensors)
    journal.finish_shard(shard.name, digest)
