"""Trains a DeepSeek model from scratch, or goes on where it stopped.

  python -m experiments.pretrain --gin_file=gin_configs/runs/v3_tiny.gin

Leaves checkpoints, metrics, a text sample, summary.json and report/ in the
workdir. The same command resumes. --dry_run shows shapes, shardings, memory
and FLOPs of any run, the 671B one too.
"""

from collections.abc import Callable
import json
from typing import Any

from absl import flags

from experiments import cli

TARGET = "dsx.training.pretraining.Pretraining"

COORDINATOR = flags.DEFINE_string(
  "coordinator_address",
  None,
  "host:port of process 0, if several processes train together.",
)
DETECT = flags.DEFINE_bool(
  "detect_processes", False, "Find the other processes of a pod or cluster."
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which one this is.")
SILENCE = flags.DEFINE_float(
  "silence_seconds",
  20,
  "A process that is silent for so long is lost, and the others end.",
  lower_bound=1,
)
HANG = flags.DEFINE_float(
  "hang_seconds",
  300,
  "So is one that others wait for, at a step, for so long; 0 waits for ever.",
  lower_bound=0,
)
STALL = flags.DEFINE_float(
  "stall_seconds",
  3600,
  "All end when nobody came any further for so long; 0 waits for ever.",
  lower_bound=0,
)


def main(argv):
  """Trains, or says what would be trained."""
  del argv
  together(train)


def together(action: Callable[[], None]) -> None:
  """Calls `action` once the processes of the run have met."""
  # The first JAX call decides what it sees, so the processes meet before it.
  from dsx.parallel import distributed
  from dsx.parallel import liveness

  distributed.initialise(
    COORDINATOR.value,
    PROCESSES.value,
    PROCESS.value,
    detect=DETECT.value,
    timing=liveness.Timing(
      silence_seconds=SILENCE.value,
      hang_seconds=HANG.value,
      stall_seconds=STALL.value,
    ),
  )
  with distributed.together():
    action()


def train(
  module: str = "experiments.pretrain",
  check: Callable[[Any], None] | None = None,
) -> None:
  """Builds the run that the gin files describe, and trains it.

  Args:
    module: the binary, for the command that resumes.
    check: refuses a run that the binary is not for.
  """
  run = cli.build(TARGET)
  if check is not None:
    check(run)
  if cli.DRY_RUN.value:
    from dsx.training import dry_run

    print(dry_run.describe(run))
    return
  from dsx.data import prepare
  from dsx.training import loop
  from dsx.training import starting
  from dsx.training import workdir as workdir_lib

  run.devices()  # it may refuse them: before the data are prepared
  workdir = workdir_lib.claim(cli.workdir(), run)
  begins = not (workdir / workdir_lib.CHECKPOINTS).is_dir()
  if run.init is not None and begins:
    starting.check(run.init, run.config, run.data.vocabulary)
  prepare.ensure(run.data)
  versions = json.dumps(cli.provenance(), indent=1)
  texts = {cli.CONFIG_FILE: cli.operative_config(), "versions.json": versions}
  workdir_lib.describe(workdir, **texts)
  command = cli.resume_command(module, workdir)
  loop.train(run, workdir, resume_command=command)


if __name__ == "__main__":
  cli.run(main, target=TARGET)
