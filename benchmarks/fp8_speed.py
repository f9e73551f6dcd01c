"""How much longer a training step takes when FP8 is emulated.

  python benchmarks/fp8_speed.py [--rounds 5] [--record]

Compiles the training step of two models in bfloat16 and with the FP8 recipe,
and lets both take turns in one process, so that whatever else the machine does
falls on both: the ratio of a round says more than its times. On a machine with
other work threads wait for each other, and the faster a step is the more; so
processor time is compared as well. --record appends the tables to
docs/benchmarks.md.
"""

import argparse
from collections.abc import Sequence
import pathlib
import statistics
import sys
import time
from typing import NamedTuple
from typing import Protocol

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import fp8_gap
from benchmarks import gpu_step
from benchmarks import report
from dsx.ops import platforms

BAR = 3.0  # times the bfloat16 step
_BASELINE = "bfloat16"
_HEADER = [
  *("model", "round", "bfloat16 ms", "FP8 ms", "ratio"),
  *("bfloat16 CPU ms", "FP8 CPU ms", "CPU ratio"),
]


class Side(Protocol):
  """Something that takes training steps."""

  def steps(self, count: int) -> float:
    """Takes steps; returns once they are done."""
    ...


def prepare(config: str, precision: str) -> gpu_step.Training:
  """A compiled step of one model, with its state and a batch of drawn tokens.

  Args:
    config: name of a run's gin file.
    precision: as in `fp8_gap.Setting`.
  """
  from dsx.training import host_memory

  if platforms.target() == "cpu":
    host_memory.keep_freed()
  run = fp8_gap.build(fp8_gap.Setting(config, precision, steps=1))
  shape = (run.micro_batch, run.data.sequence_length)
  return gpu_step.Training(run.config, run.execution, run.dtypes, shape)


class Times(NamedTuple):
  """What a step takes: seconds, and seconds of all processors together."""

  wall: float
  processor: float


def rounds(sides: Sequence[Side], count: int, steps: int) -> list[list[Times]]:
  """What a step of each side takes [rounds, sides], the sides taking turns."""
  for side in sides:
    side.steps(2)
  measured = []
  for i in range(count):
    times = [Times(0, 0)] * len(sides)
    order = range(len(sides)) if i % 2 == 0 else reversed(range(len(sides)))
    for number in order:
      wall, processor = time.perf_counter(), time.process_time()
      sides[number].steps(steps)
      wall, processor = (
        time.perf_counter() - wall,
        time.process_time() - processor,
      )
      times[number] = Times(wall / steps, processor / steps)
    measured.append(times)
  return measured


def rows(config: str, measured: list[list[Times]]) -> list[list[str]]:
  """The cells of a model's rounds and, last, of their medians."""
  found = []
  for base, fp8 in measured:
    found.append([])
    for one, other in zip(base, fp8, strict=True):
      found[-1] += [1e3 * one, 1e3 * other, other / one]
  medians = [statistics.median(column) for column in zip(*found, strict=True)]
  names = [*map(str, range(1, len(found) + 1)), "median"]
  return [
    [config, name, *_cells(row)]
    for name, row in zip(names, [*found, medians], strict=True)
  ]


def _cells(row: list[float]) -> list[str]:
  forms = ("{:,.0f}", "{:,.0f}", "{:.2f}") * 2
  return [form.format(x) for form, x in zip(forms, row, strict=True)]


def main():
  """Parses flags, measures, prints and, with --record, keeps the table."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--configs", nargs="+", default=["v3_tiny", "v3_mini"])
  parser.add_argument("--precision", default="fp8", help="beside bfloat16")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=5, help="steps a round")
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args()
  cells = []
  for config in flags.configs:
    sides = [prepare(config, name) for name in (_BASELINE, flags.precision)]
    cells += rows(config, rounds(sides, flags.rounds, flags.steps))
  command = f"python benchmarks/fp8_speed.py --precision {flags.precision}"
  body = (
    f"`{command}`: the runs' batches, {flags.steps} steps a round; a ratio of "
    f"at most {BAR:g} is aimed at.\n\n" + report.table(_HEADER, cells)
  )
  print(body)
  if flags.record:
    report.record("Emulated FP8 beside bfloat16, one training step", body)


if __name__ == "__main__":
  main()
