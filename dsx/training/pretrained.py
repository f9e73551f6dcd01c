"""A model to use, from whatever folder holds one.

Two kinds of folder do: the workdir of a run (or of `imported`), and one in
Hugging Face's layout. `find` reads what describes the model, tensors' names
and shapes among it; its weights are read when asked for.
"""

from collections.abc import Callable
import dataclasses
import os
import pathlib
from typing import Any
from typing import Literal

import jax

from dsx.convert import deepseek as convert
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_source
from dsx.convert import inventory
from dsx.data import vocab as vocab_lib
from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import dense_config
from dsx.models import layout as layout_lib
from dsx.models import placed
from dsx.ops import block_scaled
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import placement_file
from dsx.parallel import sharding as sharding_lib
from dsx.training import leaves as leaves_lib
from dsx.training import restore
from dsx.training import workdir as workdir_lib

FP8 = restore.FP8
Layout = Literal["stacked", "layers"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
  """A model whose weights are still on disk.

  Attributes:
    kind: `workdir` or `hugging_face`.
    config: the model; it counts the MTP modules that there are to read.
    dtypes: precision of its parameters and products.
    vocabulary: of its tokens.
    window: tokens of context that it was trained with.
    description: what was found, in a few words.
  """

  kind: Literal["workdir", "hugging_face"]
  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes
  vocabulary: vocab_lib.Vocabulary
  window: int
  description: str
  _read: Callable[..., Any]

  @property
  def model(self) -> deepseek.DeepSeek:
    """The model of `read()`: layers stacked, with no MTP modules."""
    return deepseek.DeepSeek(_without_mtp(self.config), self.dtypes)

  def read(
    self,
    *,
    layout: Layout = "stacked",
    mtp: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    sharding: sharding_lib.Sharding | None = None,
    placement: placement_file.Placement | None = None,
    progress: Callable[[int, int, str], None] | None = None,
  ):
    """Reads the variables.

    Args:
      layout: `stacked` for training, `layers` for inference.
      mtp: whether to read the MTP modules, too, if there are any.
      mesh: devices to place them on; by default one device.
      sharding: where on the mesh; by default `Sharding()`'s rules.
      placement: of experts and their copies, for the layout `layers`; see
        `models/placed.py`.
      progress: called with bytes read, bytes in all and a tensor's name, where
        a folder is read tensor by tensor.

    Returns:
      `params` and, if the model has them, `router_bias` and `placement`.

    Raises:
      ValueError: in one line, what is wrong with the files.
    """
    if layout not in ("stacked", "layers"):
      raise ValueError(f"layout={layout!r}: expected 'stacked' or 'layers'")
    if placement is not None and layout != "layers":
      raise ValueError(f"layout={layout!r}: expected 'layers' with a placement")
    variables = self._read(
      layout=layout, mtp=mtp, mesh=mesh, sharding=sharding, progress=progress
    )
    if placement is not None:
      variables = placed.placed(variables, placement)
    return variables


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
      'fp8' keeps matrices that are FP8 on the disk as they are, and all else
      in bfloat16.

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
  return _of_folder(path, vocabulary, dtype or "float32")


def _of_folder(path, vocabulary, dtype: str) -> Pretrained:
  source = huggingface_source.find(path)
  if dtype == FP8 and not inventory.has_fp8(source.entries):
    raise ValueError(
      f"{path}: its weights are not FP8: expected a folder converted with "
      "--target_format=hf_fp8; or leave out the dtype fp8"
    )
  return Pretrained(
    kind="hugging_face",
    config=dense_config.only_deepseek(source.config, path),
    dtypes=_dtypes(dtype, dtypes_lib.Dtypes()),
    vocabulary=vocab_lib.load(vocabulary or path),
    window=source.config.max_position_embeddings,
    description=f"Hugging Face folder {path}",
    _read=lambda **how: convert.load(path, dtype=dtype, **how)[1],
  )


def _without_mtp(config: config_lib.DeepSeekConfig):
  return dataclasses.replace(config, num_nextn_predict_layers=0)


def _dtypes(dtype: str | None, own: dtypes_lib.Dtypes) -> dtypes_lib.Dtypes:
  """`own`, with parameters and products in `dtype` if one is given.

  FP8 weights are multiplied in bfloat16.
  """
  if dtype is None:
    return own
  dtype = "bfloat16" if dtype == FP8 else dtype
  return dataclasses.replace(own, param=dtype, compute=dtype)


def _of_run(path, step, average, vocabulary, dtype) -> Pretrained:
  with restore.checkpoints(path) as checkpointer:
    metadata = checkpointer.metadata(step)
  identity = metadata["run"]
  if average and identity["ema_decay"] is None:
    raise ValueError(
      f"{path}: the run keeps no average of its parameters; leave it out, or "
      "train with Pretraining.ema_decay"
    )
  if dtype == FP8 and FP8 not in metadata.get("stored", {}).values():
    raise ValueError(
      f"{path}: its weights are not FP8: expected a workdir converted from "
      "FP8 files; or leave out the dtype fp8"
    )

  def read(*, layout, mtp, mesh, sharding, progress):
    del progress  # a checkpoint is restored as a whole
    trained = restore.load(
      path, step=step, average=average, mtp=mtp, mesh=mesh, sharding=sharding
    )
    config = dense_config.only_deepseek(trained.model.config, path)
    variables = dict(trained.variables)
    if average:
      variables["params"] = trained.average
    del trained  # or its arrays would stay
    return _laid_out(config, variables, layout, dtype)

  return Pretrained(
    kind="workdir",
    config=dense_config.only_deepseek(restore.any_config_of(identity), path),
    dtypes=_dtypes(dtype, restore.dtypes_of(identity)),
    vocabulary=vocab_lib.load(
      vocabulary or workdir_lib.vocabulary(path, identity["data"]["vocabulary"])
    ),
    window=identity["data"]["sequence_length"],
    description=f"step {metadata['step']:,} of {path}",
    _read=read,
  )


def _laid_out(
  config: config_lib.DeepSeekConfig,
  variables: dict,
  layout: Layout,
  dtype: str | None,
) -> dict:
  """Variables in the layout and dtype asked for; empties what it is given.

  One leaf after the other, so that there is never a second model in memory.
  """
  result: dict = {}
  for (collection, part, *rest), leaf in _taken_apart(variables):
    if collection == "params" and dtype is not None:
      leaf = _cast(leaf, dtype)
    tree = {"params": {part: {}}}
    tree[collection] = leaves_lib.nested({"/".join([part, *rest]): leaf})
    if layout == "layers":
      tree = layout_lib.to_layers(config, tree)
    _merge(result, tree)
  return result


def _taken_apart(tree: dict, path: tuple[str, ...] = ()):
  """Yields (path, leaf), each of them removed from the tree before."""
  while tree:
    name, found = tree.popitem()
    if isinstance(found, dict):
      yield from _taken_apart(found, (*path, name))
    else:
      yield (*path, name), found
      del found


def _merge(into: dict, tree: dict) -> None:
  for name, found in tree.items():
    if isinstance(found, dict):
      _merge(into.setdefault(name, {}), found)
    else:
      into[name] = found


def _cast(leaf, dtype: str):
  """Casts a parameter; FP8 weights stay what they are only for `fp8`."""
  if not isinstance(leaf, block_scaled.BlockScaled):
    return leaf.astype("bfloat16" if dtype == FP8 else dtype)
  return leaf if dtype == FP8 else leaf.dequantise(dtype)
