"""The picture of a placement: what each device has to do, before and after."""

import os
import pathlib

import matplotlib
from matplotlib import axes as mpl_axes
from matplotlib import figure
import numpy as np

from dsx.training import balancing
from dsx.training import canvas

_APART = 0.17  # between before and after, of a layer's width


def write(
  balanced: balancing.Balanced, path: str | os.PathLike[str]
) -> pathlib.Path:
  """Draws the loads that a placement is held against, or was made from.

  The same placement gives the same bytes.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  shown = balanced.later or balanced.fitted
  layers = list(balanced.placement.layers)
  with matplotlib.rc_context(canvas.STYLE):
    width = min(max(7.5, 0.28 * len(layers)), 18.0)
    drawing = figure.Figure(figsize=(width, 5.6), layout="constrained")
    panels = drawing.subplots(2, 1, sharex=True)
    devices = [loads.reshape(len(layers), -1) for loads in shown]
    nodes = [loads.sum(2) for loads in shown]
    _strips(panels[0], *devices, "Work of each device")
    _strips(panels[1], *nodes, "Work of each node")
    words = "Held against" if balanced.later else "Placed by"
    drawing.supylabel(f"{words} measured loads", fontsize=8, color=canvas.GREY)
    every = max(1, len(layers) // 30)
    panels[1].set_xticks(range(0, len(layers), every), layers[::every])
    panels[1].set_xlabel("layer")
    drawing.savefig(path, metadata={"Software": None})  # it names a version
  return path


def _strips(axes: mpl_axes.Axes, before, after, title: str) -> None:
  """A dot for each device of each layer, and a bar at the busiest."""
  axes.set_title(title)
  axes.axhline(1.0, color=canvas.GREY, linewidth=0.8, zorder=1)
  for loads, side, color, label in (
    (before, -_APART, canvas.ORANGE, "as numbered"),
    (after, _APART, canvas.BLUE, "as placed"),
  ):
    mean = np.maximum(loads.mean(1, keepdims=True), 1e-12)
    share = loads / mean
    x = np.arange(len(share)) + side
    axes.plot(
      np.repeat(x, share.shape[1]),
      share.ravel(),
      linestyle="none",
      marker="o",
      markersize=2.2,
      alpha=0.45,
      color=color,
    )
    axes.plot(
      x,
      share.max(1),
      linestyle="none",
      marker="_",
      markersize=9,
      markeredgewidth=2.2,
      color=color,
      label=f"{label}: {share.max(1).mean():.2f} on average",
    )
  axes.set_ylabel("tokens / mean")
  canvas.legend(axes, above=True)
