"""Reinforcement learning with GRPO, or goes on where it stopped.

  python -m experiments.grpo --gin_file=gin_configs/rl/r1_zero_tiny.gin \\
      --gin_bindings="start.Start.path = 'runs/cold_start'"

Draws answers to problems, rewards them by rule and makes the policy better,
DeepSeek-R1's way. Leaves checkpoints, metrics, completions.md, summary.json and
report/ in the workdir. The same command resumes. --dry_run says what there is
to learn from, and compiles nothing.
"""

import json

from experiments import cli

TARGET = "dsx.rl.reinforcement.Reinforcement"


def main(argv):
  """Learns, or says what would be learnt."""
  del argv
  run = cli.build(TARGET)
  if cli.DRY_RUN.value:
    from dsx.rl import dry_run

    print(dry_run.describe(run))
    return
  from dsx.rl import loop
  from dsx.training import workdir as workdir_lib

  run.devices()  # it may refuse them
  workdir = loop.claim(cli.workdir(), run)
  versions = json.dumps(cli.provenance(), indent=1)
  texts = {cli.CONFIG_FILE: cli.operative_config(), "versions.json": versions}
  workdir_lib.describe(workdir, **texts)
  command = cli.resume_command("experiments.grpo", workdir)
  loop.reinforce(run, workdir, resume_command=command)


if __name__ == "__main__":
  cli.run(main, target=TARGET)
