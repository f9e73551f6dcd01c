"""Goes DeepSeek-R1's road: every stage from the base model to distillation.

  python -m experiments.r1 --gin_file=gin_configs/rl/r1_tiny.gin

Each stage is a run of another binary, in a folder below --workdir whose name
bears all that decides what it makes. The same command runs what is left: stages
that are done are not run again, one that was killed resumes, and a changed
setting runs the stages that stand on it. Leaves stages/, evaluations/ and
report/ in the workdir. --dry_run shows the stages, their commands and how far
they are.
"""

import json
import shlex

from experiments import cli

TARGET = "experiments.staging.stage.Road"


def main(argv):
  """Runs what is left of the road, and compares the stages."""
  del argv
  from experiments.staging import plan
  from experiments.staging import record
  from experiments.staging import report
  from experiments.staging import walk

  road = cli.build(TARGET)
  workdir = cli.workdir()
  commands = plan.commands(road, workdir)
  if cli.DRY_RUN.value:
    for command in commands:
      how = "done" if record.Record(command).done else "to run"
      words = ["python", "-m", f"experiments.{command.binary}"]
      print(f"# {command.label}: {how}")
      print(shlex.join([*words, *command.arguments]))
    return 0
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / cli.CONFIG_FILE).write_text(cli.operative_config())
  versions = json.dumps(cli.provenance(), indent=1)
  (workdir / "versions.json").write_text(versions)
  all_done = walk.go(
    commands, say, after=lambda: report.write(road, commands, workdir)
  )
  if not all_done:
    command = cli.resume_command("experiments.r1", workdir)
    say(f"stopped; to go on: {command}")
    return 130
  written = report.write(road, commands, workdir)
  say(report.to_screen(road, commands))
  say("written: " + ", ".join(map(str, written)))
  return 0


def say(line: str) -> None:
  """Prints a line at once."""
  print(line, flush=True)


if __name__ == "__main__":
  cli.run(main, target=TARGET)
