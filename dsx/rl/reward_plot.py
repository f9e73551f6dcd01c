"""The picture of a reward model's training, drawn from its metrics alone."""

import os
import pathlib

import matplotlib
from matplotlib import figure
import numpy as np

from dsx.training import canvas
from dsx.training import metrics

FOLDER = "report"
_PANELS = (("loss", "loss, nats"), ("accuracy", "accuracy"))


def write(workdir: str | os.PathLike[str]) -> pathlib.Path | None:
  """Draws `report/reward_model.png`; None if nothing was recorded."""
  records = metrics.read(workdir)
  if not any(record["kind"] == "train" for record in records):
    return None
  folder = pathlib.Path(workdir) / FOLDER
  folder.mkdir(exist_ok=True)
  with matplotlib.rc_context(canvas.STYLE):
    drawing = figure.Figure(figsize=(11, 4), layout="constrained")
    places = drawing.subplots(1, len(_PANELS))
    for axes, (field, name) in zip(places, _PANELS, strict=True):
      _panel(axes, records, field)
      axes.set_title(name)
      axes.set_xlabel("step")
      canvas.legend(axes, above=True)
    path = folder / "reward_model.png"
    drawing.savefig(path, metadata={"Software": None})
  return path


def _panel(axes, records: list[metrics.Record], field: str) -> None:
  for kind, label, color in (
    ("train", "training", canvas.BLUE),
    ("validation", "held out", canvas.ORANGE),
  ):
    found = [r for r in records if r["kind"] == kind and field in r]
    if found:
      steps = np.asarray([r["step"] for r in found])
      values = np.asarray([r[field] for r in found], np.float64)
      marker = "o" if kind == "validation" else ""
      axes.plot(steps, values, color=color, marker=marker, label=label)
  if field == "accuracy":
    axes.set_ylim(0, 1)
    axes.axhline(0.5, color=canvas.GREY, linestyle=":", linewidth=1)
