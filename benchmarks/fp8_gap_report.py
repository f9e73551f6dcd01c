"""Table and plot of what `fp8_gap.py` has trained."""

from collections.abc import Sequence
import dataclasses
import itertools
import math
import pathlib

import numpy as np

from benchmarks import fp8_page
from benchmarks import report

IMAGE = fp8_page.PAGE.parent / "images/fp8_gap.png"
BASELINE = "bfloat16"
OTHER_SEED = "bfloat16, another seed"
BAR = 0.25  # percent, section 3.3 and appendix B.1
_COEFFICIENT = 0.9
_WARM = 20  # steps for which a plot of differences waits
# Losses of bits that are no better than chance, from a run that had learned.
_DIVERGED = 1.2
_HEADER = [
  *("model", "steps", "against bfloat16", "runs", "at the end"),
  *("largest at the end", "second half, mean", "second half, largest"),
  *("validation", "diverged"),
]


def smoothed(losses: Sequence[float]) -> np.ndarray:
  """An exponential moving average that begins with the first loss.

  >>> smoothed([1.0, 2.0]).tolist()
  [1.0, 1.1]
  """
  found, value = [], losses[0]
  for loss in losses:
    value = _COEFFICIENT * value + (1 - _COEFFICIENT) * loss
    found.append(value)
  return np.asarray(found)


def relative(losses: Sequence[float], baseline: Sequence[float]) -> np.ndarray:
  """Percent by which smoothed losses exceed those of the baseline."""
  ours, theirs = smoothed(losses), smoothed(baseline)
  return 100 * (ours - theirs) / theirs


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Runs of one precision beside the baseline's.

  Attributes:
    config: the model.
    steps: of every run.
    name: what is compared with the baseline.
    curves: percent [runs, steps].
    validation: percent [runs].
    diverged: how many runs.
  """

  config: str
  steps: int
  name: str
  curves: np.ndarray
  validation: np.ndarray
  diverged: int

  @property
  def row(self) -> list[str]:
    """The cells of the table."""
    ends, validation = self.curves[:, -1], self.validation
    late = self.curves[:, self.steps // 2 :].mean(1)
    if self.name == OTHER_SEED:  # which of two seeds is better means nothing
      ends, late, validation = map(np.abs, (ends, late, validation))
    return [
      self.config,
      str(self.steps),
      self.name,
      str(len(ends)),
      _mean(ends),
      _number(np.abs(ends).max()),
      _mean(late),
      _number(np.abs(self.curves[:, self.steps // 2 :]).max()),
      _mean(validation),
      f"{self.diverged} of {len(ends)}",
    ]


def _number(value: float) -> str:
  return f"{value:.2f}%" if math.isfinite(value) else "not finite"


def _mean(values: np.ndarray) -> str:
  """The mean and its standard error."""
  if not np.isfinite(values).all():
    return "not finite"
  mean = f"{values.mean():+.2f}%"
  if len(values) < 2:
    return mean
  error = values.std(ddof=1) / math.sqrt(len(values))
  return f"{mean} ± {error:.2f}"


def has_diverged(losses: Sequence[float]) -> bool:
  """Whether a run ended not finite, or far above what it had reached."""
  curve = smoothed(losses)
  return bool(
    not math.isfinite(curve[-1]) or curve[-1] > _DIVERGED * min(curve)
  )


def comparisons(results: list[dict]) -> list[Comparison]:
  """All precisions beside the baseline of the same model, steps and seed.

  Args:
    results: lines of results.jsonl.

  Returns:
    Them, in the order in which the results name them; behind the others of
    its model the baseline against itself with another seed.
  """
  runs: dict[tuple[str, int], dict[str, dict[int, dict]]] = {}
  for r in results:
    group = runs.setdefault((r["config"], r["steps"]), {})
    group.setdefault(r["precision"], {})[r["seed"]] = r
  found = []
  for (config, steps), group in sorted(runs.items(), key=_order):
    base = group.get(BASELINE, {})
    pairs = {
      name: [(r, base[seed]) for seed, r in sorted(own.items()) if seed in base]
      for name, own in group.items()
      if name != BASELINE
    }
    pairs[OTHER_SEED] = list(itertools.combinations(base.values(), 2))
    for name, each in pairs.items():
      if each:
        found.append(_comparison(config, steps, name, each))
  return found


def _order(item) -> tuple:
  """Larger models last, before them slower ones; of one its longest runs."""
  (config, steps), _ = item
  name, _, slower = config.partition("/")
  return name in _LARGER, slower, -steps


_LARGER = ("v3_mini",)


def _comparison(config, steps, name, pairs) -> Comparison:
  return Comparison(
    config=config,
    steps=steps,
    name=name,
    curves=np.stack([relative(a["loss"], b["loss"]) for a, b in pairs]),
    validation=np.asarray(
      [100 * (a["validation"] / b["validation"] - 1) for a, b in pairs]
    ),
    diverged=sum(has_diverged(a["loss"]) for a, _ in pairs),
  )


def table(found: list[Comparison]) -> str:
  """All comparisons as one table."""
  return report.table(_HEADER, [comparison.row for comparison in found])


def plot(found: list[Comparison], path: pathlib.Path) -> None:
  """Draws every model's differences over training, and its ablations'."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  from dsx.training import canvas

  panels = _panels(found)
  columns = min(2, len(panels))
  lines = -(-len(panels) // columns)
  with plt.rc_context(canvas.STYLE):
    size = (5.2 * columns, 3.4 * lines)
    figure, grid = plt.subplots(
      *(lines, columns), figsize=size, squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
      axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
      _draw(axes, *panel)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _panels(found: list[Comparison]) -> list[tuple]:
  """(title, comparisons, colours): the longest runs of a model, ablations."""
  groups: dict[tuple[str, int], list[Comparison]] = {}
  for one in found:
    groups.setdefault((one.config, one.steps), []).append(one)
  panels, drawn = [], set()
  for (config, steps), own in groups.items():
    title = f"{config}, {steps} steps"
    if config not in drawn:
      panels.append((title, own, _MAIN))
      drawn.add(config)
    if any(c.name in _ABLATIONS and c.name != "fp8" for c in own):
      panels.append((f"{title}: ablations, means", own, _ABLATIONS))
  return panels


_MAIN = {OTHER_SEED: "ORANGE", "float32": "GREEN", "fp8": "BLUE"}
_ABLATIONS = {
  "fp8": "BLUE",
  "fp8_power_of_two": "SKY",
  "fp8_per_tensor": "ORANGE",
  "fp8_block_activations": "PURPLE",
  "fp8_block_gradients": "RED",
  "fp8_e5m2_gradients": "GREEN",
  "fp8_no_promotion": "GREY",
}


def _draw(axes, title: str, found: list[Comparison], colors: dict) -> None:
  """One panel; each run is a thin line where the colours are `_MAIN`."""
  from dsx.training import canvas

  axes.set_title(title)
  axes.axhspan(-BAR, BAR, color=canvas.GREY, alpha=0.18, linewidth=0)
  axes.axhline(0, color=canvas.GREY, linewidth=0.8)
  for one in sorted(found, key=lambda c: c.name != OTHER_SEED):
    if one.name not in colors:
      continue
    color = getattr(canvas, colors[one.name])
    steps = np.arange(1, one.steps + 1)[_WARM:]
    curves = one.curves[:, _WARM:]
    if colors is _MAIN:
      axes.plot(steps, curves.T, color=color, linewidth=0.6, alpha=0.5)
    # The sign of a difference between seeds means nothing, nor does its mean.
    shown = curves[0] if one.name == OTHER_SEED else curves.mean(0)
    width = 0.6 if one.name == OTHER_SEED else 1.7
    axes.plot(steps, shown, color=color, label=one.name, linewidth=width)
  low, high = axes.get_ylim()
  room = 0.12 + 0.08 * -(-len(axes.get_legend_handles_labels()[0]) // 2)
  axes.set_ylim(low, high + room * (high - low))
  axes.legend(loc="upper left", ncols=2)
  axes.set_xlim(0)
  axes.set_xlabel("step")
  axes.set_ylabel("smoothed loss against bfloat16, %")


def record(results: list[dict]) -> str:
  """Writes table and plot into docs/fp8.md; returns the table."""
  found = comparisons(results)
  plot(found, IMAGE)
  body = table(found)
  fp8_page.write("gap", body)
  return body
