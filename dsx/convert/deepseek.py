"""Checkpoints in Hugging Face's layout, to dsx and back: DeepSeek's and dense.

DeepSeek-V2 and V3; Qwen2, Qwen3 and Llama (`models/dense.py`).

`load` reads a folder of `config.json` and `*.safetensors`, tensor by tensor,
without torch or transformers; `save` writes one that both, and DeepSeek's own
code, can read. Everything that can be checked from the files' headers is
checked before the first tensor is read.

V3's files hold each MTP module as one more layer, with copies of embedding
and output head (dsx shares them, as section 2.2 does) and with the module's
final norm as `shared_head.norm`.
"""

from collections.abc import Callable

from absl import logging
import jax.numpy as jnp
import numpy as np

from dsx.convert import data_check
from dsx.convert import encoding as encoding_lib
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_source
from dsx.convert import inventory
from dsx.convert import name_map
from dsx.convert import placement
from dsx.convert import tensor_source
from dsx.convert import variables_source
from dsx.models import language_model
from dsx.ops import block_scaled
from dsx.parallel import sharding as sharding_lib

FP8 = "fp8"
DTYPES = ("float32", "bfloat16", "float16", FP8)


def load(
  path,
  *,
  dtype: str = "float32",
  mtp: bool = True,
  layout: str = name_map.STACKED,
  mesh=None,
  sharding: sharding_lib.Sharding | None = None,
  progress: Callable[[int, int, str], None] | None = None,
):
  """Loads a checkpoint.

  Every tensor goes from its file to its place on the devices; the host holds
  one at a time.

  Args:
    path: folder with `config.json` and one or several `*.safetensors`.
    dtype: of the parameters: float32, bfloat16 or float16, to which FP8
      matrices are dequantised; or fp8, which keeps these as
      `block_scaled.BlockScaled` and makes the rest bfloat16. Router biases are
      float32 in any case.
    mtp: whether to load MTP modules, if there are any.
    layout: `stacked`, for training, or `layers`, for inference.
    mesh: the devices to spread parameters over, by default one.
    sharding: how, by default fully sharded.
    progress: called with bytes read, bytes in all and a tensor's name.

  Returns:
    (config, variables) for `models.language_model.build`: `variables` holds
    `params`, and `router_bias` if the model has one. The config counts the
    MTP modules that were loaded.

  Raises:
    ValueError: in one line, what is wrong with which file, field or tensor.
  """
  _check_dtype(dtype)
  if layout not in name_map.LAYOUTS:
    raise ValueError(
      f"layout={layout!r}: expected {' or '.join(name_map.LAYOUTS)}"
    )
  source = huggingface_source.find(path, mtp=mtp)
  if dtype == FP8 and not inventory.has_fp8(source.entries):
    raise ValueError(
      f"{source.place}: no tensor is FP8, as dtype='fp8' expects; load it as "
      "bfloat16, or convert it to hf_fp8 first"
    )
  source.check_copies()
  leaves = name_map.leaves(source.config, layout)
  places = [placement.leaf_sharding(leaf, mesh, sharding) for leaf in leaves]
  reader = _Reader(source, leaves, progress)
  variables: dict = {}
  for leaf, place in zip(leaves, places, strict=True):
    branch = variables
    for key in leaf.path[:-1]:
      branch = branch.setdefault(key, {})
    branch[leaf.path[-1]] = _filled(leaf, dtype, place, reader)
  return source.config, variables


def _check_dtype(dtype: str) -> None:
  if dtype not in DTYPES:
    raise ValueError(
      f"dtype={dtype!r}: expected {', '.join(DTYPES)}; router biases are "
      "float32 whatever it is"
    )


class _Reader:
  """Reads tensors of a source, checks their numbers and counts bytes."""

  def __init__(self, source: tensor_source.TensorSource, leaves, progress):
    self.source = source
    self._progress = progress
    self._done = 0
    names = [name for leaf in leaves for _, name in leaf.pieces()]
    self._total = sum(self._size(name) for name in names)

  def _size(self, name: str) -> int:
    return data_check.n_bytes(self.source.entries[name])

  def is_fp8(self, name: str) -> bool:
    return inventory.is_fp8(self.source.entries, name)

  def read(self, name: str, dtype) -> np.ndarray:
    """The numbers, all of which `dtype` can hold."""
    array = self.source.read(name)
    place = self.source.entries[name].place
    dtype = "float32" if self.is_fp8(name) else dtype
    data_check.check_finite(place, name, array, jnp.dtype(dtype))
    self.skip(name)
    return array

  def skip(self, name: str) -> None:
    """Counts a tensor, read or left to other processes."""
    self._done += self._size(name)
    if self._progress is not None:
      self._progress(self._done, self._total, name)

  def scales(self, name: str, dtype) -> np.ndarray:
    """The scales of an FP8 matrix, whose product `dtype` can hold."""
    data_check.check_product(self.source, name, jnp.dtype(dtype))
    scales = self.source.read(name + name_map.SCALES)
    return scales.astype(np.float32)


def _filled(leaf: name_map.Leaf, dtype: str, place, reader: _Reader):
  """Reads one parameter: an array, or values and scales."""
  how = {
    "stacked": leaf.stacked,
    "transpose": leaf.transform == name_map.TRANSPOSE,
    "sharding": place,
  }
  if dtype == FP8:
    if _keeps_fp8(leaf, reader):
      return _filled_fp8(leaf, how, reader)
    dtype = "bfloat16"
  # float32, because a bias of 0.5 swallows steps of 0.001 in bfloat16.
  dtype = "float32" if leaf.is_bias else dtype
  target = placement.Target(leaf.shape, dtype, **how)
  for index, name in leaf.pieces():
    if not target.wants(index):
      reader.skip(name)
      continue
    is_fp8 = reader.is_fp8(name)
    scales = reader.scales(name, dtype) if is_fp8 else None
    target.put(index, placement.Piece(reader.read(name, dtype), scales))
  return target.array()


def _keeps_fp8(leaf: name_map.Leaf, reader: _Reader) -> bool:
  """Whether every piece is FP8; says so if some are and some are not."""
  kinds = {reader.is_fp8(name) for _, name in leaf.pieces()}
  if len(kinds) == 2:
    logging.warning(
      "%s: some tensors of %s are FP8 and some are not; all of them are loaded "
      "as bfloat16",
      reader.source.place,
      "/".join(leaf.path),
    )
  return kinds == {True}


def _filled_fp8(leaf: name_map.Leaf, how, reader: _Reader):
  values = placement.Target(leaf.shape, jnp.float8_e4m3fn, **how)
  how = {**how, "sharding": placement.of_scales(how["sharding"], leaf.stacked)}
  shape = block_scaled.scales_shape(leaf.shape)
  scales = placement.Target(shape, jnp.float32, **how)
  for index, name in leaf.pieces():
    if not values.wants(index):
      reader.skip(name)
      continue
    scales.put(index, placement.Piece(reader.scales(name, "float32")))
    values.put(index, placement.Piece(reader.read(name, "float32")))
  return block_scaled.BlockScaled(values.array(), scales.array())


def save(
  path,
  config: language_model.Config,
  variables,
  *,
  dtype: str = "float32",
  scale_format: str | None = None,
  shard_bytes: int = 5_000_000_000,
) -> None:
  """Saves a checkpoint in DeepSeek's layout.

  Args:
    path: an empty or new folder.
    config: the model.
    variables: its `params` and `router_bias`, in either layout; parameters
      may be `block_scaled.BlockScaled`.
    dtype: of the files: float32, bfloat16 or float16; or fp8. With fp8,
      parameters that are BlockScaled are written as they are and so is
      everything beside them; if none is, linear layers are quantised and the
      rest is written in bfloat16. Router biases are float32 in any case.
    scale_format: with fp8: float32, ue8m0 (powers of two, stored in float32)
      or e8m0 (stored in one byte); by default as they are, or float32.
    shard_bytes: size after which another file is begun.

  Raises:
    ValueError: if the variables are not the config's, are not finite, or if
      DeepSeek's layout cannot express the config.
  """
  _check_dtype(dtype)
  source = variables_source.VariablesSource(config, variables)
  is_fp8 = dtype == FP8
  encoding = encoding_lib.choose(
    source,
    fp8=is_fp8,
    dtype=None if is_fp8 else dtype,
    scale_format=scale_format,
  )
  data_check.check(encoding)
  folder = folder_lib.new(path)
  folder_lib.write(folder, encoding.fields(), encoding.planned(), shard_bytes)
