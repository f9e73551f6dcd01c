"""The recorded history of a run, as columns of numbers to draw or to study.

A run that was killed and resumed, or that measured a step twice, still has
each step once: the last record of a step counts. Numbers that are absent or
not finite are NaN.
"""

from collections.abc import Sequence
import dataclasses
import math
import os

import numpy as np

from dsx.training import metrics


@dataclasses.dataclass(frozen=True)
class History:
  """What was recorded, in order of steps.

  Attributes:
    train: records of kind `train`.
    validation: records of kind `validation`.
    load: the last record of kind `load`, or None.
    bigram: bits per byte of a bigram model on the same data, or None.
    fp8: records of kind `fp8`; empty for a run without FP8.
  """

  train: list[metrics.Record]
  validation: list[metrics.Record]
  load: metrics.Record | None = None
  bigram: float | None = None
  fp8: Sequence[metrics.Record] = ()

  @property
  def bits_per_nat(self) -> float:
    """Bits per byte for one nat per token; NaN when it was not recorded."""
    records = self.validation or self.train
    with np.errstate(invalid="ignore", divide="ignore"):
      ratios = column(records, "bits_per_byte") / column(records, "loss")
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    return float(np.median(ratios)) if ratios.size else math.nan


def read(
  workdir: str | os.PathLike[str], bigram: float | None = None
) -> History:
  """Reads the history of a run from its metrics."""
  kinds: dict[str, dict[int, metrics.Record]] = {}
  for record in metrics.read(workdir):
    kinds.setdefault(record["kind"], {})[record["step"]] = record
  series = {
    kind: [records[step] for step in sorted(records)]
    for kind, records in kinds.items()
  }
  return History(
    train=series.get("train", []),
    validation=series.get("validation", []),
    load=series["load"][-1] if "load" in series else None,
    bigram=bigram,
    fp8=series.get("fp8", []),
  )


def number(record: metrics.Record, field: str) -> float:
  """One field of a record; NaN where it is absent or no number."""
  value = record.get(field)
  return float(value) if isinstance(value, int | float) else math.nan


def steps(records: Sequence[metrics.Record]) -> np.ndarray:
  """Finished steps, [records]."""
  return np.asarray([record["step"] for record in records], np.int64)


def column(records: Sequence[metrics.Record], field: str) -> np.ndarray:
  """One field of every record, [records]."""
  values = np.asarray([number(record, field) for record in records])
  return np.where(np.isfinite(values), values, np.nan)


def rows(records: Sequence[metrics.Record], field: str) -> np.ndarray:
  """A list of numbers of every record, [records, longest], padded with NaN."""
  lists = [list(record.get(field) or ()) for record in records]
  longest = max(map(len, lists), default=0)
  padded = [row + [math.nan] * (longest - len(row)) for row in lists]
  return np.asarray(padded, np.float64).reshape(len(lists), longest)
