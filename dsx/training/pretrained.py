"""A model to use, from whatever folder holds one.

Two kinds of folder do: the workdir of a run, and one in Hugging Face's layout.
`find` reads what describes the model; its weights are read when asked for.
"""

from collections.abc import Callable
import dataclasses
import os
import pathlib
from typing import Any

from dsx.convert import deepseek as convert
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_config
from dsx.data import vocab as vocab_lib
from dsx.models import deepseek
from dsx.ops import dtypes as dtypes_lib
from dsx.training import restore
from dsx.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
  """A model whose weights are still on disk.

  Attributes:
    model: the model, to be run on one device.
    vocabulary: of its tokens.
    window: tokens of context that it was trained with.
    description: what was found, in a few words.
    read: reads its variables.
  """

  model: deepseek.DeepSeek
  vocabulary: vocab_lib.Vocabulary
  window: int
  description: str
  read: Callable[[], Any]


def find(
  path: str | os.PathLike[str],
  *,
  step: int | None = None,
  average: bool = False,
  vocabulary: str | None = None,
  dtype: str | None = None,
) -> Pretrained:
  """Finds the model of a folder.

  Args:
    path: workdir of a run, or folder with config.json and *.safetensors.
    step: of a run; by default the newest good one.
    average: of a run: the moving average of its parameters.
    vocabulary: 'byte' or a tokenizer.json; by default the run's own, or the
      tokenizer.json of the folder.
    dtype: of parameters and products; by default the run's own, or float32.

  Raises:
    ValueError: nothing of the kind is there, or it does not fit.
  """
  path = pathlib.Path(path).expanduser()
  if restore.is_workdir(path):
    return _of_run(path, step, average, vocabulary, dtype)
  if not (path / folder_lib.CONFIG).is_file():
    raise workdir_lib.WorkdirError(
      f"{path}: no checkpoint; expected the workdir of a run "
      f"({workdir_lib.CHECKPOINTS}/) or a Hugging Face folder "
      f"({folder_lib.CONFIG})"
    )
  if step is not None or average:
    raise ValueError(
      f"{path} is a Hugging Face folder: expected neither a step nor an "
      "average, which only runs have; leave them out"
    )
  dtype = dtype or "float32"
  config = dataclasses.replace(
    huggingface_config.read(path), num_nextn_predict_layers=0
  )
  return Pretrained(
    model=deepseek.DeepSeek(
      config, dtypes_lib.Dtypes(param=dtype, compute=dtype)
    ),
    vocabulary=vocab_lib.load(vocabulary or path),
    window=config.max_position_embeddings,
    description=f"Hugging Face folder {path}",
    # MTP modules do not take part in plain sampling.
    read=lambda: convert.load(path, dtype=dtype, mtp=False)[1],
  )


def _of_run(path, step, average, vocabulary, dtype) -> Pretrained:
  with restore.checkpoints(path) as checkpointer:
    metadata = checkpointer.metadata(step)
  identity = metadata["run"]
  if average and identity["ema_decay"] is None:
    raise ValueError(
      f"{path}: the run keeps no average of its parameters; leave it out, or "
      "train with Pretraining.ema_decay"
    )
  dtypes = dtypes_lib.Dtypes(**identity["dtypes"])
  if dtype:
    dtypes = dataclasses.replace(dtypes, param=dtype, compute=dtype)

  def read():
    trained = restore.load(path, step=step, average=average)
    variables = dict(trained.variables)
    params = trained.average if average else variables["params"]
    variables["params"] = dtypes_lib.cast(params, dtypes.param)
    return variables

  return Pretrained(
    model=deepseek.DeepSeek(restore.config_of(identity), dtypes),
    vocabulary=vocab_lib.load(vocabulary or identity["data"]["vocabulary"]),
    window=identity["data"]["sequence_length"],
    description=f"step {metadata['step']:,} of {path}",
    read=read,
  )
