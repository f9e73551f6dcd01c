"""Measured loads of experts, from a run's metrics or from a file.

A record has `layers`, names, and `load`, a row for each of tokens per expert
in any unit, as `metrics.py` writes them. A file may hold one such record, a
list of them, or one a line; of JSON lines, those of another kind are passed
over.
"""

import json
import os
import pathlib
from typing import NamedTuple

import numpy as np

from dsx.training import metrics


class Loads(NamedTuple):
  """Loads in the order in which they were measured.

  Attributes:
    layers: names.
    load: float [records, layers, E].
    names: of each record, `step 590` or, where steps are not known, `record 3`.
  """

  layers: list[str]
  load: np.ndarray
  names: list[str]


def read(path: str | os.PathLike[str]) -> Loads:
  """Reads the loads of a workdir or of a file.

  Raises:
    ValueError: there are none, or they are no loads; in one line.
    OSError: the file cannot be read.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    path = path / metrics.FILE_NAME
    if not path.is_file():
      raise ValueError(
        f"{path.parent}: expected {metrics.FILE_NAME} with measured loads, as "
        "a run leaves it; give a file of loads"
      )
  try:
    records = _records(path.read_text())
    if not records:
      raise ValueError("there is no record with `layers` and `load`")
    return _joined(records)
  except (ValueError, TypeError, RecursionError) as error:
    raise ValueError(f"{path}: no loads of experts: {error}") from error


def _records(text: str) -> list[dict]:
  """All records of a file, the last of each step."""
  try:
    found = json.loads(text)
    found = found if isinstance(found, list) else [found]
  except ValueError:
    found = [_line(line) for line in text.splitlines()]
  by_step = {}
  for number, record in enumerate(found):
    if isinstance(record, dict) and "load" in record:
      step = record.get("step", number)
      if not isinstance(step, int):
        raise ValueError(f"step={step!r}: expected a whole number, or none")
      by_step[step] = record
  # A run that went on from a checkpoint may have measured a step twice.
  return [by_step[step] for step in sorted(by_step)]


def _line(line: str):
  try:
    return json.loads(line)
  except ValueError:  # what a kill left half-written
    return None


def _joined(records: list[dict]) -> Loads:
  layers = records[-1].get("layers")
  if not isinstance(layers, list) or not all(map(_is_name, layers)):
    raise ValueError(f"layers={layers!r}: expected the names of layers")
  load = []
  for record in records:
    if record.get("layers") != layers:
      raise ValueError(
        f"layers={record.get('layers')!r} in one record and {layers!r} in the "
        "last: expected the same"
      )
    load.append(record["load"])
  load = np.asarray(load, np.float64)
  if load.ndim != 3 or load.shape[1] != len(layers) or not load.size:
    raise ValueError(
      f"load of shape {load.shape[1:]}: expected a row of tokens per expert "
      f"for each of {len(layers)} layers"
    )
  if not np.isfinite(load).all() or (load < 0).any():
    raise ValueError("load: expected numbers from 0")
  names = [
    f"step {record['step']:,}" if "step" in record else f"record {number}"
    for number, record in enumerate(records, 1)
  ]
  return Loads(layers, load, names)


def _is_name(layer) -> bool:
  return isinstance(layer, str)
