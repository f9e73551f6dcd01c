"""How the trials of a sweep compare: a table on the screen, and a CSV file."""

from collections.abc import Sequence
import csv
import io
import math
import pathlib
import statistics
from typing import Any
from typing import NamedTuple

import rich.box
import rich.console
import rich.table

from experiments.sweeping import trial as trial_lib

METRICS = ("validation_bits_per_byte", "train_loss", "wall_seconds")
_COLUMNS = (
  "steps",
  "tokens",
  "train_loss",
  "validation_bits_per_byte",
  "max_violation",
  "tokens_per_second",
  "mfu",
  "wall_seconds",
)


class Row(NamedTuple):
  """One trial and what came of it.

  Attributes:
    trial: the trial.
    status: see `trial.Record.status`.
    summary: of the run; empty before its end.
    name: of its folder.
  """

  trial: trial_lib.Trial
  status: str
  summary: dict[str, Any]
  name: str

  def number(self, metric: str) -> float:
    """A number of the summary of a finished trial, else NaN."""
    value = self.summary.get(metric) if self.status == "finished" else None
    return float(value) if isinstance(value, int | float) else math.nan


def rows(trials: Sequence[trial_lib.Trial], folder: pathlib.Path) -> list[Row]:
  """What came of each trial whose folder is in `folder`."""
  found = []
  for trial in trials:
    record = trial_lib.Record(folder / trial.name)
    found.append(Row(trial, record.status(), record.summary(), trial.name))
  return found


def headings(trials: Sequence[trial_lib.Trial]) -> dict[str, str]:
  """What is varied: the short name by the whole one, whole where it must be."""
  keys = list(dict.fromkeys(c.key for trial in trials for c in trial.choices))
  names = [trial_lib.short(key) for key in keys]
  return {
    key: name if names.count(name) == 1 else key
    for key, name in zip(keys, names, strict=True)
  }


def to_csv(found: Sequence[Row]) -> str:
  """One line a trial."""
  text = io.StringIO()
  names = headings([row.trial for row in found])
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([*names.values(), "seed", "status", *_COLUMNS, "trial"])
  for row in found:
    bound = {choice.key: choice.value for choice in row.trial.choices}
    seed = "" if row.trial.seed is None else row.trial.seed
    numbers = [
      "" if math.isnan(row.number(name)) else row.summary[name]
      for name in _COLUMNS
    ]
    values = [bound[key] for key in names]
    writer.writerow([*values, seed, row.status, *numbers, row.name])
  return text.getvalue()


class Setting(NamedTuple):
  """The trials that differ in their seed alone.

  Attributes:
    rows: one for each seed.
    mean: of the metric over those finished; NaN if none is.
    deviation: the sample's standard deviation; NaN for fewer than two.
  """

  rows: list[Row]
  mean: float
  deviation: float


def settings(found: Sequence[Row], metric: str) -> list[Setting]:
  """The settings, lowest mean first, unfinished ones last."""
  groups: dict[tuple, list[Row]] = {}
  for row in found:
    groups.setdefault(tuple(row.trial.bindings), []).append(row)
  compared = []
  for group in groups.values():
    numbers = [row.number(metric) for row in group]
    numbers = [number for number in numbers if math.isfinite(number)]
    mean = statistics.fmean(numbers) if numbers else math.nan
    spread = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    compared.append(Setting(group, mean, spread))
  return sorted(compared, key=lambda s: (math.isnan(s.mean), s.mean))


def to_screen(found: Sequence[Row], metric: str, width: int = 100) -> str:
  """One line a setting, the best first."""
  names = headings([row.trial for row in found])
  shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
  for name in names.values():
    shown.add_column(name, overflow="fold")
  for name in (metric, "+-", "tokens/s"):
    shown.add_column(name, justify="right")
  shown.add_column("trials")
  for setting in settings(found, metric):
    bound = {c.key: c.text for c in setting.rows[0].trial.choices}
    speeds = [row.number("tokens_per_second") for row in setting.rows]
    speeds = [speed for speed in speeds if math.isfinite(speed)]
    shown.add_row(
      *(rich.markup.escape(bound[key]) for key in names),
      _number(setting.mean, ".4f"),
      _number(setting.deviation, ".4f"),
      _number(statistics.fmean(speeds) if speeds else math.nan, ",.0f"),
      _statuses(setting.rows),
    )
  console = rich.console.Console(
    file=io.StringIO(), width=width, color_system=None
  )
  with console.capture() as capture:
    console.print(shown)
  lines = capture.get().splitlines()
  return "\n".join(line.rstrip() for line in lines if line.strip())


def _number(value: float, how: str) -> str:
  return "" if math.isnan(value) else format(value, how)


def _statuses(group: Sequence[Row]) -> str:
  if len(group) == 1:
    return group[0].status
  counts: dict[str, int] = {}
  for row in group:
    counts[row.status] = counts.get(row.status, 0) + 1
  return ", ".join(f"{count} {status}" for status, count in counts.items())
