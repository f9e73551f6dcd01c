"""Scores a trained model on held-out text, in bits per byte.

  python -m experiments.evaluate --workdir=runs/v3_tiny

Reads the newest good checkpoint of the workdir, or that of --step, prints a
table and writes evaluation.json beside it, and expert_loads.jsonl, which
experts the text went to (docs/placement.md). The run is the workdir's
config.gin; bindings may change it, the data above all:

  --gin_bindings='Data.task = "text_files"' \\
  --gin_bindings='Data.files = ("~/corpus/*.txt",)'

Pretraining.final_evaluation_records says how many sequences are scored.
--dry_run says what would be scored, from files alone.
"""

import pathlib

from absl import flags

from experiments import cli

TARGET = "dsx.training.pretraining.Pretraining"
RESULT = "evaluation.json"
LOADS = "expert_loads.jsonl"

STEP = flags.DEFINE_integer("step", None, "Checkpoint, by default the newest.")


def main(argv):
  """Scores, or says what would be scored."""
  del argv
  run = cli.build(TARGET)
  from dsx.data import prepare
  from dsx.evals import trained
  from dsx.training import restore
  from dsx.training import workdir as workdir_lib

  workdir = cli.workdir()
  run = workdir_lib.with_vocabulary(run, workdir)
  if cli.DRY_RUN.value:
    print(trained.plan(run, workdir, step=STEP.value))
    return
  restore.checkpoints(workdir).close()  # say it before data are prepared
  prepare.ensure(run.data)
  evaluation = trained.evaluate(run, workdir, step=STEP.value)
  print(evaluation.table())
  (workdir / RESULT).write_text(evaluation.to_json() + "\n")
  (workdir / LOADS).write_text(evaluation.loads())


def _has_config(values) -> bool:
  """Whether the flags say which run is meant."""
  if values["gin_file"]:
    return True
  if not values["workdir"]:
    raise flags.ValidationError("expected --workdir=DIR, that of a run")
  saved = pathlib.Path(values["workdir"]).expanduser() / cli.CONFIG_FILE
  if not saved.is_file():
    raise flags.ValidationError(
      f"no {cli.CONFIG_FILE} in it; expected the workdir of a run"
    )
  return True


if __name__ == "__main__":
  flags.register_multi_flags_validator(["workdir", "gin_file"], _has_config)
  cli.run(main, target=TARGET)
