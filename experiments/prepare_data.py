"""Prepares a data set, once, into the folder where training looks for it.

  python -m experiments.prepare_data --gin_file=gin_configs/data/stdlib.gin

A run's gin file serves as well: of what it binds, only pipeline.Data is built.
Training prepares what it needs by itself; this is for doing it beforehand, on
another machine or without accelerators. --dry_run says what would be read and
where it would go.
"""

import functools

from experiments import cli

TARGET = "dsx.data.pipeline.Data"
ALSO = (
  "dsx.data.tokenizer_training.TokenizerTraining",
  "dsx.training.pretraining.Pretraining",
)


def main(argv):
  """Prepares, or says what would be prepared."""
  del argv
  data = cli.build(TARGET)
  from dsx.data import pipeline
  from dsx.data import prepare

  if cli.DRY_RUN.value:
    for part, weight in pipeline.components(data):
      if part.task in pipeline.SOURCES:
        survey = pipeline.corpus_of(part).survey()
        print(
          f"{part.task}, weight {weight:g}: {survey.documents} documents, "
          f"{survey.bytes / 1e6:.2f} MB, {survey.skipped} files skipped"
        )
    state = "prepared" if pipeline.is_prepared(data) else "not prepared"
    print(f"{state}: {pipeline.prepared_directory(data)}")
    return
  prepare.prepare(data, report=functools.partial(print, flush=True))


if __name__ == "__main__":
  cli.run(main, target=TARGET, also=ALSO)
