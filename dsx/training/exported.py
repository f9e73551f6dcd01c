"""The workdir of a run made a folder in Hugging Face's layout.

Other programs load what comes out: weights in DeepSeek's names, config.json,
the tokenizer that the run was trained with and generation_config.json.
"""

import os

from dsx.convert import conversion
from dsx.training import checkpoint_source
from dsx.training import workdir as workdir_lib


def write(
  source: str | os.PathLike[str],
  target: str | os.PathLike[str],
  options: conversion.Conversion,
  *,
  step: int | None = None,
  average: bool = False,
  vocabulary: str | None = None,
  progress: conversion.Progress | None = None,
) -> str:
  """Converts a checkpoint, once every bit of it is found as it was saved.

  Args:
    source: workdir of a run, or of `imported.write`.
    target: a new or empty folder, or one that this conversion was begun in.
    options: what to make of it.
    step: which checkpoint; by default the newest.
    average: the moving average of parameters in place of parameters.
    vocabulary: 'byte' or a tokenizer.json, if the run's own is not where it
      was.
    progress: called with bytes done, bytes in all and what is being done.

  Returns:
    What was done, in one line.

  Raises:
    ValueError: in one line, what is wrong with the source or the target.
  """
  found = checkpoint_source.find(
    source, step=step, average=average, vocabulary=vocabulary
  )
  # Whatever lies there, a run may take for a step, or remove.
  conversion.check_apart(found.workdir / workdir_lib.CHECKPOINTS, target)
  conversion.plan(found, options)  # what does not go together costs no reading
  found.verify(progress)
  return conversion.write(found, target, options, progress=progress)
