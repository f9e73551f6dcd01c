"""What the stages have come to: a table, a picture, and where all comes from.

The table is that of DeepSeek-R1's stages (its supplement's table of R1-Zero,
Dev1, Dev2, Dev3 and R1): accuracy on held-out problems after each stage, with
intervals. A dip after the cold start is what the report has, too.
"""

from collections.abc import Sequence
import csv
import io
import json
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

import matplotlib
from matplotlib import figure
import numpy as np
import rich.box
import rich.console
import rich.table

from dsx.training import canvas
from experiments.staging import plan
from experiments.staging import record as record_lib
from experiments.staging import stage as stage_lib

FOLDER = "report"
_GROUP = "accuracy_"
_INTERVAL = ("_low", "_high")
_COLORS = (canvas.BLUE, canvas.ORANGE, canvas.GREEN, canvas.PURPLE, canvas.SKY)


class Row(NamedTuple):
  """A stage and its evaluation.

  Attributes:
    stage: the stage.
    seconds: it took; NaN if it is not done.
    score: what `evaluate_reasoning` left; empty if there is none.
    folder: of the stage.
  """

  stage: stage_lib.Stage
  seconds: float
  score: dict[str, Any]
  folder: pathlib.Path

  def number(self, name: str) -> float:
    """A number of the score, or NaN."""
    value = self.score.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def rows(commands: Sequence[plan.Command]) -> list[Row]:
  """The stages in order."""
  scores = {
    command.stage.name: record_lib.Record(command)
    for command in commands
    if command.evaluates
  }
  found = []
  for command in commands:
    if command.evaluates:
      continue
    record = record_lib.Record(command)
    evaluated = scores.get(command.stage.name)
    score = evaluated.summary() if evaluated and evaluated.done else {}
    seconds = record.outcome().get("seconds", math.nan) if record.done else None
    found.append(
      Row(
        command.stage,
        math.nan if seconds is None else seconds,
        score,
        record.folder,
      )
    )
  return found


def _groups(found: Sequence[Row]) -> list[str]:
  """What problems are scored by, in order of appearance."""
  names: dict[str, None] = {}
  for row in found:
    for key in row.score:
      if key.startswith(_GROUP) and not key.endswith(_INTERVAL):
        names[key.removeprefix(_GROUP)] = None
  return list(names)


def _columns(found: Sequence[Row]) -> list[tuple[str, str]]:
  """(heading, field) of every number of the table."""
  k = next((row.score["k"] for row in found if "k" in row.score), None)
  columns = [("pass@1", "pass_1")]
  if k is not None and k > 1:
    columns += [(f"pass@{k}", "pass_k"), (f"cons@{k}", "cons_k")]
  columns += [(name, f"{_GROUP}{name}") for name in _groups(found)]
  return columns


def _cell(row: Row, field: str) -> str:
  value = row.number(field)
  if math.isnan(value):
    return ""
  low, high = (row.number(field + end) for end in _INTERVAL)
  if math.isnan(low):
    return f"{value:.3f}"
  return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def table(found: Sequence[Row]) -> list[list[str]]:
  """The table, headings first."""
  columns = _columns(found)
  lines = [["stage", *(h for h, _ in columns), "tokens", "seconds"]]
  for row in found:
    seconds = "" if math.isnan(row.seconds) else f"{row.seconds:.0f}"
    length = row.number("length")
    lines.append(
      [
        row.stage.label,
        *(_cell(row, field) for _, field in columns),
        "" if math.isnan(length) else f"{length:.1f}",
        seconds,
      ]
    )
  return lines


def to_screen(
  unused_road: stage_lib.Road, commands: Sequence[plan.Command]
) -> str:
  """The table for a terminal."""
  first, *rest = table(rows(commands))
  shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
  for number, name in enumerate(first):
    shown.add_column(name, justify="right" if number else "left")
  for line in rest:
    shown.add_row(*map(rich.markup.escape, line))
  console = rich.console.Console(
    file=io.StringIO(), width=160, color_system=None
  )
  with console.capture() as capture:
    console.print(shown)
  lines = capture.get().splitlines()
  return "\n".join(line.rstrip() for line in lines if line.strip())


def to_markdown(found: Sequence[Row]) -> str:
  """The table for a page."""
  first, *rest = table(found)
  lines = [first, ["---", *["---:"] * (len(first) - 1)], *rest]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(
  road: stage_lib.Road,
  commands: Sequence[plan.Command],
  workdir: pathlib.Path,
) -> list[pathlib.Path]:
  """Writes stages.md, stages.csv, lineage.json and, if scored, stages.png."""
  folder = workdir / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  found = rows(commands)
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(table(found))
  texts = {
    "stages.md": to_markdown(found),
    "stages.csv": text.getvalue(),
    "lineage.json": json.dumps(_lineage(commands), indent=1) + "\n",
  }
  written = []
  for name, content in texts.items():
    partial = folder / f"{name}.partial"
    partial.write_text(content)
    os.replace(partial, folder / name)
    written.append(folder / name)
  if any(row.score for row in found):
    written.append(_draw(road, found, folder / "stages.png"))
  return written


def _lineage(commands: Sequence[plan.Command]) -> list[dict[str, Any]]:
  """What was done, with what, and what it stands on."""
  return [
    {"stage": command.label, "folder": command.folder.name}
    | record_lib.Record(command).outcome()
    for command in commands
  ]


def _draw(
  road: stage_lib.Road, found: Sequence[Row], path: pathlib.Path
) -> pathlib.Path:
  """Accuracy by stage, a line for each group of problems."""
  scored = [row for row in found if row.score]
  lines = [(name, f"{_GROUP}{name}") for name in _groups(scored)]
  lines = lines or [("pass@1", "pass_1")]
  k = scored[0].score.get("k", 1)
  with matplotlib.rc_context(canvas.STYLE):
    width = max(7.5, 1.1 * len(scored) + 2.0)
    drawing = figure.Figure(figsize=(width, 4.8), layout="constrained")
    axes = drawing.subplots()
    places = np.arange(len(scored))
    shift = 0.08
    for number, (label, field) in enumerate(lines):
      values = np.asarray([row.number(field) for row in scored])
      low, high = (
        np.asarray([row.number(field + end) for row in scored])
        for end in _INTERVAL
      )
      axes.errorbar(
        places + shift * (number - (len(lines) - 1) / 2),
        values,
        yerr=np.abs([values - low, high - values]),
        fmt="o-",
        color=_COLORS[number % len(_COLORS)],
        capsize=3,
        markersize=5,
        label=label,
      )
    if k > 1:
      values = np.asarray([row.number("pass_k") for row in scored])
      label = f"pass@{k}, all problems"
      axes.plot(places, values, ":", color=canvas.GREY, label=label)
    titles = [row.stage.label.replace("$", r"\$") for row in scored]
    axes.set_xticks(places, titles, rotation=20, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("held-out accuracy")
    axes.set_title(road.title)
    canvas.legend(axes, above=True)
    partial = path.with_name(f"{path.name}.partial")
    drawing.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)
  return path
