"""The safetensors file format: a JSON header, then raw tensors.

A file is eight bytes of header length (little-endian), a JSON object of
tensor name to dtype, shape and byte range, and the bytes. It holds no code,
which is why dsx reads nothing else. Tensors are read and written one at a
time, so that memory is bounded by the largest of them, and a header is
checked whole before any byte of data is trusted.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import hashlib
import json
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What the name of a file ends with that is being written.
UNFINISHED = ".tmp"
# The format's own limit, so that a wrong length is not read as a header.
_LONGEST_HEADER = 100_000_000


class Tensor(NamedTuple):
  """Where a tensor lies.

  Attributes:
    path: its file.
    dtype: the format's name of its dtype, a key of `DTYPES`.
    shape: its shape.
    offset: bytes from the start of the file.
  """

  path: pathlib.Path
  dtype: str
  shape: tuple[int, ...]
  offset: int


class Planned(NamedTuple):
  """A tensor to be written.

  Attributes:
    name: its name in the file.
    shape: its shape.
    dtype: its dtype.
    parts: returns the arrays that it is the concatenation of along its first
      axis; called when its turn comes, and each is written before the next is
      asked for.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  parts: Callable[[], Iterable[np.ndarray]]

  @property
  def n_bytes(self) -> int:
    """Bytes of its data."""
    return math.prod(self.shape) * self.dtype.itemsize


def _unique(pairs):
  fields = dict(pairs)
  if len(fields) != len(pairs):
    raise ValueError("a key occurs twice")
  return fields


def parse_json(path, text: bytes | str):
  """Parses a JSON object.

  Args:
    path: the file, for messages.
    text: its content.

  Raises:
    ValueError: if it is not JSON, no object, or repeats a key.
  """
  try:
    parsed = json.loads(text, object_pairs_hook=_unique)
  except (ValueError, RecursionError) as error:
    reason = str(error) or type(error).__name__
    raise ValueError(
      f"{path}: not valid JSON ({reason}); fetch the file again"
    ) from error
  if not isinstance(parsed, dict):
    raise ValueError(
      f"{path}: a JSON {type(parsed).__name__}: expected an object; fetch "
      "the file again"
    )
  return parsed


def header(path) -> dict[str, Tensor]:
  """Reads and checks a file's table of tensors.

  Args:
    path: a .safetensors file.

  Returns:
    Tensors by name.

  Raises:
    ValueError: if the file is truncated or its header contradicts itself.
  """
  path = pathlib.Path(path)
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
      raise ValueError(
        f"{path}: {size} bytes do not hold its header; the file is truncated "
        "or not safetensors, fetch it again"
      )
    fields = parse_json(path, file.read(length))
  fields.pop("__metadata__", None)
  start = 8 + length
  tensors, ranges = {}, []
  for name, entry in fields.items():
    dtype, shape, begin, end = _check_entry(path, name, entry)
    tensors[name] = Tensor(path, dtype, shape, start + begin)
    ranges.append((begin, end, name))
  _check_cover(path, sorted(ranges), size - start)
  return tensors


def _is_count(value) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_entry(path, name, entry):
  """(dtype, shape, begin, end) of one entry of a header."""
  try:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path}: tensor {name!r} has no readable dtype, shape and "
      "data_offsets; fetch the file again"
    ) from error
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(
      f"{path}: tensor {name!r} has dtype {dtype!r}: expected one of "
      f"{', '.join(DTYPES)}; convert it first"
    )
  counts = all(_is_count(n) for n in (*shape, begin, end))
  size = math.prod(shape) * DTYPES[dtype].itemsize if counts else None
  if not counts or end - begin != size:
    raise ValueError(
      f"{path}: tensor {name!r} of {dtype} {list(shape)} lies at bytes "
      f"{begin} to {end}, which does not fit its shape; fetch the file again"
    )
  return dtype, shape, begin, end


def _check_cover(path, ranges, size: int) -> None:
  """Refuses tensors that overlap, leave holes or pass the file's end."""
  reached = 0
  for begin, end, name in ranges:
    if begin != reached:
      raise ValueError(
        f"{path}: tensor {name!r} begins at byte {begin}, where {reached} was "
        "expected; fetch the file again"
      )
    reached = end
  if reached != size:
    raise ValueError(
      f"{path}: tensors take {reached} bytes and the file holds {size}; it is "
      "truncated or damaged, fetch it again"
    )


def read(tensor: Tensor, rows: slice = slice(None)) -> np.ndarray:
  """Reads one tensor.

  Args:
    tensor: which.
    rows: these of its first axis alone, if it has one.
  """
  dtype, shape = DTYPES[tensor.dtype], tensor.shape
  offset = tensor.offset
  if shape:
    start, stop, _ = rows.indices(shape[0])
    shape = (max(stop - start, 0), *shape[1:])
    offset += start * math.prod(shape[1:]) * dtype.itemsize
  count = math.prod(shape)
  with tensor.path.open("rb") as file:
    flat = np.fromfile(file, dtype, count, offset=offset)
  if flat.size != count:
    raise ValueError(
      f"{tensor.path}: the file ends inside a tensor; it changed while it was "
      "read, fetch it again"
    )
  return flat.reshape(shape)


def write(path, tensors: Iterable[Planned]) -> str:
  """Writes a file, one part of one tensor in memory at a time.

  Args:
    path: the file; it appears under this name only when it is complete.
    tensors: what to write, in order.

  Returns:
    sha256 of the file, in hexadecimal.

  Raises:
    ValueError: if a tensor is not what was planned.
    OSError: if the file cannot be written; then it is not there.
  """
  path = pathlib.Path(path)
  tensors = list(tensors)
  fields: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for tensor in tensors:
    fields[tensor.name] = {
      "dtype": NAMES[np.dtype(tensor.dtype)],
      "shape": list(tensor.shape),
      "data_offsets": [offset, offset + tensor.n_bytes],
    }
    offset += tensor.n_bytes
  text = json.dumps(fields, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # data starts aligned
  digest = hashlib.sha256()
  unfinished = path.with_name(path.name + UNFINISHED)
  with unfinished.open("wb") as file:
    for data in _contents(text, tensors):
      file.write(data)
      digest.update(data)
      del data  # a view that would keep a tensor while the next is read
    file.flush()
    os.fsync(file.fileno())
  unfinished.replace(path)
  return digest.hexdigest()


def _contents(text: bytes, tensors: Iterable[Planned]) -> Iterator[Any]:
  """The bytes of a file in order: its header `text`, then the tensors."""
  yield len(text).to_bytes(8, "little") + text
  for tensor in tensors:
    yield from _data(tensor)


def _data(tensor: Planned) -> Iterator[np.ndarray]:
  """The bytes of a tensor; nothing of it is held when they are over."""
  rows = 0
  for part in tensor.parts():
    part = np.asarray(part, order="C")
    rows += part.shape[0] if part.ndim else 1
    _check_part(tensor, part)
    yield part.reshape(-1).view(np.uint8)
  if rows != (tensor.shape[0] if tensor.shape else 1):
    raise ValueError(
      f"{tensor.name}: {rows} rows: expected {tensor.shape[0]}, as planned"
    )


def _check_part(tensor: Planned, part: np.ndarray) -> None:
  if part.shape[1:] != tensor.shape[1:] or part.dtype != tensor.dtype:
    raise ValueError(
      f"{tensor.name}: {part.dtype} {part.shape}: expected {tensor.dtype} "
      f"{tuple(tensor.shape)}, as planned"
    )
