"""Samples answers to problems, and keeps the good ones to fine-tune on.

  python -m experiments.rejection_sample \\
    --gin_file=gin_configs/rl/rejection_tiny.gin \\
    --gin_bindings="start.Start.path = 'runs/grpo'"

Leaves samples.jsonl (a prompt and a response a line, for experiments.sft),
provenance.json (digests of samples, policy and problems, and what became of
every answer), refused.jsonl (some that were not kept, with reasons) and
summary.json in the workdir. The same command goes on where it was stopped.
--dry_run says what would be sampled.
"""

import json

from experiments import cli

TARGET = "dsx.rl.rejection_sampling.RejectionSampling"


def main(argv):
  """Samples, or says what would be sampled."""
  del argv
  settings = cli.build(TARGET)
  from dsx.rl import rejection_loop
  from dsx.training import pretrained
  from dsx.training import progress
  from dsx.training import workdir as workdir_lib

  if cli.DRY_RUN.value:
    policy = settings.policy
    found = pretrained.find(
      policy.path, step=policy.step, average=policy.average
    )
    n = len(settings.problems.train())
    print(f"policy: {found.description}")
    print(f"problems: {n:,}, {settings.answers} answers each")
    return
  workdir = cli.workdir()
  workdir.mkdir(parents=True, exist_ok=True)
  versions = json.dumps(cli.provenance(), indent=1)
  texts = {cli.CONFIG_FILE: cli.operative_config(), "versions.json": versions}
  workdir_lib.describe(workdir, **texts)
  progress.summary(rejection_loop.run(settings, workdir))


if __name__ == "__main__":
  cli.run(main, target=TARGET)
