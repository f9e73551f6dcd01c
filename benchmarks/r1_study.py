"""DeepSeek-R1's tiny road with several seeds: what each stage brings.

  python benchmarks/r1_study.py [--seeds 3] [--parallel 3] [--record]

Goes the road of gin_configs/rl/r1_tiny.gin once for every seed, in folders
below --work, where finished stages stay finished: the script can be stopped and
started. --parallel goes several roads at a time. --record writes tables,
pictures and completions of what is there into docs/r1.md.
"""

import argparse
import concurrent.futures
import datetime
import json
import math
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import matplotlib
from matplotlib import figure
import numpy as np

from benchmarks import report
from dsx.evals import estimates
from dsx.training import canvas
from dsx.training import metrics

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_ROAD = "gin_configs/rl/r1_tiny.gin"
_PAGE = _ROOT / "docs" / "r1.md"
_PICTURES = _ROOT / "docs" / "images"
_BEGIN = "<!-- study: written by benchmarks/r1_study.py --record -->"
_END = "<!-- /study -->"
_TASKS = ("addition", "countdown")
_COLORS = (canvas.BLUE, canvas.ORANGE, canvas.GREEN, canvas.PURPLE)
# Reinforcement learning by stage, and the titles of the panels.
_LEARNING = {"zero": "R1-Zero", "rl1": "RL-1", "rl2": "RL-2"}
_SHOWN = 4  # problems whose completions go into the page


def _go(folder: pathlib.Path, seed: int) -> float:
  """Goes a road to its end; returns the seconds that this took."""
  folder.mkdir(parents=True, exist_ok=True)
  began = time.monotonic()
  with (folder / "road.log").open("ab") as log:
    code = subprocess.run(
      [
        sys.executable,
        "-m",
        "experiments.r1",
        f"--gin_file={_ROAD}",
        f"--seed={seed}",
        f"--workdir={folder}",
      ],
      cwd=_ROOT,
      stdout=log,
      stderr=subprocess.STDOUT,
      check=False,
    ).returncode
  if code:
    raise SystemExit(f"seed {seed} ended with exit code {code}: see {log.name}")
  seconds = time.monotonic() - began
  print(f"seed {seed}: done, {seconds:.0f} s", flush=True)
  return seconds


class _Road:
  """What one road has left."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    lineage = folder / "report" / "lineage.json"
    self.stages = json.loads(lineage.read_text())

  def named(self, label: str) -> dict:
    return next(s for s in self.stages if s["stage"] == label)

  def score(self, stage: str) -> dict:
    folder = self.named(f"{stage}, evaluated")["folder"]
    path = self.folder / "evaluations" / folder / "summary.json"
    return json.loads(path.read_text())

  def workdir(self, stage: str) -> pathlib.Path:
    return self.folder / "stages" / self.named(stage)["folder"]

  @property
  def evaluated(self) -> list[str]:
    end = ", evaluated"
    return [
      s["stage"].removesuffix(end)
      for s in self.stages
      if s["stage"].endswith(end)
    ]

  @property
  def seconds(self) -> float:
    return sum(s["seconds"] for s in self.stages)


def _titles(road: _Road) -> dict[str, str]:
  """Titles of stages, in the table that the road itself wrote."""
  lines = (road.folder / "report" / "stages.md").read_text().splitlines()[2:]
  titles = [line.split("|")[1].strip() for line in lines]
  names = [s["stage"] for s in road.stages if ", " not in s["stage"]]
  return dict(zip(names, titles, strict=True))


def _stages(roads: list[_Road]) -> str:
  """Accuracy by stage: the mean over seeds, and each seed."""
  titles = _titles(roads[0])
  header = ["stage"]
  header += [f"{task}, pass@1" for task in _TASKS]
  header += ["each seed", "pass@16", "cons@16", "tokens"]
  rows = []
  for stage in roads[0].evaluated:
    scores = [road.score(stage) for road in roads]
    row = [titles[stage]]
    for task in _TASKS:
      values = [s[f"accuracy_{task}"] for s in scores]
      row.append(_mean(values))
    row.append(
      ", ".join(
        "/".join(f"{s[f'accuracy_{task}']:.2f}" for task in _TASKS)
        for s in scores
      )
    )
    row += [_mean([s[name] for s in scores]) for name in ("pass_k", "cons_k")]
    row.append(f"{np.mean([s['length'] for s in scores]):.0f}")
    rows.append(row)
  return report.table(header, rows)


def _mean(values: list[float]) -> str:
  """The mean with its range over seeds."""
  return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _interval(score: dict, name: str) -> str:
  """A number with its interval over problems."""
  low, high = score[f"{name}_low"], score[f"{name}_high"]
  return f"{score[name]:.3f} [{low:.3f}, {high:.3f}]"


def _gains(roads: list[_Road]) -> str:
  """What reinforcement learning brings, with intervals over problems."""
  header = ["seed", "task", "cold start", "RL-1", "gain", "times"]
  rows = []
  for number, road in enumerate(roads):
    before, after = road.score("cold_start"), road.score("rl1")
    for task in _TASKS:
      name = f"accuracy_{task}"
      x, y = before[name], after[name]
      rows.append(
        [
          str(number),
          task,
          _interval(before, name),
          _interval(after, name),
          f"{y - x:+.3f}",
          f"{y / x:.1f}" if x else "",
        ]
      )
  for task in _TASKS:
    name = f"accuracy_{task}"
    gains = [r.score("rl1")[name] - r.score("cold_start")[name] for r in roads]
    interval = estimates.bootstrap(gains)
    rows.append(
      [
        "all",
        task,
        "",
        "",
        f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]",
        "",
      ]
    )
  return report.table(header, rows)


def _times(roads: list[_Road]) -> str:
  """Seconds of the stages."""
  header = ["seed", "all", *roads[0].evaluated, "evaluations", "the rest"]
  rows = []
  for number, road in enumerate(roads):
    seconds = {s["stage"]: s["seconds"] for s in road.stages}
    shown = [seconds[name] for name in roads[0].evaluated]
    evaluations = sum(v for k, v in seconds.items() if ", " in k)
    rest = road.seconds - sum(shown) - evaluations
    rows.append(
      [
        str(number),
        *(f"{x:.0f}" for x in (road.seconds, *shown, evaluations, rest)),
      ]
    )
  return report.table(header, rows)


def _draw_stages(roads: list[_Road], path: pathlib.Path) -> None:
  titles, stages = _titles(roads[0]), roads[0].evaluated
  with matplotlib.rc_context(canvas.STYLE):
    drawing = figure.Figure(figsize=(9.5, 4.6), layout="constrained")
    axes = drawing.subplots()
    places = np.arange(len(stages))
    for task, color in zip(_TASKS, _COLORS, strict=False):
      values = np.asarray(
        [[road.score(s)[f"accuracy_{task}"] for s in stages] for road in roads]
      )
      axes.plot(places, values.mean(0), "o-", color=color, label=task)
      for row in values:
        axes.plot(places, row, color=color, linewidth=0.8, alpha=0.5)
    axes.set_xticks(places, [titles[s] for s in stages], rotation=15)
    axes.set_ylim(0, 1)
    axes.set_ylabel("held-out accuracy (pass@1)")
    axes.set_title(f"Accuracy by stage, {len(roads)} seeds and their mean")
    canvas.legend(axes, above=True)
    drawing.savefig(path, metadata={"Software": None})


def _draw_learning(roads: list[_Road], path: pathlib.Path) -> None:
  """Reward, entropy and length over the steps of each RL stage."""
  fields = (("pass_1", "share of right answers"), ("entropy", "entropy, nats"))
  fields += (("length", "tokens of an answer"),)
  with matplotlib.rc_context(canvas.STYLE):
    drawing = figure.Figure(figsize=(13, 9), layout="constrained")
    grid = drawing.subplots(len(fields), len(_LEARNING), squeeze=False)
    for column, (stage, title) in enumerate(_LEARNING.items()):
      runs = [
        [
          r
          for r in metrics.read(road.workdir(stage))
          if r["kind"] == "reinforcement"
        ]
        for road in roads
      ]
      for row, (field, label) in enumerate(fields):
        axes = grid[row][column]
        for number, records in enumerate(runs):
          steps = [r["step"] for r in records]
          values = [r.get(field, math.nan) for r in records]
          axes.plot(
            steps,
            _smoothed(values),
            color=_COLORS[number % len(_COLORS)],
            label=f"seed {number}",
          )
        axes.set_ylim(bottom=0)
        if not row:
          axes.set_title(title)
          canvas.legend(axes)
        if not column:
          axes.set_ylabel(label)
        if row + 1 == len(fields):
          axes.set_xlabel("step")
    drawing.savefig(path, metadata={"Software": None})


def _smoothed(values: list[float], keep: float = 0.8) -> list[float]:
  """An exponential moving average."""
  found: list[float] = []
  for value in values:
    before = found[-1] if found else value
    found.append(keep * before + (1 - keep) * value)
  return found


def _completions(road: _Road) -> str:
  """The first problems' answers before and after R1-Zero."""
  text = (road.workdir("zero") / "completions.md").read_text()
  _, *parts = text.split("\n> ")
  return "\n".join(f"> {part.rstrip()}\n" for part in parts[:_SHOWN])


def _record(roads: list[_Road]) -> None:
  _PICTURES.mkdir(exist_ok=True)
  _draw_stages(roads, _PICTURES / "r1_stages.png")
  _draw_learning(roads, _PICTURES / "r1_learning.png")
  today = datetime.date.today().isoformat()
  body = "\n\n".join(
    [
      f"{today}, {report.processor()}, commit {report.commit()},"
      f" {len(roads)} seeds.",
      _stages(roads),
      "![Accuracy by stage](images/r1_stages.png)",
      "What reinforcement learning brings (RL-1, from the cold start):",
      _gains(roads),
      "![Reinforcement learning](images/r1_learning.png)",
      "Seconds, start of processes and compilation included:",
      _times(roads),
      "Answers to held-out problems before and after R1-Zero, first seed:",
      _completions(roads[0]),
    ]
  )
  text = _PAGE.read_text()
  before, _, rest = text.partition(_BEGIN)
  _, _, after = rest.partition(_END)
  _PAGE.write_text(f"{before}{_BEGIN}\n\n{body}\n{_END}{after}")
  print(f"written: {_PAGE}")


def main():
  """Goes the roads, prints the tables and, if asked, records them."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--work", default="runs/r1_study")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--parallel", type=int, default=1)
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args()
  work = pathlib.Path(flags.work).absolute()
  folders = [work / f"seed_{seed}" for seed in range(flags.seeds)]
  with concurrent.futures.ThreadPoolExecutor(flags.parallel) as threads:
    jobs = [
      threads.submit(_go, folder, seed) for seed, folder in enumerate(folders)
    ]
    for job in jobs:
      job.result()
  roads = [_Road(folder) for folder in folders]
  for table in (_stages(roads), _gains(roads), _times(roads)):
    print(table, end="\n\n")
  if flags.record:
    _record(roads)


if __name__ == "__main__":
  main()
