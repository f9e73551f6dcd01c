"""The report of a run: `report/*.png`, drawn from `metrics.jsonl` alone.

The same metrics give the same bytes, so that a committed picture changes only
when the run does.
"""

import logging
import math
import os
import pathlib

import matplotlib
from matplotlib import figure
import numpy as np

from dsx.training import canvas
from dsx.training import fp8_panels
from dsx.training import history
from dsx.training import panels
from dsx.training import progress

FOLDER_NAME = "report"

_PANELS = {  # by the name of the file: the panel, and its size in inches
  "loss": (panels.loss, (7.5, 4.5)),
  "schedule": (panels.schedule, (7.5, 5.0)),
  "expert_load": (panels.expert_load, (7.5, 4.0)),
  "max_violation": (panels.max_violation, (7.5, 3.8)),
  "gradient_norm": (panels.gradient_norm, (7.5, 3.8)),
  "throughput": (panels.throughput, (7.5, 4.5)),
}
# Of a run that has records of FP8.
_FP8_PANELS = {"fp8": (fp8_panels.fp8, (11.0, 7.0))}
_OVERVIEW = (
  ("loss", "gradient_norm", "schedule"),
  ("expert_load", "max_violation", "throughput"),
)


def _headline(run: history.History) -> str:
  """The run in one line: steps, tokens, and how well it predicts."""
  last = run.train[-1]
  words = [f"{last['step']:,} {'step' if last['step'] == 1 else 'steps'}"]
  tokens = history.number(last, "tokens")
  if math.isfinite(tokens):
    words.append(f"{progress.count(tokens)} tokens")
  bits = history.column(run.validation, "bits_per_byte")[-1:]
  if np.isfinite(bits).any():
    words.append(f"{bits.item():.3f} bits per byte on validation text")
  return ", ".join(words)


def _overview(run: history.History, title: str) -> figure.Figure:
  drawing = figure.Figure(figsize=(16, 8.8), layout="constrained")
  heading = f"{title}:  {_headline(run)}" if title else _headline(run)
  drawing.suptitle(heading, fontsize=13, x=0.01, ha="left")
  places = np.asarray(drawing.subfigures(2, 3, wspace=0.04, hspace=0.05))
  for row, names in zip(places, _OVERVIEW, strict=True):
    for place, name in zip(row, names, strict=True):
      draw, _ = _PANELS[name]
      draw(place, run)
  return drawing


def _save(drawing: figure.Figure, path: pathlib.Path) -> pathlib.Path:
  drawing.savefig(path, metadata={"Software": None})  # it names a version
  return path


def write(
  workdir: str | os.PathLike[str],
  *,
  title: str = "",
  bigram: float | None = None,
) -> list[pathlib.Path]:
  """Draws `overview.png` and a figure of each panel.

  Args:
    workdir: the run's directory, with `metrics.jsonl`.
    title: what the run is called.
    bigram: bits per byte of a bigram model on the same data, drawn for
      comparison.

  Returns:
    The files written, in `workdir/report/`, the overview first; empty when
    no training step was recorded.
  """
  run = history.read(workdir, bigram)
  if not run.train:
    logging.warning("%s: no training step recorded, no report", workdir)
    return []
  folder = pathlib.Path(workdir) / FOLDER_NAME
  folder.mkdir(exist_ok=True)
  with matplotlib.rc_context(canvas.STYLE):
    paths = [_save(_overview(run, title), folder / "overview.png")]
    shown = _PANELS | (_FP8_PANELS if run.fp8 else {})
    for name, (draw, size) in shown.items():
      drawing = figure.Figure(figsize=size, layout="constrained")
      draw(drawing, run)
      paths.append(_save(drawing, folder / f"{name}.png"))
  return paths
