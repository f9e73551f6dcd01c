"""Samples to fine-tune on: reasoning and other data, mixed and written.

DeepSeek-R1 section 2.3.3: about 600K reasoning samples and 200K others. Lines
are as `data.sft` reads them; what else is known of each stays in its line. The
order is that of hashes, so that parts of the set are mixed, and the same
samples make the same file whichever came first.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from dsx.data import json_lines
from dsx.data import sft
from dsx.data import source_files
from dsx.rl import rejection

SAMPLES = "samples.jsonl"
PROVENANCE = "provenance.json"
GENERAL = "general"


@dataclasses.dataclass(frozen=True)
class Written:
  """What was written.

  Attributes:
    digest: sha256 of the file of samples.
    reasoning: samples of it that were sampled here.
    general: samples of it that were brought.
    duplicates: sampled ones that were left out for one like them.
    general_files: name and sha256 of each file of others.
  """

  digest: str
  reasoning: int
  general: int
  duplicates: int
  general_files: list[list[str]]


def write(
  folder: pathlib.Path,
  sampled: Iterable[Mapping[str, Any]],
  *,
  general: Sequence[str],
  ratio: float,
  seed: int,
) -> Written:
  """Writes `SAMPLES` of a folder.

  Args:
    folder: where.
    sampled: lines with `prompt` and `response`, the better before the worse.
      Of several that are alike the first is taken.
    general: globs of files of other samples, may be none.
    ratio: sampled ones for each other. Where there are too few others, all of
      them are taken, and none of the sampled left out.
    seed: which others are taken, and the order.

  Raises:
    ValueError: there is nothing to write, a file can't be read, or a line of
      it is no sample.
  """
  lines, duplicates = _distinct(sampled)
  files = _files(general)
  others = _general(files)
  wanted = round(len(lines) / ratio)
  chosen = sorted(others, key=lambda line: _hash(seed, "choice", line))
  chosen = chosen[:wanted]
  every = sorted([*lines, *chosen], key=lambda line: _hash(seed, "order", line))
  if not every:
    raise ValueError(
      "samples: none was good enough: expected at least one; draw more answers"
      " to each problem, loosen the filters, or take a better policy"
    )
  content = "".join(f"{line}\n" for line in every).encode()
  partial = folder / f"{SAMPLES}.partial"
  partial.write_bytes(content)
  os.replace(partial, folder / SAMPLES)
  return Written(
    digest=hashlib.sha256(content).hexdigest(),
    reasoning=len(lines),
    general=len(chosen),
    duplicates=duplicates,
    general_files=source_files.digests(files),
  )


def check(general: Sequence[str]) -> None:
  """Refuses files of other samples that could not be read later.

  Args:
    general: globs, may be none.

  Raises:
    ValueError: one matches nothing, or a line is no sample.
  """
  _general(_files(general))


def _files(general: Sequence[str]) -> tuple[source_files.File, ...]:
  try:
    return source_files.matched(general) if general else ()
  except source_files.CorpusError as error:
    raise _renamed(error) from None


def _distinct(sampled: Iterable[Mapping[str, Any]]) -> tuple[list[str], int]:
  """Lines without repetitions, and how many of these there were."""
  seen: dict[tuple[str, str], str] = {}
  duplicates = 0
  for record in sampled:
    sft.parsed(record)
    key = (
      rejection.plain(record["prompt"]),
      rejection.plain(record["response"]),
    )
    if key in seen:
      duplicates += 1
    else:
      seen[key] = _line(record)
  return list(seen.values()), duplicates


def _general(files: Sequence[source_files.File]) -> list[str]:
  """The different lines of files, with where they are from."""
  found: dict[str, None] = {}
  for file in files:
    try:
      for where, name, record in json_lines.read(file):
        try:
          sft.parsed(record)
        except ValueError as error:
          raise ValueError(f"general: {where}: {error}") from None
        found[_line({"source": f"{GENERAL} {name}", **record})] = None
    except source_files.CorpusError as error:
      raise _renamed(error) from None
  return list(found)


def _renamed(error: ValueError) -> ValueError:
  """The same error, of the field that it is about here."""
  return ValueError(str(error).replace("Data.files", "general", 1))


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(record, ensure_ascii=False, sort_keys=True)


def _hash(seed: int, purpose: str, line: str) -> bytes:
  return hashlib.sha256(f"{seed} {purpose} {line}".encode()).digest()
