"""A prepared data set on disk: ArrayRecord shards and a metadata file.

  DIRECTORY/metadata.json       everything known about it, with its own digest
  DIRECTORY/bigrams.npz         byte pair counts of both splits (see `bigram`)
  DIRECTORY/train-00000.array_record, ...
  DIRECTORY/validation-00000.array_record, ...

A mixture's directory has only the first two; its metadata names the directories
of its components, which lie beside it.

What is checked when. Opening compares the metadata with its digest and every
shard's length in bytes with the metadata: a missing or truncated shard is named
at once, at the cost of one `stat` a shard. Reading checks each record's
checksum and number, so that a flipped bit is named, with shard and record, when
it is met and never trained on. `Reader.verify` reads everything and compares
the digest over the decoded content; nothing does so by itself, as records are
checked anyway and the read would cost minutes on a large corpus.
"""

import bisect
from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import itertools
import json
import os
import pathlib

from array_record.python import array_record_module
import grain
import numpy as np

from dsx.data import records

METADATA = "metadata.json"

# A new shard begins when one has this many bytes of records.
SHARD_BYTES = 256 << 20

# Up to so many records are read singly: reading them at once starts threads,
# which costs about as much as this many reads.
_FEW = 32

# One record a chunk: random access then decompresses nothing in vain.
_WRITER_OPTIONS = "group_size:1"


class CorruptionError(ValueError):
  """A prepared data set that is not what was written."""


class Writer:
  """Writes one split's records into shards and digests their content."""

  def __init__(
    self, directory: pathlib.Path, split: str, layout: records.Layout
  ):
    """Writes `<split>-*.array_record` below `directory`."""
    self._directory = directory
    self._split = split
    self._layout = layout
    self._digest = hashlib.sha256()
    self._shards: list[dict] = []
    self._writer = None
    self._room = 0
    self.records = 0

  def write(self, record: dict[str, np.ndarray]) -> None:
    """Appends a record."""
    raw = self._layout.encode(self.records, record)
    if self._writer is None or self._room < len(raw):
      self._close_shard()
      name = f"{self._split}-{len(self._shards):05d}.array_record"
      self._shards.append({"name": name, "records": 0})
      self._writer = array_record_module.ArrayRecordWriter(
        str(self._directory / name), _WRITER_OPTIONS
      )
      self._room = SHARD_BYTES
    self._writer.write(raw)
    self._room -= len(raw)
    self._shards[-1]["records"] += 1
    self.records += 1
    update_digest(self._digest, record, self._layout.features)

  def close(self) -> dict:
    """Finishes the split.

    Returns:
      'records', 'digest' (hex sha256 of the content, however it is stored) and
      'shards', each with 'name', 'records' and 'bytes'.
    """
    self._close_shard()
    for shard in self._shards:
      path = self._directory / shard["name"]
      shard["bytes"] = path.stat().st_size
    return {
      "records": self.records,
      "digest": self._digest.hexdigest(),
      "shards": self._shards,
    }

  def _close_shard(self) -> None:
    if self._writer is not None:
      self._writer.close()
      self._writer = None


class Reader:
  """Reads one split of a prepared data set by record number."""

  def __init__(self, directory: pathlib.Path, split: str, metadata: dict):
    """Opens the shards.

    Args:
      directory: of the data set.
      split: 'train' or 'validation'.
      metadata: of `read_metadata`.

    Raises:
      CorruptionError: a shard is missing or has not its length.
    """
    self._directory = directory
    self._entry = metadata["splits"][split]
    self._layout = records.Layout(
      metadata["sequence_length"], metadata["vocab_size"], metadata["features"]
    )
    shards = self._entry["shards"]
    for shard in shards:
      path = directory / shard["name"]
      found = path.stat().st_size if path.is_file() else None
      if found != shard["bytes"]:
        state = "missing" if found is None else f"truncated to {found} bytes"
        if found is not None and found > shard["bytes"]:
          state = f"{found} bytes long"
        raise CorruptionError(
          f"shard {str(path)!r} is {state}, expected {shard['bytes']} bytes; "
          f"delete {str(directory)!r} and prepare the data again"
        )
    self._ends = list(itertools.accumulate(s["records"] for s in shards))
    # Saying how many records each has spares opening every shard now.
    self._source = grain.sources.ArrayRecordDataSource(
      [f"{directory / shard['name']}[0:{shard['records']}]" for shard in shards]
    )

  def __len__(self) -> int:
    return self._ends[-1]

  @property
  def features(self) -> tuple[str, ...]:
    """Names of what a record holds."""
    return self._layout.features

  def read(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the features of the records, each int32 [n, L + 1].

    Raises:
      CorruptionError: a record is not what was written; names it.
    """
    raws = self._read_many(numbers)
    for number, raw in zip(numbers, raws, strict=True):
      damage = self._layout.damage(number, raw)
      if damage:
        raise self._corrupt(number, damage)
    return self._layout.decode(raws)

  def verify(self) -> None:
    """Reads every record and compares the content's digest.

    Raises:
      CorruptionError: a record is corrupt, or the digest is another one.
    """
    digest = hashlib.sha256()
    for numbers in _blocks(len(self), 4096):
      block = self.read(numbers)
      for row in range(len(numbers)):
        record = {name: values[row] for name, values in block.items()}
        update_digest(digest, record, self.features)
    if digest.hexdigest() != self._entry["digest"]:
      raise CorruptionError(
        f"the records in {str(self._directory)!r} have the digest "
        f"{digest.hexdigest()}, expected {self._entry['digest']}; delete the "
        "directory and prepare the data again"
      )

  def _read_many(self, numbers: Sequence[int]) -> Sequence[bytes]:
    if len(numbers) > _FEW:
      try:
        return self._source.__getitems__(numbers)
      except (RuntimeError, ValueError, IndexError):
        pass  # which record it was, reading them singly will tell
    return [self._read_one(number) for number in numbers]

  def _read_one(self, number: int) -> bytes:
    try:
      return self._source[number]
    except (RuntimeError, ValueError, IndexError) as error:
      raise self._corrupt(number, str(error).splitlines()[0]) from None

  def _corrupt(self, number: int, damage: str) -> CorruptionError:
    shard = bisect.bisect_right(self._ends, number)
    path = self._directory / self._entry["shards"][shard]["name"]
    inside = number - (self._ends[shard - 1] if shard else 0)
    return CorruptionError(
      f"record {inside} of shard {str(path)!r} is corrupt: {damage}; delete "
      f"{str(self._directory)!r} and prepare the data again"
    )


def update_digest(
  digest, record: dict[str, np.ndarray], features: Sequence[str]
) -> None:
  """Adds a record's content, independently of how it is stored."""
  for feature in features:
    digest.update(np.ascontiguousarray(record[feature], "<i4").tobytes())


def write_metadata(directory: pathlib.Path, metadata: dict) -> None:
  """Writes metadata.json, with a digest over itself."""
  sealed = {**metadata, "seal": _seal(metadata)}
  path = directory / METADATA
  with path.open("w", encoding="utf-8") as stream:
    json.dump(sealed, stream, indent=1, sort_keys=True)
    stream.flush()
    os.fsync(stream.fileno())


def read_metadata(directory: pathlib.Path) -> dict:
  """Reads metadata.json.

  Raises:
    CorruptionError: the file is not what was written.
    OSError: there is none.
  """
  path = directory / METADATA
  try:
    metadata = json.loads(path.read_bytes())
    seal = metadata.pop("seal", None)
    sealed = _seal(metadata)
  except (ValueError, AttributeError) as error:
    seal, sealed = str(error), None
  if seal != sealed:
    raise CorruptionError(
      f"{str(path)!r} is damaged; delete {str(directory)!r} and prepare the "
      "data again"
    )
  return metadata


def _seal(metadata: dict) -> str:
  canonical = json.dumps(metadata, sort_keys=True)
  return hashlib.sha256(canonical.encode()).hexdigest()


def _blocks(total: int, size: int) -> Iterator[list[int]]:
  for start in range(0, total, size):
    yield list(range(start, min(start + size, total)))
