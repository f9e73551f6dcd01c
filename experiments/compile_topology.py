"""Compiles a run's train step for a machine that is not here.

  python -m experiments.compile_topology --topology=v5p:8x8x16 \\
    --gin_file=gin_configs/runs/v3_pretrain.gin \\
    --gin_file=gin_configs/parallel/v5p_2048.gin

Prints bytes on a device and whether they fit, FLOPs, every collective with its
mesh axes and bytes, and the step time that published rates allow. TPUs need the
extra `tpu`, GPUs (h100:32x8) the extra `gpu`; no chip is needed. The exit code
is 1 where the step does not fit. --dry_run compiles nothing.
"""

import os
import pathlib

from absl import flags

from experiments import cli

TARGET = "dsx.training.pretraining.Pretraining"

TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "What to compile for: v5p:8x8x16 (chips along each axis of the torus) or"
  " h100:32x8 (machines x GPUs of each).",
  required=True,
)
TEXT = flags.DEFINE_string(
  "program", None, "File to write the compiled program to, as text."
)


def main(argv):
  """Compiles and describes, or says what would be compiled."""
  del argv
  # Whatever this machine has, nothing is run on it.
  os.environ["JAX_PLATFORMS"] = "cpu"
  run = cli.build(TARGET)
  if cli.DRY_RUN.value:
    from dsx.training import dry_run

    print(dry_run.describe(run))
    return 0
  from dsx.parallel import topology
  from dsx.training import ahead_of_time
  from dsx.training import compiled_report

  step = ahead_of_time.compile_step(run, topology.find(TOPOLOGY.value))
  if TEXT.value:
    pathlib.Path(TEXT.value).write_text(step.text, encoding="utf-8")
  print(compiled_report.describe(step))
  return 0 if step.memory.fits else 1


if __name__ == "__main__":
  cli.run(main, target=TARGET)
