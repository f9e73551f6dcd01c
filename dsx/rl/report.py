"""The report of a run: `report/*.png`, drawn from `metrics.jsonl` alone.

The same records give the same bytes.
"""

import logging
import os
import pathlib

import matplotlib
from matplotlib import figure
import numpy as np

from dsx.rl import measures
from dsx.rl import panels
from dsx.training import canvas
from dsx.training import metrics

FOLDER = "report"

_OVERVIEW = (
  ("accuracy", "reward", "entropy", "length"),
  ("groups", "mismatch", "update", "time"),
)
_DRAW = {
  "accuracy": panels.accuracy,
  "reward": panels.reward,
  "entropy": panels.entropy,
  "length": panels.length,
  "groups": panels.groups,
  "mismatch": panels.mismatch,
  "update": panels.update,
  "time": panels.time,
}
_SIZE = (7.0, 4.2)  # inches, of a panel on its own


def read(workdir: str | os.PathLike[str]) -> panels.Records:
  """The records of a run; of a step that was done twice the last one."""
  kinds: dict[str, dict] = {}
  for record in metrics.read(workdir):
    key = (record["step"], record.get("rule"))
    kinds.setdefault(record["kind"], {})[key] = record

  def series(kind: str) -> list[metrics.Record]:
    found = kinds.get(kind, {}).values()
    return sorted(found, key=lambda record: record["step"])

  return panels.Records(
    series(measures.STEP), series(measures.EVALUATION), series(measures.ALARM)
  )


def write(
  workdir: str | os.PathLike[str], *, title: str = ""
) -> list[pathlib.Path]:
  """Draws `overview.png` and a figure of each panel.

  Args:
    workdir: the run's directory, with `metrics.jsonl`.
    title: what the run is called.

  Returns:
    The files written, the overview first; empty when no step was recorded.
  """
  run = read(workdir)
  if not run.steps:
    logging.warning("%s: no step recorded, no report", workdir)
    return []
  folder = pathlib.Path(workdir) / FOLDER
  folder.mkdir(exist_ok=True)
  with matplotlib.rc_context(canvas.STYLE):
    paths = [_save(_overview(run, title), folder / "overview.png")]
    for name, draw in _DRAW.items():
      drawing = figure.Figure(figsize=_SIZE, layout="constrained")
      draw(drawing, run)
      paths.append(_save(drawing, folder / f"{name}.png"))
  return paths


def _overview(run: panels.Records, title: str) -> figure.Figure:
  drawing = figure.Figure(figsize=(20, 8.8), layout="constrained")
  heading = f"{title}:  {_headline(run)}" if title else _headline(run)
  drawing.suptitle(heading, fontsize=13, x=0.01, ha="left")
  places = np.asarray(
    drawing.subfigures(len(_OVERVIEW), len(_OVERVIEW[0]), wspace=0.03)
  )
  for row, names in zip(places, _OVERVIEW, strict=True):
    for place, name in zip(row, names, strict=True):
      _DRAW[name](place, run)
  return drawing


def _headline(run: panels.Records) -> str:
  """The run in one line."""
  words = [f"{run.steps[-1]['step']:,} steps"]
  if run.examinations:
    first, last = run.examinations[0], run.examinations[-1]
    words.append(
      f"held-out accuracy {first['pass_1']:.3f} to {last['pass_1']:.3f}"
      f" [{last['pass_1_low']:.3f}, {last['pass_1_high']:.3f}]"
    )
  if run.alarms:
    rules = ", ".join(alarm["rule"] for alarm in run.alarms)
    words.append(f"alarms: {rules}")
  return ", ".join(words)


def _save(drawing: figure.Figure, path: pathlib.Path) -> pathlib.Path:
  drawing.savefig(path, metadata={"Software": None})  # it names a version
  return path
