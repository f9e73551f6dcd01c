"""The panels of a report, each a function from a history to its drawing.

A panel draws into a matplotlib figure or subfigure, so that it can stand alone
or among others.
"""

import math

from matplotlib import axes as mpl_axes
from matplotlib import colors
from matplotlib import figure
from matplotlib import ticker
import numpy as np

from dsx.training import canvas
from dsx.training import history

_DEPTHS = (canvas.SKY, canvas.GREEN, canvas.PURPLE, canvas.ORANGE)


def loss(sub: figure.FigureBase, run: history.History) -> None:
  """Losses of the model and of each MTP depth, and on the validation split."""
  axes = sub.subplots()
  axes.set_title("Loss")
  steps = history.steps(run.train)
  losses = history.column(run.train, "loss")
  validation = history.column(run.validation, "loss")
  shown = [losses, validation]
  canvas.curve(axes, steps, losses, canvas.BLUE, "training", zorder=4)
  if np.isfinite(validation).any():
    points = {"marker": "o", "markersize": 3.5, "linewidth": 1.2, "zorder": 5}
    at = history.steps(run.validation)
    axes.plot(at, validation, color=canvas.RED, label="validation", **points)
  depths = history.rows(run.train, "mtp_loss")
  for depth in range(depths.shape[1]):
    color = _DEPTHS[depth % len(_DEPTHS)]
    label = f"training, MTP depth {depth + 1}"
    canvas.curve(axes, steps, depths[:, depth], color, label, linewidth=1.2)
    shown.append(depths[:, depth])
  ratio = run.bits_per_nat
  if run.bigram is not None and math.isfinite(ratio):
    level = run.bigram / ratio
    label = f"bigram model, {run.bigram:.2f} bits per byte"
    axes.axhline(
      level, color=canvas.GREY, linestyle="--", linewidth=1.2, label=label
    )
    shown.append(np.asarray([level]))
  canvas.logarithmic(axes, *shown, spikes=False)
  axes.set_ylabel("nats per token")
  if math.isfinite(ratio):
    bits = axes.secondary_yaxis(
      "right",
      functions=(
        lambda y: np.asarray(y) * ratio,
        lambda y: np.asarray(y) / ratio,
      ),
    )
    bits.set_ylabel("bits per byte")
    low, high = axes.get_ylim()
    canvas.log_ticks(bits.yaxis, high / low)
  canvas.legend(axes)
  canvas.step_axis(axes, run)


def gradient_norm(sub: figure.FigureBase, run: history.History) -> None:
  """Gradient norms before clipping; skipped updates are marked."""
  axes = sub.subplots()
  axes.set_title("Gradient norm, before clipping")
  steps = history.steps(run.train)
  norms = history.column(run.train, "grad_norm")
  canvas.curve(axes, steps, norms, canvas.BLUE)
  canvas.logarithmic(axes, norms)
  skipped = np.nan_to_num(history.column(run.train, "skipped"))
  rises = steps[np.diff(skipped, prepend=0.0) > 0]
  if rises.size:
    axes.plot(
      rises,
      np.full(rises.size, 0.97),
      linestyle="none",
      marker="v",
      markersize=6,
      color=canvas.RED,
      transform=axes.get_xaxis_transform(),
      clip_on=False,
      label=f"skipped updates ({skipped.max():.0f})",
    )
    canvas.legend(axes, above=True)
  axes.set_ylabel("L2 norm of all gradients")
  canvas.step_axis(axes, run)


_SCHEDULE = {
  "learning_rate": ("learning\nrate", canvas.BLUE),
  "batch_size": ("batch size\n(sequences)", canvas.RED),
  "bias_update_speed": ("bias update\nspeed, γ", canvas.GREEN),
  "mtp_weight": ("MTP loss\nweight, λ", canvas.PURPLE),
}


def schedule(sub: figure.FigureBase, run: history.History) -> None:
  """Learning rate, batch size, gamma and lambda, one above the other."""
  all_axes = sub.subplots(len(_SCHEDULE), 1, sharex=True)
  all_axes[0].set_title("Schedule")
  for axes, field in zip(all_axes, _SCHEDULE, strict=True):
    label, color = _SCHEDULE[field]
    values = history.column(run.train, field)
    axes.plot(
      history.steps(run.train),
      values,
      color=color,
      drawstyle="default" if field == "learning_rate" else "steps-pre",
      marker="o" if len(values) < canvas.FEW_POINTS else None,
      markersize=3,
    )
    top = canvas.finite(values).max(initial=0.0) or 1.0
    axes.set_ylim(-0.06 * top, 1.12 * top)
    axes.set_yticks([0.0, top], ["0", f"{top:.3g}"])
    if not np.isfinite(values).any():
      canvas.nothing(axes)
    axes.set_ylabel(label, rotation=0, ha="right", va="center")
    canvas.step_axis(axes, run, label=axes is all_axes[-1])
  sub.align_ylabels(all_axes)


def expert_load(sub: figure.FigureBase, run: history.History) -> None:
  """The last interval's load of every expert, relative to its layer's mean."""
  axes = sub.subplots()
  axes.set_title("Expert load")
  if run.load is None:
    axes.set_xticks([])
    canvas.nothing(axes)
    return
  axes.set_title(f"Expert load at step {run.load['step']:,}")
  load = history.rows([{"row": row} for row in run.load["load"]], "row")
  top = min(max(2.0, math.ceil(canvas.finite(load).max(initial=0.0))), 4.0)
  image = axes.imshow(
    load,
    aspect="auto",
    interpolation="nearest",
    cmap="PuOr_r",
    norm=colors.TwoSlopeNorm(1.0, 0.0, top),
  )
  axes.grid(False)
  layers = [_layer_name(name) for name in run.load["layers"]]
  every = max(1, math.ceil(len(layers) / 16))
  axes.set_yticks(range(0, len(layers), every), layers[::every])
  axes.xaxis.set_major_locator(ticker.MaxNLocator(9, integer=True))
  axes.set_xlabel("expert")
  axes.set_ylabel("layer")
  bar = sub.colorbar(image, ax=axes, extend="max", pad=0.02)
  bar.set_label("tokens / mean of the layer")
  bar.set_ticks([0.0, 0.5, 1.0, *np.linspace(1.0, top, 3)[1:]])
  if load.size <= 160:
    _write_cells(axes, load, top)


def _layer_name(name: str) -> str:
  """`mtp_0` is the report's depth 1 (section 2.2)."""
  number = name.removeprefix("mtp_")
  return name if number == name else f"MTP {int(number) + 1}"


def _write_cells(axes: mpl_axes.Axes, load: np.ndarray, top: float) -> None:
  for (row, expert), value in np.ndenumerate(load):
    dark = value < 0.3 or value > 1 + 0.7 * (top - 1)
    style = {"ha": "center", "va": "center", "fontsize": 6.5}
    color = "white" if dark else "#333333"
    axes.text(expert, row, f"{value:.2f}", color=color, **style)


def max_violation(sub: figure.FigureBase, run: history.History) -> None:
  """MaxVio of every logged step: mean and maximum over the layers."""
  axes = sub.subplots()
  axes.set_title("Load imbalance, MaxVio")
  by_layer = history.rows(run.train, "max_violation_by_layer")
  if not np.isfinite(by_layer).any():
    by_layer = history.column(run.train, "max_violation")[:, None]
  known = np.isfinite(by_layer).any(axis=1)
  steps, by_layer = history.steps(run.train)[known], by_layer[known]
  worst = np.nanmax(by_layer, axis=1) if steps.size else by_layer
  mean = np.nanmean(by_layer, axis=1) if steps.size else by_layer
  canvas.curve(axes, steps, worst, canvas.ORANGE, "worst layer")
  canvas.curve(axes, steps, mean, canvas.BLUE, "mean")
  canvas.logarithmic(axes, worst, mean)
  axes.set_ylabel("largest load / mean load − 1")
  canvas.legend(axes, above=True)
  canvas.step_axis(axes, run)


def throughput(sub: figure.FigureBase, run: history.History) -> None:
  """Tokens a second; MFU and the share of time spent waiting for data."""
  rate_axes, share_axes = sub.subplots(2, 1, sharex=True)
  rate_axes.set_title("Throughput")
  steps = history.steps(run.train)
  rate = history.column(run.train, "tokens_per_second")
  canvas.curve(rate_axes, steps, rate, canvas.BLUE)
  canvas.from_zero(rate_axes, rate)
  rate_axes.set_ylabel("tokens per second")
  rate_axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
  mfu = 100 * history.column(run.train, "mfu")
  wait = 100 * history.column(run.train, "data_wait")
  canvas.curve(share_axes, steps, mfu, canvas.GREEN, "MFU")
  canvas.curve(share_axes, steps, wait, canvas.RED, "time waiting for data")
  canvas.from_zero(share_axes, np.fmax(mfu, wait))
  share_axes.set_ylabel("percent")
  canvas.legend(share_axes, above=True)
  canvas.step_axis(rate_axes, run, label=False)
  canvas.step_axis(share_axes, run)
