"""The plot of a sweep: the metric over each varied value, and all curves."""

from collections.abc import Sequence
import math
import os
import pathlib
from typing import Any

import matplotlib
from matplotlib import figure
from matplotlib import ticker
import numpy as np

from dsx.training import canvas
from dsx.training import history
from experiments.sweeping import table
from experiments.sweeping import trial as trial_lib

_FEW = 6  # values that an axis can name one by one
_MANY = 12  # curves that a legend can still tell apart
_SPAN = 8.0  # from which on values lie on a logarithmic axis
_COLORS = "viridis"


def write(
  found: Sequence[table.Row],
  metric: str,
  trials: pathlib.Path,
  path: pathlib.Path,
) -> bool:
  """Draws the finished trials.

  Args:
    found: all trials.
    metric: what is compared.
    trials: the folder of their folders.
    path: of the picture.

  Returns:
    Whether there was anything to draw.
  """
  done = [row for row in found if math.isfinite(row.number(metric))]
  if not done:
    return False
  names = table.headings([row.trial for row in done])
  columns = min(len(names) + 1, 3)
  lines = -(-(len(names) + 1) // columns)
  with matplotlib.rc_context(canvas.STYLE):
    drawing = figure.Figure(
      figsize=(5.0 * columns, 3.8 * lines), layout="constrained"
    )
    axes = np.ravel(drawing.subplots(lines, columns, squeeze=False))
    for one, (key, name) in zip(axes, names.items(), strict=False):
      _effect(one, done, metric, key, name)
    _curves(axes[len(names)], done, metric, trials)
    for one in axes[len(names) + 1 :]:
      one.set_axis_off()
    partial = path.with_name(f"{path.name}.partial")
    drawing.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)
  return True


def _effect(
  axes, done: Sequence[table.Row], metric: str, key: str, name: str
) -> None:
  """The metric over one varied value; a line through the means."""
  values = [_value(row.trial, key) for row in done]
  metrics = np.asarray([row.number(metric) for row in done])
  axes.set_title(name)
  axes.set_xlabel(name)
  axes.set_ylabel(metric.replace("_", " "))
  numeric = all(type(value) in (int, float) for value in values)
  if numeric:
    places = np.asarray(values, np.float64)
    low, high = places.min(), places.max()
    if low > 0 and high / low >= _SPAN:
      axes.set_xscale("log")
    if len(set(places)) <= _FEW:
      axes.set_xticks(sorted(set(places)))
      axes.xaxis.set_minor_locator(ticker.NullLocator())
      axes.xaxis.set_major_formatter(ticker.FuncFormatter(_plain))
  else:
    labels = sorted({str(value) for value in values})
    places = np.asarray([labels.index(str(value)) for value in values], float)
    axes.set_xticks(range(len(labels)), [_cut(label) for label in labels])
  axes.plot(places, metrics, "o", color=canvas.BLUE, alpha=0.6, markersize=4)
  at = np.unique(places)
  if len(at) < len(places):  # several trials a value: a mean says something
    means = [metrics[places == place].mean() for place in at]
    axes.plot(at, means, color=canvas.ORANGE, label="mean")
    axes.legend()


def _value(trial: trial_lib.Trial, key: str) -> Any:
  return next(c.value for c in trial.choices if c.key == key)


def _curves(
  axes, done: Sequence[table.Row], metric: str, trials: pathlib.Path
) -> None:
  """Loss of every trial over its steps, the best one darkest."""
  ranked = sorted(done, key=lambda row: row.number(metric))
  colors = matplotlib.colormaps[_COLORS](np.linspace(0, 0.9, len(ranked)))
  runs = [history.read(trials / row.name) for row in ranked]
  # One validation, at the end, is no curve.
  validated = all(len(run.validation) > 1 for run in runs)
  for row, color, run in zip(ranked, colors, runs, strict=True):
    records = run.validation if validated else run.train
    losses = history.column(records, "loss")
    axes.plot(
      history.steps(records),
      losses,
      color=color,
      linewidth=1.2,
      label=_cut(row.trial.label(), 40),
    )
  axes.set_title("Validation" if validated else "Training")
  axes.set_xlabel("step")
  axes.set_ylabel("nats per token")
  if len(ranked) <= _MANY:
    axes.legend(fontsize=7)


def _plain(value: float, unused_position: int) -> str:
  return f"{value:g}"


def _cut(text: str, most: int = 16) -> str:
  # A dollar would begin matplotlib's mathematics.
  text = text if len(text) <= most else text[: most - 1] + "…"
  return text.replace("$", r"\$")
