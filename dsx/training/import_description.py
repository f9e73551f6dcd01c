"""What an imported workdir says of itself: metadata, and files beside them.

Everything that reads a run's workdir reads this one; and what export needs to
make the same files again is in the metadata.
"""

import json
import pathlib

from dsx.convert import encoding as encoding_lib
from dsx.convert import folder as folder_lib
from dsx.data import pipeline
from dsx.ops import dtypes as dtypes_lib
from dsx.training import import_plan
from dsx.training import imported_config
from dsx.training import manifest as manifest_lib
from dsx.training import pretraining
from dsx.training import schedules
from dsx.training import workdir as workdir_lib

STEP = 0
_TOKENIZER = "tokenizer.json"


def run(
  encoding: encoding_lib.Encoding, arrays: list[import_plan.Array]
) -> pretraining.Pretraining:
  """A run that says what such a checkpoint is of."""
  config = encoding.source.config
  name = import_plan.EMBEDDING
  dtype = next(array.dtype for array in arrays if array.name == name)
  window = config.max_position_embeddings
  return pretraining.Pretraining(
    config=config,
    # Beside the checkpoints, wherever they are moved; see `workdir.vocabulary`.
    data=pipeline.Data(sequence_length=window, vocabulary=_TOKENIZER),
    schedule=schedules.constant(
      steps=1, learning_rate=0.0, batch_size=1, sequence_length=window
    ),
    dtypes=dtypes_lib.Dtypes(param=dtype.name, compute=dtype.name),
  )


def write(
  encoding: encoding_lib.Encoding,
  of: pretraining.Pretraining,
  target: pathlib.Path,
) -> None:
  """Writes what belongs to a workdir beside its checkpoints."""
  for name, content in encoding.source.companions.items():
    manifest_lib.write_atomically(target / name, content)
  workdir_lib.describe(
    target,
    **{
      folder_lib.CONFIG: json.dumps(_fields(encoding), indent=2) + "\n",
      workdir_lib.IDENTITY: json.dumps(of.identity(), indent=1),
      imported_config.FILE: imported_config.text(of),
    },
  )


def _fields(encoding) -> dict:
  """Content of config.json for the weights as they are here."""
  is_kept = encoding.dtype is None
  return dict(encoding.source.fields) if is_kept else encoding.fields()


def metadata(
  encoding: encoding_lib.Encoding,
  arrays: list[import_plan.Array],
  of: pretraining.Pretraining,
  identity: dict,
) -> dict:
  """Metadata as a run's, and what makes the same files of it again."""
  return {
    "step": STEP,
    "sequences": 0,
    "tokens": 0,
    "wall_seconds": 0.0,
    "run": of.identity(),
    "stored": import_plan.stored(arrays),
    "imported": {
      "identity": identity,
      "fields": _fields(encoding),
      "dtypes": import_plan.source_dtypes(arrays, encoding),
      "copies": import_plan.copies(encoding),
    },
  }
