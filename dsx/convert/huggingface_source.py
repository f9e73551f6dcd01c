"""A folder in Hugging Face's layout as a source of tensors."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from absl import logging
import numpy as np

from dsx.convert import companions as companions_lib
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_config
from dsx.convert import inventory
from dsx.convert import name_map
from dsx.convert import row_chunks
from dsx.convert import safetensors
from dsx.convert import tensor_source
from dsx.models import dense_config
from dsx.models import language_model


@dataclasses.dataclass(frozen=True)
class HuggingFaceSource:
  """A checkpoint folder, its headers checked; see `tensor_source`.

  Attributes:
    folder: where it is.
    config: the model that its tensors are.
    fields: content of config.json.
    stored: where each tensor lies.
    entries: what is known of each.
  """

  folder: pathlib.Path
  config: language_model.Config
  fields: dict[str, Any]
  stored: Mapping[str, safetensors.Tensor]
  entries: Mapping[str, tensor_source.Entry]

  @property
  def place(self) -> str:
    """The folder."""
    return str(self.folder)

  @property
  def identity(self) -> Any:
    """Names, sizes and times of the files that hold weights."""
    paths = {tensor.path for tensor in self.stored.values()}
    paths.add(self.folder / folder_lib.CONFIG)
    return [
      [path.name, path.stat().st_size, path.stat().st_mtime_ns]
      for path in sorted(paths)
    ]

  @property
  def companions(self) -> Mapping[str, bytes]:
    """Tokenizer and the like."""
    return companions_lib.read(self.folder)

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor."""
    return safetensors.read(self.stored[name])

  def check_copies(self) -> None:
    """Refuses repeated tensors that are not what they should repeat."""
    for name, original in name_map.accepted_copies(self.config).items():
      if name in self.stored and not self._equal(name, original):
        raise ValueError(
          f"{self.folder}: tensor {name!r} is not equal to {original!r}, "
          f"which {_remedy(self.config)}"
        )

  def _equal(self, name: str, other: str) -> bool:
    """Whether two tensors hold the same numbers."""
    one, two = self.stored[name], self.stored[other]
    return all(
      np.array_equal(safetensors.read(one, rows), safetensors.read(two, rows))
      for rows in row_chunks.row_chunks(one.shape)
    )


def _remedy(config: language_model.Config) -> str:
  if isinstance(config, dense_config.DenseConfig):
    return (
      "it repeats where config.json has tie_word_embeddings=true; set that to "
      "false"
    )
  return (
    "MTP modules share; converting with --target_format=hf keeps it, loading "
    "with mtp=False leaves it out"
  )


def find(path, *, mtp: bool = True) -> HuggingFaceSource:
  """The checkpoint at `path`, checked as far as headers go.

  Args:
    path: folder with config.json and *.safetensors.
    mtp: whether MTP modules count, if there are any.

  Raises:
    ValueError: in one line, what is wrong with which file, field or tensor.
  """
  folder = folder_lib.resolve(path)
  fields = folder_lib.read_json(folder, folder_lib.CONFIG)
  config = huggingface_config.read(folder)
  stored = folder_lib.tensors(folder)
  config, stored = _settle_mtp(folder, config, stored, mtp)
  _check_sizes(folder, config)
  entries = {
    name: tensor_source.Entry(tensor.dtype, tensor.shape, str(tensor.path))
    for name, tensor in stored.items()
  }
  inventory.check(str(folder), config, fields, entries)
  return HuggingFaceSource(folder, config, fields, stored, entries)


def _check_sizes(folder: pathlib.Path, config) -> None:
  """Refuses a config whose arrays nothing could hold."""
  try:
    name_map.leaves(config)
  except (OverflowError, TypeError, ValueError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f"{folder / folder_lib.CONFIG}: its sizes make no model ({reason}); "
      "give the checkpoint's own config.json"
    ) from error


def _settle_mtp(folder, config: language_model.Config, stored, mtp: bool):
  """The config with as many MTP modules as are loaded, and its tensors."""
  first, n = config.num_hidden_layers, config.num_nextn_predict_layers
  layers = {name: name_map.layer_of(name) for name in stored}
  modules = {k for k in layers.values() if k and first <= k < first + n}
  last = first + n - 1
  if mtp and modules and last not in modules:
    raise ValueError(
      f"{folder}: config.json announces {n} MTP module(s), and no tensor is "
      f"named model.layers.{last}.*; fetch all files, or correct config.json"
    )
  if not n or (mtp and modules):
    return config, stored
  if mtp:
    logging.warning(
      "%s: config.json announces %d MTP module(s) but no tensor is named "
      "model.layers.%d.*; loaded without MTP",
      folder,
      n,
      first,
    )
  stored = {k: v for k, v in stored.items() if layers[k] not in modules}
  return dataclasses.replace(config, num_nextn_predict_layers=0), stored
