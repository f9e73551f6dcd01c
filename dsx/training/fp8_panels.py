"""The panel of a run with FP8: what it loses, where, and where its scales lie.

Above, the last record by layer and matrix; below, the worst layer over the
run. Floors of the axes are fixed, so that runs compare at a glance; a share
below the floor, zero as well, is drawn on it.
"""

from matplotlib import axes as mpl_axes
from matplotlib import colors
from matplotlib import figure
from matplotlib import ticker
import numpy as np

from dsx.training import canvas
from dsx.training import history
from dsx.training import metrics

# As in `ops/fp8_probe.py`, which would bring JAX along.
_TENSORS = {
  "activation": ("activations", canvas.BLUE),
  "weight": ("weights", canvas.GREEN),
  "gradient": ("gradients", canvas.RED),
}
_FLOOR = 1e-7
_FULL = 0.1  # where the colours end
_MOST_TICKS = 24


def fp8(sub: figure.FigureBase, run: history.History) -> None:
  """Underflow by layer and matrix, and worst losses and scales over steps."""
  above, below = np.asarray(sub.subfigures(2, 1, height_ratios=(1.35, 1.0)))
  _heat_maps(above, run.fp8[-1] if run.fp8 else {})
  underflow, saturated, scales = below.subplots(1, 3)
  underflow.set_title("Underflow, worst layer")
  _worst(underflow, run, "underflow")
  saturated.set_title("Saturation, worst layer")
  _worst(saturated, run, "saturated")
  scales.set_title("Scales of tiles")
  _scales(scales, run)
  handles, labels = scales.get_legend_handles_labels()
  if handles:
    below.legend(handles, labels, loc="outside lower center", ncols=3)


def _heat_maps(sub: figure.FigureBase, record: metrics.Record) -> None:
  all_axes = sub.subplots(1, len(_TENSORS), sharey=True)
  names = [name.partition("/") for name in record.get("layers", ())]
  layers = list(dict.fromkeys(layer for layer, _, _ in names))
  matrices = list(dict.fromkeys(_short(matrix) for _, _, matrix in names))
  image = None
  for axes, (tensor, (words, _)) in zip(
    all_axes, _TENSORS.items(), strict=True
  ):
    axes.grid(False)
    axes.set_title(f"Underflow of {words}")
    if not names:
      canvas.nothing(axes)
      continue
    shares = np.full((len(layers), len(matrices)), np.nan)
    broken = np.zeros(shares.shape, bool)
    for row, (layer, _, matrix) in enumerate(names):
      place = layers.index(layer), matrices.index(_short(matrix))
      shares[place] = max(record[f"{tensor}_underflow"][row], _FLOOR)
      broken[place] = record[f"{tensor}_not_finite"][row] > 0
    image = axes.imshow(
      shares,
      aspect="auto",
      interpolation="nearest",
      cmap="YlOrRd",
      norm=colors.LogNorm(_FLOOR, _FULL),
    )
    _mark(axes, broken)
    axes.set_xticks(range(len(matrices)), matrices, rotation=90, fontsize=7)
    every = -(-len(layers) // _MOST_TICKS)
    labels = [_layer(name) for name in layers[::every]]
    axes.set_yticks(range(0, len(layers), every), labels, fontsize=7)
  all_axes[0].set_ylabel(f"layer, at step {record.get('step', 0):,}")
  if image is not None:
    bar = sub.colorbar(image, ax=all_axes, extend="max", pad=0.01, aspect=25)
    bar.set_label("share of nonzero values")


def _mark(axes: mpl_axes.Axes, broken: np.ndarray) -> None:
  """Crosses where a tensor had values that were not finite."""
  rows, columns = np.nonzero(broken)
  if rows.size:
    style = {"marker": "x", "color": canvas.BLUE, "s": 22, "clip_on": False}
    axes.scatter(columns, rows, label="not finite", **style)
    canvas.legend(axes, above=True)


def _short(matrix: str) -> str:
  """`mlp/shared_experts/gate_proj` is `shared gate`."""
  *places, last = matrix.split("/")
  kept = [p.removesuffix("_experts") for p in places if p.endswith("experts")]
  return " ".join([*kept, last.split("_proj")[0]])


def _layer(name: str) -> str:
  number = name.removeprefix("mtp_")
  return name if number == name else f"MTP {int(number) + 1}"


def _worst(axes: mpl_axes.Axes, run: history.History, field: str) -> None:
  """The largest share of any layer, for each kind of tensor."""
  steps = history.steps(run.fp8)
  drawn = []
  for tensor, (words, color) in _TENSORS.items():
    shares = history.rows(run.fp8, f"{tensor}_{field}")
    worst = np.clip(_over_layers(np.nanmax, shares), _FLOOR, 1.0)
    canvas.curve(axes, steps, worst, color, words)
    drawn.append(worst)
  if not canvas.finite(*drawn).size:
    canvas.nothing(axes)
    return
  axes.set_yscale("log")
  axes.set_ylim(_FLOOR / 1.5, 1.5)
  canvas.log_ticks(axes.yaxis, 1.0 / _FLOOR)
  axes.yaxis.set_major_formatter(ticker.LogFormatterMathtext())
  axes.set_ylabel("share of nonzero values")
  canvas.step_axis(axes, run)


def _scales(axes: mpl_axes.Axes, run: history.History) -> None:
  """Smallest, median and largest scale over all layers, by kind of tensor."""
  steps = history.steps(run.fp8)
  drawn = []
  for tensor, (words, color) in _TENSORS.items():
    low, middle, high = (
      _over_layers(over, history.rows(run.fp8, f"{tensor}_scale_{name}"))
      for over, name in (
        (np.nanmin, "min"),
        (np.nanmedian, "median"),
        (np.nanmax, "max"),
      )
    )
    thin = {"linewidth": 0.7, "linestyle": ":", "marker": "_"}
    for edge in (low, high):
      axes.plot(steps, edge, color=color, **thin)
    axes.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
    canvas.curve(axes, steps, middle, color, words)
    drawn += [low, high]
  if not canvas.finite(*drawn).size:
    canvas.nothing(axes)
    return
  axes.yaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  axes.set_ylabel("log2(scale): range and median")
  canvas.step_axis(axes, run)


def _over_layers(over, values: np.ndarray) -> np.ndarray:
  """[records] of [records, layers], NaN where nothing was measured."""
  known = np.isfinite(values).any(axis=1)
  result = np.full(len(values), np.nan)
  if known.any():
    result[known] = over(values[known], axis=1)
  return result
