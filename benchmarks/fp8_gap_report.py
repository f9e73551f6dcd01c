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
    ends = self.curves[:, -1]
    late = self.curves[:, self.steps // 2 :]
    return [
      self.config,
      str(self.steps),
      self.name,
      str(len(ends)),
      _mean(ends),
      _number(np.abs(ends).max()),
      _mean(late.mean(1)),
      _number(np.abs(late).max()),
      _mean(self.validation),
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


def _order(item):
  """Smaller models first; of one model, its longest runs."""
  (config, steps), group = item
  first = next(iter(group.values()))
  return (-_SIZES.index(config) if config in _SIZES else 0, -steps, len(first))


_SIZES = ("v3_mini", "v3_tiny")


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
  """Draws every model's differences over training."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  from dsx.training import canvas

  longest: dict[str, int] = {}
  for one in found:
    longest[one.config] = max(longest.get(one.config, 0), one.steps)
  with plt.rc_context(canvas.STYLE):
    size = (5.2 * len(longest), 7.0)
    figure, all_axes = plt.subplots(
      *(2, len(longest)), figsize=size, squeeze=False, layout="constrained"
    )
    for column, (config, steps) in enumerate(longest.items()):
      own = [c for c in found if (c.config, c.steps) == (config, steps)]
      _draw(all_axes[0, column], config, own, _MAIN)
      _draw(all_axes[1, column], f"{config}, ablations", own, _ABLATIONS)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


_MAIN = {"float32": "GREEN", "fp8": "BLUE"}
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
  from dsx.training import canvas

  axes.set_title(title)
  axes.axhspan(-BAR, BAR, color=canvas.GREY, alpha=0.18, linewidth=0)
  axes.axhline(0, color=canvas.GREY, linewidth=0.8)
  for one in found:
    steps = np.arange(1, one.steps + 1)[_WARM:]
    curves = one.curves[:, _WARM:]
    if one.name == OTHER_SEED and colors is _MAIN:
      for i, curve in enumerate(curves):
        label = "bfloat16, another seed" if i == 0 else None
        axes.plot(
          steps, curve, color=canvas.ORANGE, lw=0.9, alpha=0.8, label=label
        )
    if one.name not in colors:
      continue
    color = getattr(canvas, colors[one.name])
    if colors is _MAIN:
      for curve in curves:
        axes.plot(steps, curve, color=color, linewidth=0.6, alpha=0.45)
    axes.plot(steps, curves.mean(0), color=color, label=one.name, zorder=4)
  axes.set_xlabel("step")
  axes.set_ylabel("smoothed loss against bfloat16, %")
  canvas.legend(axes)


def record(results: list[dict]) -> str:
  """Writes table and plot into docs/fp8.md; returns the table."""
  found = comparisons(results)
  plot(found, IMAGE)
  body = table(found)
  fp8_page.write("gap", body)
  return body
