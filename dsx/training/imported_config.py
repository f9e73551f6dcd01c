"""The config.gin of an imported workdir, so that its model can be evaluated.

A run's own config.gin is written by gin. A model that came from elsewhere has
been trained by no run: its file names the model and its vocabulary, and leaves
the data to whoever evaluates it.
"""

import dataclasses

from dsx.training import pretraining

FILE = "config.gin"
# Contexts of released models are longer than what one evaluates at once.
_LONGEST = 4096
_BATCH = 8

_HEAD = """\
# A model converted from a Hugging Face folder: bind pipeline.Data.task, and
# what it reads, to evaluate it.
from __gin__ import dynamic_registration
from dsx.data import pipeline
from dsx.models import config
from dsx.ops import dtypes
from dsx.training import pretraining
from dsx.training import schedules

pretraining.Pretraining.config = @config.DeepSeekConfig()
pretraining.Pretraining.data = @pipeline.Data()
pretraining.Pretraining.dtypes = @dtypes.Dtypes()
pretraining.Pretraining.schedule = @schedules.Schedule()
"""


def text(run: pretraining.Pretraining) -> str:
  """The file of a run that says what was imported."""
  length = min(run.data.sequence_length, _LONGEST)
  config = dict(vars(run.config))
  scaling = config.pop("rope_scaling")
  lines = _bindings("config.DeepSeekConfig", config)
  if scaling is not None:
    lines.append("config.DeepSeekConfig.rope_scaling = @config.RopeScaling()")
    lines += _bindings("config.RopeScaling", dataclasses.asdict(scaling))
  lines += _bindings("dtypes.Dtypes", dataclasses.asdict(run.dtypes))
  lines += _bindings(
    "pipeline.Data",
    {"sequence_length": length, "vocabulary": run.data.vocabulary},
  )
  lines += _bindings(
    "schedules.Schedule",
    {
      "total_tokens": length * _BATCH,
      "sequence_length": length,
      "batch_size_start": _BATCH,
      "batch_size": _BATCH,
    },
  )
  return _HEAD + "\n" + "\n".join(lines) + "\n"


def _bindings(name: str, values: dict) -> list[str]:
  return [f"{name}.{field} = {value!r}" for field, value in values.items()]
