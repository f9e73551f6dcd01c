"""The panels of a report on reinforcement learning.

Each is a function from a run's records to its drawing, in a figure or a part
of one. Alarms are lines across every panel, with the rule's name in the first.
"""

import dataclasses

from matplotlib import axes as mpl_axes
from matplotlib import figure
import numpy as np

from dsx.training import canvas
from dsx.training import history
from dsx.training import metrics

_PARTS = (
  ("reward", canvas.BLUE),
  ("reward_accuracy", canvas.GREEN),
  ("reward_format", canvas.ORANGE),
  ("reward_language", canvas.PURPLE),
  ("reward_preference", canvas.RED),
  ("reward_length", canvas.SKY),
  ("reward_overlong", canvas.SKY),
  ("reward_repetition", canvas.GREY),
)
_PHASES = (
  ("seconds_generate", "generate", canvas.BLUE),
  ("seconds_score", "score", canvas.ORANGE),
  ("seconds_recompute", "recompute", canvas.SKY),
  ("seconds_update", "update", canvas.GREEN),
)


@dataclasses.dataclass(frozen=True)
class Records:
  """What was recorded, in order of steps.

  Attributes:
    steps: records of kind `reinforcement`.
    examinations: of kind `reasoning`.
    alarms: of kind `alarm`.
  """

  steps: list[metrics.Record]
  examinations: list[metrics.Record]
  alarms: list[metrics.Record]

  @property
  def history(self) -> history.History:
    """As far as axes are concerned."""
    return history.History(train=self.steps, validation=self.examinations)


def accuracy(sub: figure.FigureBase, run: Records) -> None:
  """Held-out pass@1 with its interval, pass@k and cons@k."""
  axes = sub.subplots()
  axes.set_title("Right answers")
  training = history.column(run.steps, "pass_1")
  at = history.steps(run.steps)
  axes.plot(at, training, color=canvas.BLUE, alpha=0.3, linewidth=0.7)
  found = run.examinations
  if found:
    steps, k = history.steps(found), found[-1]["k"]
    points = {"marker": "o", "markersize": 3, "linewidth": 1.4}
    low, high = (
      history.column(found, name) for name in ("pass_1_low", "pass_1_high")
    )
    axes.fill_between(steps, low, high, color=canvas.BLUE, alpha=0.15)
    for field, label, color in (
      ("pass_1", "held out, pass@1", canvas.BLUE),
      ("cons_k", f"cons@{k}", canvas.GREEN),
      ("pass_k", f"pass@{k}", canvas.ORANGE),
    ):
      if k > 1 or field == "pass_1":
        values = history.column(found, field)
        axes.plot(steps, values, color=color, label=label, **points)
  axes.set_ylim(0.0, 1.02)
  axes.set_ylabel("share of answers or problems")
  _finish(axes, run, names=True)


def reward(sub: figure.FigureBase, run: Records) -> None:
  """The reward in training, and its parts before their weights."""
  axes = sub.subplots()
  axes.set_title("Reward in training")
  at = history.steps(run.steps)
  for field, color in _PARTS:
    values = history.column(run.steps, field)
    label = field.removeprefix("reward_").replace("reward", "total")
    canvas.curve(axes, at, values, color, label)
  axes.set_ylabel("mean over answers")
  _finish(axes, run)


def entropy(sub: figure.FigureBase, run: Records) -> None:
  """Entropy of the policy, and its divergence from the reference."""
  above, below = sub.subplots(2, 1, sharex=True)
  above.set_title("Entropy, and divergence from the reference")
  at = history.steps(run.steps)
  values = history.column(run.steps, "entropy")
  canvas.curve(above, at, values, canvas.BLUE)
  canvas.from_zero(above, values)
  above.set_ylabel("nats per token")
  values = history.column(run.steps, "kl")
  canvas.curve(below, at, values, canvas.PURPLE)
  canvas.from_zero(below, values)
  renewed = np.diff(history.column(run.steps, "reference_step"), prepend=0) > 0
  for step in at[renewed]:
    below.axvline(step, color=canvas.GREY, linewidth=0.8, linestyle=":")
  below.set_ylabel("KL (k3), nats")
  _finish(above, run, label=False)
  _finish(below, run)


def length(sub: figure.FigureBase, run: Records) -> None:
  """How long answers are, how many have no room, how much they repeat."""
  above, below = sub.subplots(2, 1, sharex=True)
  above.set_title("Length of answers")
  at = history.steps(run.steps)
  mean = history.column(run.steps, "length")
  canvas.curve(above, at, mean, canvas.BLUE, "mean")
  longest = history.column(run.steps, "longest")
  canvas.curve(above, at, longest, canvas.GREY, "longest", linewidth=1.0)
  canvas.from_zero(above, np.concatenate([mean, longest]))
  above.set_ylabel("tokens")
  for field, color in (
    ("truncated", canvas.RED),
    ("repetition", canvas.ORANGE),
  ):
    canvas.curve(below, at, history.column(run.steps, field), color, field)
  below.set_ylim(0.0, 1.02)
  below.set_ylabel("share")
  _finish(above, run, label=False)
  _finish(below, run)


def groups(sub: figure.FigureBase, run: Records) -> None:
  """How many groups of answers teach something."""
  axes = sub.subplots()
  axes.set_title("Groups of answers to one problem")
  at = history.steps(run.steps)
  right, wrong, equal = (
    history.column(run.steps, name)
    for name in ("all_right", "all_wrong", "zero_std")
  )
  axes.stackplot(
    at,
    np.nan_to_num(right),
    np.nan_to_num(1.0 - right - wrong),
    np.nan_to_num(wrong),
    labels=["all right", "mixed", "all wrong"],
    colors=[canvas.GREEN, "#DCE6EC", canvas.ORANGE],
    alpha=0.6,
  )
  axes.plot(at, equal, color=canvas.RED, linewidth=1, label="equal rewards")
  axes.set_ylim(0.0, 1.0)
  axes.set_ylabel("share of groups")
  _finish(axes, run)


def mismatch(sub: figure.FigureBase, run: Records) -> None:
  """How far the sampler's log-probabilities are from the trainer's."""
  axes = sub.subplots()
  axes.set_title("Sampler against trainer")
  at = history.steps(run.steps)
  mean, most = (
    history.column(run.steps, f"mismatch_{name}") for name in ("mean", "max")
  )
  canvas.curve(axes, at, most, canvas.RED, "largest of any token")
  canvas.curve(axes, at, mean, canvas.BLUE, "mean over tokens")
  canvas.logarithmic(axes, mean, most)
  axes.set_ylabel("|difference|, nats")
  _finish(axes, run)


def update(sub: figure.FigureBase, run: Records) -> None:
  """Gradients, and tokens whose ratio was cut off."""
  above, below = sub.subplots(2, 1, sharex=True)
  above.set_title("Updates")
  at = history.steps(run.steps)
  norms = history.column(run.steps, "grad_norm")
  canvas.curve(above, at, norms, canvas.BLUE)
  canvas.logarithmic(above, norms)
  above.set_ylabel("gradient norm")
  clipped = history.column(run.steps, "clipped")
  canvas.curve(below, at, clipped, canvas.ORANGE)
  canvas.from_zero(below, clipped)
  below.set_ylabel("clipped tokens, share")
  _finish(above, run, label=False)
  _finish(below, run)


def time(sub: figure.FigureBase, run: Records) -> None:
  """What the seconds of a step go into."""
  axes = sub.subplots()
  axes.set_title("Time of a step")
  at = history.steps(run.steps)
  phases = [
    np.nan_to_num(history.column(run.steps, field)) for field, _, _ in _PHASES
  ]
  axes.stackplot(
    at,
    *phases,
    labels=[label for _, label, _ in _PHASES],
    colors=[color for _, _, color in _PHASES],
    alpha=0.75,
  )
  canvas.from_zero(axes, np.sum(phases, axis=0))  # compiling is no step
  axes.set_ylabel("seconds")
  _finish(axes, run)


def _finish(
  axes: mpl_axes.Axes, run: Records, *, label: bool = True, names: bool = False
) -> None:
  """Axes of steps, alarms and a legend."""
  canvas.step_axis(axes, run.history, label)
  for alarm in run.alarms:
    axes.axvline(
      alarm["step"], color=canvas.RED, linestyle="--", linewidth=1.0, zorder=6
    )
    if names:
      axes.text(
        alarm["step"],
        0.02,
        f" {alarm['rule']}",
        color=canvas.RED,
        fontsize=7.5,
        rotation=90,
        ha="right",
        va="bottom",
        transform=axes.get_xaxis_transform(),
      )
  handles, labels = axes.get_legend_handles_labels()
  if handles:
    axes.legend(handles, labels, loc="best", fontsize=7.5)
