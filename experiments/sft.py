"""Fine-tunes a model on samples, or goes on where it stopped.

  python -m experiments.sft --gin_file=gin_configs/rl/sft_tiny.gin \\
    --gin_bindings="pipeline.Data.files = ('samples.jsonl',)"

A line of a file is a prompt (or messages) and the response to learn. What the
run starts from is start.Start.path, a run's workdir or a Hugging Face folder;
without Pretraining.init it starts from new weights. Leaves what
experiments.pretrain leaves, and resumes as it does.
"""

import functools

from absl import flags

from experiments import cli
from experiments import pretrain

flags.adopt_module_key_flags(pretrain)


def main(argv):
  """Fine-tunes, or says what would be fine-tuned."""
  del argv
  train = functools.partial(
    pretrain.train, module="experiments.sft", check=check
  )
  pretrain.together(train)


def check(run) -> None:
  """Refuses a run whose data are no samples.

  Raises:
    ValueError: its task has none.
  """
  tasks = {run.data.task, *(entry[0] for entry in run.data.mixture)}
  if tasks - {"mixture"} != {"sft"}:
    raise ValueError(
      f"data.task={run.data.task!r}: expected 'sft', or a mixture of nothing "
      "else; bind pipeline.Data.task, or train with experiments.pretrain"
    )


if __name__ == "__main__":
  cli.run(main, target=pretrain.TARGET)
