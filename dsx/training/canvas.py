"""How every plot looks: colours, curves, axes and legends.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. The x
axis is always finished steps; what is not finite leaves a gap.
"""

import math
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import ticker
import numpy as np

from dsx.training import history
from dsx.training import progress

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#6E6E6E"

STYLE: dict[Any, Any] = {
  "figure.dpi": 100,
  "savefig.dpi": 160,
  "savefig.facecolor": "white",
  "font.family": "DejaVu Sans",
  "font.size": 9,
  "axes.titlesize": 10,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#9A9A9A",
  "axes.labelcolor": "#333333",
  "axes.grid": True,
  "grid.color": "#E4E4E4",
  "grid.linewidth": 0.7,
  "axes.axisbelow": True,
  "xtick.color": "#555555",
  "ytick.color": "#555555",
  "legend.edgecolor": "none",
  "legend.framealpha": 0.85,
  "legend.fontsize": 8,
  "lines.linewidth": 1.5,
  "lines.solid_joinstyle": "round",
}
FEW_POINTS = 40  # below it a curve is drawn with its points
_MANY_POINTS = 150  # above it, with a running median
_LEAST_SPAN = 1.5  # of a logarithmic axis
_HALF_WINDOW = 50  # points, at most, on each side of a median


def _running_median(values: np.ndarray) -> np.ndarray:
  """The median around each point; the first is the first value itself."""
  half = min(max(4, len(values) // 50), _HALF_WINDOW)
  # Reflected in its first point, a steep descent keeps its true beginning.
  padded = np.pad(values, (half, 0), mode="reflect", reflect_type="odd")
  padded = np.pad(padded, (0, half), constant_values=np.nan)
  windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
  medians = np.full(len(values), np.nan)
  known = np.isfinite(values)
  medians[known] = np.nanmedian(windows[known], axis=1)
  return medians


def curve(
  axes: mpl_axes.Axes,
  steps: np.ndarray,
  values: np.ndarray,
  color: str,
  label: str | None = None,
  **line: Any,
) -> None:
  """Draws a curve; a noisy one as a pale line under its running median."""
  if not np.isfinite(values).any():
    return
  if len(values) > _MANY_POINTS:
    axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.6)
    values = _running_median(values)
  marker = "o" if len(values) < FEW_POINTS else None
  axes.plot(
    steps, values, color=color, label=label, marker=marker, markersize=3, **line
  )


def finite(*series: np.ndarray) -> np.ndarray:
  """All numbers of the series that are finite, flat."""
  numbers = np.concatenate([np.ravel(values) for values in series])
  return numbers[np.isfinite(numbers)]


def from_zero(axes: mpl_axes.Axes, *series: np.ndarray) -> None:
  """A y axis from 0, to a height that a few spikes cannot stretch."""
  numbers = finite(*series)
  if not numbers.size:
    nothing(axes)
    return
  top = min(numbers.max(), 1.5 * np.quantile(numbers, 0.98))
  axes.set_ylim(0.0, 1.08 * top or 1.0)


def logarithmic(
  axes: mpl_axes.Axes, *series: np.ndarray, spikes: bool = True
) -> None:
  """A logarithmic y axis around the numbers; past its top if not `spikes`."""
  numbers = finite(*series)
  numbers = numbers[numbers > 0]
  if not numbers.size:
    nothing(axes)
    return
  axes.set_yscale("log")
  low, high = numbers.min(), numbers.max()
  if not spikes:
    beginnings = [finite(values)[:1] for values in series]
    usual = 2 * np.quantile(numbers, 0.95)
    high = min(high, max(usual, finite(*beginnings).max()))
  if high / low < _LEAST_SPAN:  # a flat curve should look flat
    middle = math.sqrt(low * high)
    low, high = middle / _LEAST_SPAN**0.5, middle * _LEAST_SPAN**0.5
  room = (high / low) ** 0.06
  axes.set_ylim(low / room, high * room)
  log_ticks(axes.yaxis, high / low)


def log_ticks(axis: Any, span: float) -> None:
  """Ticks that are read at once, for an axis from x to span * x."""
  subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if span < 12 else (1, 2, 5)
  if span > 1000:
    subs = (1,)
  axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=20))
  axis.set_minor_locator(ticker.NullLocator())
  axis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))


def step_axis(
  axes: mpl_axes.Axes, run: history.History, label: bool = True
) -> None:
  """The x axis of finished steps, the same in all plots of a run."""
  last = int(history.steps(run.train + run.validation).max())
  axes.set_xlim(0, max(last, 1) * 1.02)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  axes.xaxis.set_major_formatter(
    ticker.FuncFormatter(
      lambda x, _: f"{x:,.0f}" if x < 1e5 else progress.count(x)
    )
  )
  if label:
    axes.set_xlabel("step")


def nothing(axes: mpl_axes.Axes) -> None:
  """Says in empty axes that they are empty on purpose."""
  axes.set_yticks([])
  place = {"ha": "center", "va": "center", "transform": axes.transAxes}
  axes.text(0.5, 0.5, "nothing was recorded", color=GREY, **place)


def legend(axes: mpl_axes.Axes, *, above: bool = False) -> None:
  """A legend of what was drawn, in the axes or on the line of the title."""
  handles, labels = axes.get_legend_handles_labels()
  if handles and above:
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98)}
    axes.legend(handles, labels, ncols=len(handles), borderpad=0.2, **place)
  elif handles:
    axes.legend(handles, labels, loc="upper right")
