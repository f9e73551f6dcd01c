"""Trains one gin file with many bindings: grids, random draws, seeds.

  python -m experiments.sweep --gin_file=gin_configs/runs/v3_tiny.gin \\
      --workdir=runs/rates --parallel=2 --seeds=2 \\
      --grid='Schedule.learning_rate = [1e-3, 3e-3]' \\
      --draw='AdamW.weight_decay = log_uniform(0.01, 1)' --draws=4

Every value of each --grid is combined with every draw and every seed. All
trials are checked before any is run. The same command again runs what is left:
finished trials are not run again, stopped and killed ones go on from their last
checkpoint, and further values or draws are added. With --to=slurm, jobset, xpk
or tpu_vm it writes one job for each trial into --output instead; see
experiments.launch for what those take.

Leaves summary.csv, summary.png and trials/ in the workdir. --dry_run shows the
trials and how far they are.
"""

import os
import pathlib
import shlex
import sys

from absl import flags

from experiments import cli
from experiments import launch
from experiments.launching import job as job_lib
from experiments.launching import options
from experiments.sweeping import space
from experiments.sweeping import table
from experiments.sweeping import trial as trial_lib

GRID = flags.DEFINE_multi_string(
  "grid", [], "KEY = [VALUE, ...]; may be repeated."
)
DRAW = flags.DEFINE_multi_string(
  "draw",
  [],
  "KEY = LAW(...); may be repeated. LAW: uniform, log_uniform, integers,"
  " log_integers (low, high) or choice(a, b, ...).",
)
DRAWS = flags.DEFINE_integer("draws", 1, "How often each --draw is drawn.")
DRAW_SEED = flags.DEFINE_integer("draw_seed", 0, "Another gives other draws.")
SEEDS = flags.DEFINE_integer(
  "seeds", None, "Seeds of each setting, from --seed or 0 on."
)
PARALLEL = flags.DEFINE_integer("parallel", 1, "Trials at a time, locally.")
GPUS = flags.DEFINE_integer(
  "gpus_per_trial", None, "GPUs that each local trial has to itself."
)
METRIC = flags.DEFINE_enum(
  "metric", table.METRICS[0], table.METRICS, "What is compared; less is better."
)


def main(argv):
  """Runs the trials that are left, or writes their jobs, and compares all."""
  del argv
  settings = options.settings()
  if not cli.WORKDIR.value:
    job_lib.refuse("workdir", "expected --workdir=DIR for all the trials")
  workdir = pathlib.Path(options.workdir())
  trials = _trials()
  bound = trial_lib.check(
    trials, cli.GIN_FILE.value, cli.GIN_BINDINGS.value, target=launch.TARGET
  )
  folder = workdir / trial_lib.FOLDER
  left = _left(trials, bound, folder)
  going_on = True
  if settings is None:
    _check_local()
  if cli.DRY_RUN.value:
    print(f"trials: {len(trials)}, left to run: {len(left)}")
  elif settings is None:
    going_on = _run_here(left, bound, folder)
  else:
    _render(left, settings, folder)
  found = table.rows(trials, folder)
  print(table.to_screen(found, METRIC.value))
  if cli.DRY_RUN.value or not workdir.is_dir():
    return 0
  _summarise(found, workdir, folder)
  failed = any(row.status != "finished" for row in found)
  return 130 if not going_on else int(settings is None and failed)


def _trials() -> list[trial_lib.Trial]:
  """The trials that the flags describe."""
  grids = [space.grid(text, n) for n, text in enumerate(GRID.value, 1)]
  draws = [space.draw(text, n) for n, text in enumerate(DRAW.value, 1)]
  if not draws and DRAWS.value != 1:
    job_lib.refuse("draws", "there is no --draw; leave it out, or add one")
  job_lib.check_count("draws", DRAWS.value)
  seeds = [cli.SEED.value]
  if SEEDS.value is not None:
    job_lib.check_count("seeds", SEEDS.value)
    first = cli.SEED.value or 0
    seeds = list(range(first, first + SEEDS.value))
  return trial_lib.trials(
    grids, draws, count=DRAWS.value, draw_seed=DRAW_SEED.value, seeds=seeds
  )


def _left(trials, bound, folder: pathlib.Path) -> list[trial_lib.Trial]:
  """The trials that have not come to their end."""
  records = {trial: trial_lib.Record(folder / trial.name) for trial in trials}
  for trial, record in records.items():
    if not record.is_of(bound[trial.name]):
      job_lib.refuse(
        "workdir",
        f"{record.folder} was begun with other gin files or bindings: expected"
        " the same; give another --workdir, or the old ones",
      )
  return [trial for trial, record in records.items() if not record.finished]


def _arguments(trial: trial_lib.Trial, folder) -> tuple[str, ...]:
  return options.arguments(str(folder / trial.name), trial.bindings, trial.seed)


def _check_local() -> None:
  """Refuses flags that mean nothing to trials on this machine."""
  options.environment()
  job_lib.check_count("parallel", PARALLEL.value)
  if GPUS.value is not None:
    job_lib.check_count("gpus_per_trial", GPUS.value)
  for flag in (options.NODES, options.DEVICES, options.MAX_RESTARTS):
    if flag.value is not None:
      job_lib.refuse(flag.name, "a local trial is one process; leave it out")
  if options.OUTPUT.value:
    job_lib.refuse("output", "nothing is written for --to=local; leave it out")


def _run_here(trials, bound, folder: pathlib.Path) -> bool:
  """Runs trials as processes; returns whether nobody asked to stop."""
  from experiments.sweeping import pool

  tasks = [
    pool.Task(
      trial,
      trial_lib.Record(folder / trial.name),
      [sys.executable, "-m", launch.MODULE, *_arguments(trial, folder)],
      bound[trial.name],
    )
    for trial in trials
  ]
  environment = {**os.environ, **options.environment()}
  runner = pool.Pool(PARALLEL.value, environment, GPUS.value, _say)
  return runner.run(tasks)


def _render(trials, settings, folder: pathlib.Path) -> None:
  """Writes a job for each trial, and a script that submits them all."""
  if not options.OUTPUT.value:
    job_lib.refuse("output", "expected --output=DIR for the jobs")
  texts = {}
  for trial in trials:
    name = job_lib.name_of(folder.parent.name)[:30].strip("-")
    job = options.job(
      launch.MODULE,
      _arguments(trial, folder),
      str(folder / trial.name),
      f"{name}-{trial.digest}",
    )
    texts[f"{trial.name}{options.suffix()}"] = settings.render(job)
  jobs = pathlib.Path(options.OUTPUT.value).expanduser()
  jobs.mkdir(parents=True, exist_ok=True)
  for name, text in texts.items():
    launch.write(jobs / name, text)
  script = options.submission_of_all(list(texts))
  submit = launch.write(jobs / "submit.sh", script)
  print(f"to start all {len(texts)}: bash {shlex.quote(str(submit))}")


def _summarise(found, workdir: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes the table and the plot."""
  written = [launch.write(workdir / "summary.csv", table.to_csv(found))]
  from experiments.sweeping import plot

  picture = workdir / "summary.png"
  if plot.write(found, METRIC.value, folder, picture):
    written.append(picture)
  print(f"written: {', '.join(map(str, written))}")


def _say(line: str) -> None:
  print(line, flush=True)


if __name__ == "__main__":
  flags.adopt_module_key_flags(options)
  cli.run(main, target=launch.TARGET, check=False)
