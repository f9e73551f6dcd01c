"""Examines a model on held-out problems: pass@1, pass@k and cons@k.

  python -m experiments.evaluate_reasoning \\
    --gin_file=gin_configs/rl/evaluate_tiny.gin \\
    --gin_bindings="start.Start.path = 'runs/r1_zero_tiny'" --workdir=runs/score

Reads the workdir of any run, or a Hugging Face folder. Prints a table with
intervals, and leaves summary.json and answers.jsonl (the first answer to each
problem) in the workdir. --dry_run says what would be examined with what.
"""

import json

from experiments import cli

TARGET = "dsx.rl.assessment.Assessment"


def main(argv):
  """Examines, or says what would be examined."""
  del argv
  settings = cli.build(TARGET)
  from dsx.rl import assessment
  from dsx.training import workdir as workdir_lib

  if cli.DRY_RUN.value:
    print(assessment.describe(settings))
    return
  workdir = cli.workdir()
  workdir.mkdir(parents=True, exist_ok=True)
  versions = json.dumps(cli.provenance(), indent=1)
  texts = {cli.CONFIG_FILE: cli.operative_config(), "versions.json": versions}
  workdir_lib.describe(workdir, **texts)
  assessment.assess(settings, workdir)


if __name__ == "__main__":
  cli.run(main, target=TARGET)
