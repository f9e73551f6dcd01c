"""What a run measures, written down so that a resumed run leaves one history.

`metrics.jsonl` in the work directory is the record: one JSON object a line,
each with `kind` and `step`, flushed as it is written. TensorBoard files beside
it show the same numbers. The kinds and their fields, losses in nats per token:

  train       step tokens loss mtp_loss[] balance_loss learning_rate batch_size
              grad_norm max_violation max_violation_by_layer[] bits_per_byte
              tokens_per_second mfu data_wait mtp_weight bias_update_speed
              skipped (updates left out so far, because they were not finite)
              dropped (share of the copies of tokens that found no room on the
              way to their experts; 0 unless a capacity is given)
  validation  step tokens loss mtp_loss[] bits_per_byte
  load        step layers[] load[][] (tokens per expert, as a fraction of the
              layer's mean)
  fp8         step layers[] and per layer, for each tensor T of `activation`,
              `weight` and `gradient` (of the layer's output): T_underflow[],
              T_saturated[] (shares of the values that are not zero),
              T_not_finite[], T_scale_min[], T_scale_median[], T_scale_max[]
              (floor(log2(scale)) over tiles); only of a run with FP8

`mfu`, `data_wait` and `dropped` are fractions of 1. JSON has no NaN: numbers
that are not finite are written as null and read back as NaN. Floats keep 9
digits, which is exact for float32; loads and what FP8 does keep 4.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import errno
import json
import logging
import math
import os
import pathlib
import time
from typing import Any

import numpy as np
from tensorboardX import event_file_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.proto import summary_pb2

FILE_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"

_DIGITS = {"load": 4, "fp8": 4}  # significant digits, by kind of record
_FLOAT32_DIGITS = 9
_FLUSH_SECONDS = 10.0  # how stale TensorBoard may be

Record = dict[str, Any]


def max_violation(load: Any) -> np.ndarray:
  """MaxVio (Wang et al. 2024a): how far the busiest expert exceeds the mean.

  Args:
    load: [..., E] tokens per expert, in any unit.

  Returns:
    [...] max over experts of load / mean load - 1; 0 is perfect balance and
    E - 1 one expert with everything. NaN where nothing was routed.

  >>> max_violation([[1.0, 1.0], [3.0, 1.0]]).tolist()
  [0.0, 0.5]
  """
  load = np.asarray(load, np.float64)
  mean = load.mean(axis=-1)
  with np.errstate(invalid="ignore", divide="ignore"):
    return load.max(axis=-1) / mean - 1.0


def _rounded(value: float, digits: int) -> float | None:
  return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _plain(value: Any, digits: int) -> Any:
  """Turns numpy and JAX numbers and arrays into what JSON can hold."""
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [_plain(item, digits) for item in value]
  return _rounded(value, digits) if isinstance(value, float) else value


def _encode(record: Mapping[str, Any]) -> Record:
  kind, step = record.get("kind"), record.get("step")
  if not isinstance(kind, str) or not kind:
    raise ValueError(
      f"kind={kind!r}: expected the record's kind, such as 'train'; add it"
    )
  if isinstance(step, bool) or not isinstance(step, int | np.integer):
    raise ValueError(
      f"step={step!r}: expected the number of finished steps as an int; "
      f"add it to the {kind!r} record"
    )
  digits = _DIGITS.get(kind, _FLOAT32_DIGITS)
  return {field: _plain(value, digits) for field, value in record.items()}


def _decode(value: Any) -> Any:
  if isinstance(value, list):
    return [_decode(item) for item in value]
  return math.nan if value is None else value


def _parse(line: bytes) -> Record | None:
  """One line as a record, or None for what a kill left half-written."""
  try:
    record = json.loads(line)
  except ValueError:
    return None
  whole = isinstance(record, dict) and isinstance(record.get("step"), int)
  return record if whole and isinstance(record.get("kind"), str) else None


def read(workdir: str | os.PathLike[str]) -> list[Record]:
  """Reads the records of a run, in the order in which they were written.

  Args:
    workdir: the run's directory.

  Returns:
    The records; null reads as NaN, lines that no record can be made of are
    left out, and a directory without metrics gives an empty list.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  if not path.exists():
    return []
  records = [_parse(line) for line in path.read_bytes().splitlines()]
  return [
    {field: _decode(value) for field, value in record.items()}
    for record in records
    if record is not None
  ]


def _replace(path: pathlib.Path, lines: Iterable[bytes]) -> None:
  """Replaces a file's content so that a kill leaves the old or the new one."""
  temporary = path.with_name(path.name + ".partial")
  with open(temporary, "wb") as file:
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _keep_until(path: pathlib.Path, last_step: int) -> None:
  """Drops records past `last_step`, and lines that a kill left broken."""
  if not path.exists():
    return
  content = path.read_bytes()
  kept, broken = [], 0
  for line in content.splitlines():
    record = _parse(line)
    broken += record is None
    if record is not None and record["step"] <= last_step:
      kept.append(line + b"\n")
  if broken:
    logging.warning("%s: dropped %d half-written line(s)", path, broken)
  if b"".join(kept) != content:
    _replace(path, kept)


class _Events:
  """TensorBoard events, written in the caller's thread.

  tensorboardX's own SummaryWriter hands events to a thread; when the disk is
  full that thread dies and the training waits for its queue for ever.
  """

  def __init__(self, directory: pathlib.Path, first_step: int):
    """Opens one more event file; TensorBoard hides older steps from it on."""
    directory.mkdir(exist_ok=True)
    suffix = f".{len(list(directory.iterdir())):05d}"
    self._file = event_file_writer.EventsWriter(
      str(directory / "events"), suffix
    )
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step=first_step, session_log=start)
    self.flush()

  def _write(self, **fields) -> None:
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._file.write_event(event)

  def write(self, record: Record) -> None:
    values = []
    for field, value in record.items():
      if field in ("kind", "step", "layers"):
        continue
      tag = f"{record['kind']}/{field}"
      if isinstance(value, list):
        names = record.get("layers") or range(len(value))
        for name, item in zip(names, value, strict=False):
          values += _summary(f"{tag}/{name}", item)
      else:
        values += _summary(tag, value)
    self._write(step=record["step"], summary=summary_pb2.Summary(value=values))
    if time.monotonic() > self._next_flush:
      self.flush()

  def flush(self) -> None:
    self._file.flush()
    self._next_flush = time.monotonic() + _FLUSH_SECONDS

  def close(self) -> None:
    self._file.close()


def _summary(tag: str, value: Any) -> Iterable[summary_pb2.Summary.Value]:
  """A number as a scalar, a list of numbers as a histogram, null as NaN."""
  if isinstance(value, list):
    numbers = [item for item in value if isinstance(item, int | float)]
    if not numbers:
      return []
    return summary.histogram(tag, np.asarray(numbers), "auto").value
  if value is not None and not isinstance(value, int | float):
    return []
  number = math.nan if value is None else value
  return [summary_pb2.Summary.Value(tag=tag, simple_value=number)]


class Writer:
  """Appends records to `metrics.jsonl` and to TensorBoard files.

  Only one process of a run may have one. A record is in the file, though not
  yet safe from a power cut, when `write` returns; `flush` makes it safe.
  """

  def __init__(
    self, workdir: str | os.PathLike[str], resume_step: int | None = None
  ):
    """Opens the files of a run.

    Args:
      workdir: the run's directory, created if it is missing.
      resume_step: finished steps of the checkpoint that the run goes on from;
        what was recorded past it is dropped, because it will be done again.
        None begins anew and drops everything.

    Raises:
      OSError: the directory cannot be written.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self._path = workdir / FILE_NAME
    last_step = -1 if resume_step is None else resume_step
    _keep_until(self._path, last_step)
    self._file = open(self._path, "ab", buffering=0)
    self._events = _Events(workdir / TENSORBOARD_NAME, last_step + 1)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends one record.

    Args:
      record: `kind`, `step`, and numbers, strings, arrays or lists of them;
        the module's docstring names the fields that reports read.

    Raises:
      ValueError: `kind` or `step` is missing or of the wrong type.
      OSError: the disk is full or gone; the file then ends with the record
        before this one.
    """
    encoded = _encode(record)
    line = json.dumps(encoded, allow_nan=False, separators=(",", ":")) + "\n"
    self._append(line.encode())
    self._events.write(encoded)

  def _append(self, line: bytes) -> None:
    end = os.fstat(self._file.fileno()).st_size
    try:
      if self._file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
    except OSError:
      self._file.truncate(end)
      raise

  def flush(self) -> None:
    """Returns when everything written so far is on the disk."""
    os.fsync(self._file.fileno())
    self._events.flush()

  def close(self) -> None:
    """Flushes and closes; a second call does nothing."""
    if not self._file.closed:
      self.flush()
      self._file.close()
      self._events.close()
