"""Starts a training run: here as several processes, or as a job elsewhere.

  python -m experiments.launch --gin_file=gin_configs/runs/v3_tiny.gin \\
      --nodes=4 --devices_per_node=1

  python -m experiments.launch --to=slurm --nodes=4 --devices_per_node=8 \\
      --gin_file=gin_configs/runs/v3_small.gin --output=v3_small.sbatch \\
      --workdir=/shared/runs/v3_small

The run's flags are those of experiments.pretrain, and are checked here, before
anything is queued. --to=slurm, jobset, xpk and tpu_vm write what their
scheduler takes. A process that is lost ends all of them, and they start again
from the last good checkpoint. --dry_run prints what would be started. Settings
of a cluster can be kept in a file of flags: --flagfile=FILE.
"""

import os
import pathlib
import shlex
import sys

from absl import flags

from experiments import cli
from experiments import configuration
from experiments.launching import job as job_lib
from experiments.launching import options

TARGET = "dsx.training.pretraining.Pretraining"
MODULE = "experiments.pretrain"


def main(argv):
  """Runs here, or writes the job."""
  del argv
  settings = options.settings()
  workdir = options.workdir()
  arguments = options.arguments(workdir)
  if cli.PRINT_CONFIG.value:
    print(configuration.requested(TARGET))
  if settings is None:
    return _run_here(workdir, arguments)
  text = settings.render(options.job(MODULE, arguments, workdir))
  if cli.DRY_RUN.value or not options.OUTPUT.value:
    print(text, end="")
    return 0
  path = write(pathlib.Path(options.OUTPUT.value).expanduser(), text)
  print(f"to start: {options.submission(path)}")
  return 0


def write(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes a file as a whole or not at all."""
  partial = path.with_name(f"{path.name}.partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)
  return path


def _run_here(workdir: str, arguments: tuple[str, ...]) -> int:
  """Runs processes on this machine; returns their exit code."""
  command = [sys.executable, "-m", MODULE, *arguments]
  processes = 1 if options.NODES.value is None else options.NODES.value
  devices = options.DEVICES.value
  restarts = options.MAX_RESTARTS.value
  restarts = 3 if restarts is None else restarts
  if options.OUTPUT.value:
    job_lib.refuse("output", "nothing is written for --to=local; leave it out")
  job_lib.check_count("nodes", processes)
  job_lib.check_count("devices_per_node", 1 if devices is None else devices)
  job_lib.check_count("max_restarts", restarts, least=0)
  environment = {**os.environ, **options.environment()}
  environment[cli.RESUME_VARIABLE] = cli.resume_command(
    "experiments.launch", workdir
  )
  if cli.DRY_RUN.value:
    each = "as they are" if devices is None else f"{devices} on the CPU"
    print(f"{processes} processes, devices of each: {each}\n")
    print(shlex.join(command))
    return 0
  from experiments.launching import local

  return local.run(
    command,
    processes=processes,
    devices_per_process=devices,
    max_restarts=restarts,
    workdir=workdir,
    environment=environment,
  )


if __name__ == "__main__":
  flags.adopt_module_key_flags(options)
  cli.run(main, target=TARGET)
