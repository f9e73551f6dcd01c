"""Writes generated problems, solutions to some, and preferences.

  python -m experiments.make_problems \\
    --gin_file=gin_configs/rl/problems_tiny.gin

Leaves train.jsonl and held_out.jsonl (problems, for experiments.grpo and
evaluations), samples.jsonl (a prompt and a response a line, for
experiments.sft), of open requests preferences.jsonl (for
experiments.reward_model), and summary.json in the workdir. --dry_run shows some
of each.
"""

import json

from experiments import cli

TARGET = "dsx.data.problem_files.ProblemFiles"


def main(argv):
  """Writes the files, or shows what would be in them."""
  del argv
  files = cli.build(TARGET)
  if cli.DRY_RUN.value:
    for generated in files.generated:
      for problem in generated.problems("train")[:3]:
        print(f"problem: {problem.prompt!r}, answer {problem.answer!r}")
    for solved in files.solved:
      for line in solved.samples()[:3]:
        print(f"sample: {line['prompt']!r}, response {line['response']!r}")
    return
  workdir = cli.workdir()
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / cli.CONFIG_FILE).write_text(cli.operative_config())
  versions = json.dumps(cli.provenance(), indent=1)
  (workdir / "versions.json").write_text(versions)
  summary = files.write(workdir) | {"finished": True}
  (workdir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
  for name, value in summary.items():
    print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
  cli.run(main, target=TARGET)
