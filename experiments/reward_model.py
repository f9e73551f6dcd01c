"""Trains a reward model on preferences, or goes on where it stopped.

  python -m experiments.reward_model --gin_file=gin_configs/rl/reward_model.gin

Starts as a policy (`RewardTraining.init`), with a scalar head. Leaves
checkpoints, metrics, summary.json and report/ in the workdir. The same command
resumes.
"""

import json

from experiments import cli

TARGET = "dsx.rl.reward_training.RewardTraining"


def main(argv):
  """Trains, or says what would be trained."""
  del argv
  run = cli.build(TARGET)
  from dsx.rl import preferences
  from dsx.rl import reward_loop
  from dsx.training import pretrained
  from dsx.training import workdir as workdir_lib

  run.devices()
  if cli.DRY_RUN.value:
    policy = pretrained.find(run.init)
    found = preferences.read(run.preferences)
    training, held_out = preferences.split(found, run.held_out)
    print(f"starts as: {policy.description}")
    print(f"preferences: {len(training):,}, and {len(held_out):,} held out")
    return
  workdir = cli.workdir()
  workdir.mkdir(parents=True, exist_ok=True)
  versions = json.dumps(cli.provenance(), indent=1)
  texts = {cli.CONFIG_FILE: cli.operative_config(), "versions.json": versions}
  workdir_lib.describe(workdir, **texts)
  command = cli.resume_command("experiments.reward_model", workdir)
  summary = reward_loop.train(run, workdir, resume_command=command)
  if summary["finished"] and summary["held_out"] is not None:
    print(f"held-out accuracy: {summary['held_out']:.3f}")


if __name__ == "__main__":
  cli.run(main, target=TARGET)
