"""Variables in memory as a source of tensors."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dsx.convert import huggingface_config
from dsx.convert import inventory
from dsx.convert import name_map
from dsx.convert import quantization
from dsx.convert import safetensors
from dsx.convert import tensor_source
from dsx.models import language_model
from dsx.ops import block_scaled
from dsx.parallel import sharding

_WIDE = {"F64": np.dtype(np.float32)}  # no format of weights is wider


class VariablesSource:
  """`params` and `router_bias`, cut into tensors; see `tensor_source`."""

  def __init__(self, config: language_model.Config, variables):
    """Checks that they are the config's.

    Args:
      config: the model.
      variables: in either layout.

    Raises:
      ValueError: if they are not, or Hugging Face cannot express the config.
    """
    self._config = config
    self._arrays = _by_path(variables)
    layout = name_map.layout_of(path[1] for path in self._arrays)
    self._leaves = name_map.leaves(config, layout)
    _check_variables(self._leaves, self._arrays)
    self._dtype = self._common_dtype()
    huggingface_config.to_json(config, self._dtype)
    self._pieces = {
      name: (leaf, index)
      for leaf in self._leaves
      for index, name in leaf.pieces()
    }
    self._entries = self._listed()

  @property
  def place(self) -> str:
    """Nowhere on a disk."""
    return "variables"

  @property
  def identity(self) -> Any:
    """Nothing to resume from."""
    return None

  @property
  def config(self) -> language_model.Config:
    """The model."""
    return self._config

  @property
  def companions(self) -> Mapping[str, bytes]:
    """None."""
    return {}

  @property
  def fields(self) -> dict[str, Any]:
    """What config.json would be for variables as they are."""
    fields = huggingface_config.to_json(self._config, self._dtype)
    if inventory.has_fp8(self.entries):
      fields[quantization.FIELD] = quantization.made(quantization.FLOAT32)
    return fields

  @property
  def entries(self) -> Mapping[str, tensor_source.Entry]:
    """Every tensor by name, with the copies that MTP layers hold."""
    return self._entries

  def _listed(self) -> dict[str, tensor_source.Entry]:
    entries = {}
    for name, (leaf, _) in self._pieces.items():
      array = self._arrays[leaf.path]
      entries[name] = self._entry(array.dtype, leaf.piece_shape)
      if isinstance(array, block_scaled.BlockScaled):
        shape = block_scaled.scales_shape(leaf.piece_shape)
        scales = self._entry(array.scales.dtype, shape)
        entries[name + name_map.SCALES] = scales
    for name, original in name_map.copies(self._config).items():
      entries[name] = entries[original]
    return entries

  def read(self, name: str) -> np.ndarray:
    """One tensor, [out, in]."""
    name = name_map.copies(self._config).get(name, name)
    is_scales = name.endswith(name_map.SCALES)
    leaf, index = self._pieces[name.removesuffix(name_map.SCALES)]
    array = self._arrays[leaf.path]
    if isinstance(array, block_scaled.BlockScaled):
      array = array.scales if is_scales else array.values
    piece = np.asarray(array[index])
    piece = piece.astype(_stored_dtype(piece.dtype), copy=False)
    return piece.T if leaf.transform == name_map.TRANSPOSE else piece

  def _entry(self, dtype, shape) -> tensor_source.Entry:
    name = safetensors.NAMES[_stored_dtype(dtype)]
    return tensor_source.Entry(name, tuple(shape), self.place)

  def _common_dtype(self) -> str:
    """The dtype of most parameters that are not FP8, for config.json."""
    names = [
      _stored_dtype(array.dtype).name
      for path, array in self._arrays.items()
      if path[0] == "params" and not isinstance(array, block_scaled.BlockScaled)
    ]
    return max(sorted(set(names)), key=names.count)


def _stored_dtype(dtype) -> np.dtype:
  dtype = np.dtype(dtype)
  return _WIDE.get(safetensors.NAMES.get(dtype, ""), dtype)


def _is_scaled(leaf) -> bool:
  return isinstance(leaf, block_scaled.BlockScaled)


def _by_path(variables) -> dict:
  with_path = jax.tree_util.tree_leaves_with_path(
    sharding.unbox(variables), is_leaf=_is_scaled
  )
  return {tuple(k.key for k in keys): leaf for keys, leaf in with_path}


def _check_variables(leaves, arrays) -> None:
  expected = {leaf.path: tuple(leaf.shape) for leaf in leaves}
  got = {path: tuple(array.shape) for path, array in arrays.items()}
  different = sorted(
    path for path in expected | got if expected.get(path) != got.get(path)
  )
  if different:
    path = different[0]
    raise ValueError(
      f"variables {'/'.join(path)} of shape {got.get(path)}: the config says "
      f"{expected.get(path)}; save the variables with their own config"
    )
