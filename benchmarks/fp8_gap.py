"""How far training in FP8 departs from training in bfloat16.

  python benchmarks/fp8_gap.py [--only v3_tiny:fp8:300 ...] [--record]

Trains two models on the same data in bfloat16, float32, FP8 and each of FP8's
ablations, with several seeds. A seed is an initialisation: runs of one model
and one seed begin with the same parameters and read the same batches, so that
they differ in precision alone. All runs of a model read the same batches, which
leaves the noise between two seeds smaller than it is when the data differ too.

Every finished run is a line of results.jsonl in --work, and is not run again:
the script can be stopped and started, and --only picks some of the runs.
--record writes tables and plot of what is there into docs/fp8.md.

The losses are smoothed as in appendix B.1 of DeepSeek-V3's report: an
exponential moving average with a coefficient of 0.9, one step after another.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import fp8_gap_report
from benchmarks import report

_TARGET = "dsx.training.pretraining.Pretraining"
RESULTS = "results.jsonl"


@dataclasses.dataclass(frozen=True)
class Setting:
  """One set of runs: a model and a precision.

  Attributes:
    config: name of a run's gin file.
    precision: `bfloat16`, `float32`, or the name of a gin file of precision.
    steps: of every run.
    seeds: how many runs.
    slower: what the schedule's learning rates are divided by.
  """

  config: str
  precision: str
  steps: int
  seeds: int = 3
  slower: int = 1

  @property
  def name(self) -> str:
    """As --only takes it."""
    return f"{self.model}:{self.precision}:{self.steps}"

  @property
  def model(self) -> str:
    """The model, and its learning rate where it is not the usual."""
    return f"{self.config}/{self.slower}" if self.slower > 1 else self.config


_MAIN = ("bfloat16", "fp8", "float32")
_ABLATIONS = (
  "fp8_block_gradients",
  "fp8_per_tensor",
  "fp8_e5m2_gradients",
  "fp8_block_activations",
  "fp8_power_of_two",
)
# In the order of what they are worth. A run's schedule shrinks with its steps,
# so only runs of equal length are compared.
SETTINGS = (
  *(Setting("v3_tiny", precision, 300) for precision in _MAIN),
  *(Setting("v3_mini", precision, 150) for precision in _MAIN),
  *(Setting("v3_tiny", precision, 150) for precision in _MAIN[:2]),
  *(Setting("v3_tiny", precision, 150, slower=3) for precision in _MAIN),
  *(Setting("v3_tiny", precision, 150) for precision in _ABLATIONS),
  *(Setting("v3_mini", precision, 150) for precision in _ABLATIONS),
)


def build(setting: Setting):
  """The `Pretraining` of a setting."""
  from experiments import configuration

  files = [f"gin_configs/runs/{setting.config}.gin"]
  bindings = ["pretraining.Pretraining.evaluate_every = 0"]
  if setting.precision in ("bfloat16", "float32"):
    bindings.append(f"dtypes.Dtypes.compute = {setting.precision!r}")
  else:
    files.append(f"gin_configs/precision/{setting.precision}.gin")
  configuration.prepare(_TARGET, files, bindings)
  run = configuration.build(_TARGET)
  schedule = run.schedule
  tokens = setting.steps * schedule.batch_size * schedule.sequence_length
  rates = {
    name: getattr(schedule, name) / setting.slower
    for name in (
      "learning_rate",
      "decayed_learning_rate",
      "final_learning_rate",
    )
  }
  schedule = dataclasses.replace(schedule, total_tokens=tokens, **rates)
  return dataclasses.replace(run, schedule=schedule)


class Trained:
  """All runs of a setting, with one compiled step.

  Attributes:
    run: what is trained.
    float8: places in the step at which numbers become FP8.
  """

  def __init__(self, run):
    import tempfile

    from dsx.training import trainer as trainer_lib

    self.run = run
    self._folder = tempfile.TemporaryDirectory()
    folder = pathlib.Path(self._folder.name)
    self._trainer = trainer_lib.Trainer(run, folder)
    self._take, self.float8 = None, 0

  def train(self, seed: int) -> dict:
    """Trains from a seed; returns every step's loss, and what validates it."""
    from dsx.parallel import sharding as sharding_lib
    from dsx.training import state as state_lib

    own = self._trainer
    with sharding_lib.use(own.mesh, self.run.sharding):
      state = state_lib.initialise(
        own.model, own.optimizer, own.placement, seed
      )
      losses, began = [], time.monotonic()
      for position, batch in own.batches(0):
        scalars = own.scalars(self.run.schedule.phase(position.step))
        take = self._compiled(state, batch, scalars)
        if not losses:
          began = time.monotonic()
        state, metrics = take(state, batch, scalars)
        losses.append(metrics["loss"])
      losses = [float(loss) for loss in losses]
      seconds = time.monotonic() - began
      records = self.run.final_evaluation_records
      score = own.evaluator(records).score(state.params, state.router_bias)
    return {
      "loss": losses,
      "validation": score.loss,
      "skipped": int(state.skipped),
      "seconds": round(seconds, 1),
    }

  def _compiled(self, *arguments):
    """The step, compiled for the first batch and used by all runs."""
    if self._take is None:
      from dsx.training import step as step_lib

      own = self._trainer
      take = step_lib.compiled(own.model, own.optimizer, own.placement)
      lowered = take.lower(*arguments)
      self.float8 = lowered.as_text().count("f8E")
      self._take = lowered.compile()
    return self._take


def finished(work: pathlib.Path) -> list[dict]:
  """What was run so far."""
  path = work / RESULTS
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines]


def complete(setting: Setting, work: pathlib.Path) -> None:
  """Takes the runs of a setting that are not finished."""
  from dsx.data import prepare

  done = {
    (r["config"], r["precision"], r["steps"], r["seed"]) for r in finished(work)
  }
  trained = None
  for seed in range(setting.seeds):
    key = (setting.model, setting.precision, setting.steps, seed)
    if key in done:
      continue
    if trained is None:
      run = build(setting)
      prepare.ensure(run.data)
      trained = Trained(run)
    result = {
      "config": setting.model,
      "precision": setting.precision,
      "steps": setting.steps,
      "seed": seed,
      **trained.train(seed),
      "float8": trained.float8,
      "commit": report.commit(),
    }
    with (work / RESULTS).open("a", encoding="utf-8") as stream:
      stream.write(json.dumps(result) + "\n")
    last = result["loss"][-1]
    print(
      f"{setting.name} seed {seed}: loss {last:.4f}, validation "
      f"{result['validation']:.4f}, {result['float8']} places of FP8, "
      f"{result['seconds']:.0f} s",
      flush=True,
    )
    if not math.isfinite(last):
      print(f"{setting.name} seed {seed}: not finite at the end", flush=True)


def chosen(only: list[str], seeds: int | None):
  """The settings that a person asked for, in order.

  Raises:
    ValueError: there is no such setting.
  """
  names = [setting.name for setting in SETTINGS]
  for name in only:
    if name not in names:
      raise ValueError(
        f"--only {name}: expected some of {', '.join(names)}; choose among them"
      )
  for setting in SETTINGS:
    if not only or setting.name in only:
      yield dataclasses.replace(setting, seeds=seeds or setting.seeds)


def main():
  """Parses flags, trains what is missing and, with --record, writes it down."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--work", type=pathlib.Path, default="runs/fp8_gap")
  parser.add_argument(
    "--only", nargs="*", default=[], help="model:precision:steps"
  )
  parser.add_argument("--seeds", type=int, help="runs of a setting")
  parser.add_argument("--record", action="store_true", help="into docs/fp8.md")
  flags = parser.parse_args()
  flags.work.mkdir(parents=True, exist_ok=True)
  if flags.record:
    print(fp8_gap_report.record(finished(flags.work)))
    return
  for setting in chosen(flags.only, flags.seeds):
    complete(setting, flags.work)


if __name__ == "__main__":
  main()
