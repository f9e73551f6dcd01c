"""Trains a byte-level BPE on the train split of a corpus.

  python -m experiments.train_tokenizer \
      --gin_file=gin_configs/data/train_tokenizer.gin \
      --workdir=runs/tokenizer

Writes tokenizer.json into the workdir; bind pipeline.Data.vocabulary to it. On
another corpus, give its gin file from gin_configs/data after this one.
"""

import functools

from experiments import cli

TARGET = "dsx.data.tokenizer_training.TokenizerTraining"


def main(argv):
  """Trains, or says what would be trained."""
  del argv
  training = cli.build(TARGET)
  directory = cli.workdir()
  if cli.DRY_RUN.value:
    print(f"{training.vocab_size} ids, to {directory / 'tokenizer.json'}")
    return
  training.run(directory, report=functools.partial(print, flush=True))


if __name__ == "__main__":
  cli.run(main, target=TARGET)
