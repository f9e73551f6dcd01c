"""DeepSeek-V2 and V3 checkpoints in Hugging Face's layout, to dsx and back.

`load` reads a folder of `config.json` and `*.safetensors`, tensor by tensor,
without torch or transformers; `save` writes one that both, and DeepSeek's own
code, can read. Everything that can be checked from the files' headers is
checked before the first tensor is read.

V3's files hold each MTP module as one more layer, with copies of embedding
and output head (dsx shares them, as section 2.2 does) and with the module's
final norm as `shared_head.norm`.
"""

import dataclasses
import re

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_config
from dsx.convert import name_map
from dsx.convert import safetensors
from dsx.models import config as config_lib
from dsx.parallel import sharding

_READABLE = ("F32", "BF16", "F16")
_DTYPES = ("float32", "bfloat16", "float16")


def load(path, *, dtype: str = "float32", mtp: bool = True):
  """Loads a checkpoint.

  Arrays are placed on JAX's default device, one parameter at a time; the host
  needs memory for the largest parameter (a stack of layers) beside them.

  Args:
    path: folder with `config.json` and one or several `*.safetensors`.
    dtype: of the parameters: float32, bfloat16 or float16. Router biases are
      float32 in any case.
    mtp: whether to load MTP modules, if there are any.

  Returns:
    (config, variables) for `models.deepseek.DeepSeek`: `variables` holds
    `params`, and `router_bias` if the model has one. The config counts the
    MTP modules that were loaded.

  Raises:
    ValueError: in one line, what is wrong with which file, field or tensor.
  """
  _check_dtype(dtype)
  folder = folder_lib.resolve(path)
  config = huggingface_config.read(folder)
  stored = folder_lib.tensors(folder)
  config, stored = _settle_mtp(folder, config, stored, mtp)
  leaves = name_map.leaves(config)
  copies = name_map.copies(config)
  _check_headers(folder, leaves, copies, stored)
  _check_copies(folder, copies, stored)
  variables: dict = {}
  for leaf in leaves:
    array = jnp.asarray(_assemble(leaf, stored, dtype))
    branch = variables
    for key in leaf.path[:-1]:
      branch = branch.setdefault(key, {})
    branch[leaf.path[-1]] = array
  return config, variables


def _check_dtype(dtype: str) -> None:
  if dtype not in _DTYPES:
    raise ValueError(
      f"dtype={dtype!r}: expected {', '.join(_DTYPES)}; router biases are "
      "float32 whatever it is"
    )


def _settle_mtp(folder, config: config_lib.DeepSeekConfig, stored, mtp: bool):
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
  if mtp and (modules or not n):
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


def _check_headers(folder, leaves, copies, stored) -> None:
  """Refuses missing, unexpected and misshapen tensors, and other dtypes."""
  for name, tensor in stored.items():
    if tensor.dtype.startswith("F8"):
      raise ValueError(
        f"{tensor.path}: tensor {name!r} is {tensor.dtype}: expected "
        f"{', '.join(_READABLE)}; convert the checkpoint to bfloat16 first"
      )
  wanted = set(copies)
  for leaf in leaves:
    for _, name in leaf.pieces():
      if name not in stored:
        expected = sum(leaf.n_pieces for leaf in leaves)
        raise ValueError(
          f"{folder}: tensor {name!r} is missing: config.json asks for "
          f"{expected} tensors, the files hold {len(stored)}; fetch all "
          "files, or correct config.json"
        )
      _check_tensor(name, stored[name], leaf.piece_shape)
      wanted.add(name)
  extra = sorted(stored.keys() - wanted)
  if extra:
    raise ValueError(
      f"{folder}: {len(extra)} tensor(s) that config.json does not explain, "
      f"the first {extra[0]!r}; correct config.json"
    )


def _check_tensor(name: str, tensor, shape: tuple[int, ...]) -> None:
  if tensor.dtype not in _READABLE:
    raise ValueError(
      f"{tensor.path}: tensor {name!r} is {tensor.dtype}: expected "
      f"{', '.join(_READABLE)}; convert it first"
    )
  if tensor.shape != shape:
    raise ValueError(
      f"{tensor.path}: tensor {name!r} has shape {list(tensor.shape)}: "
      f"config.json says {list(shape)}; correct config.json"
    )


def _check_copies(folder, copies, stored) -> None:
  """Refuses MTP modules with an embedding or a head of their own."""
  for name, original in copies.items():
    if name not in stored:
      continue
    copy = safetensors.read(stored[name])
    if not np.array_equal(copy, safetensors.read(stored[original])):
      raise ValueError(
        f"{folder}: tensor {name!r} is not equal to {original!r}, which MTP "
        "modules share; load with mtp=False to leave them out"
      )


def _assemble(leaf: name_map.Leaf, stored, dtype: str) -> np.ndarray:
  """Reads one parameter from its pieces."""
  # float32, because a bias of 0.5 swallows steps of 0.001 in bfloat16.
  is_bias = leaf.path[0] == "router_bias"
  whole = np.empty(leaf.shape, jnp.dtype("float32" if is_bias else dtype))
  for index, name in leaf.pieces():
    piece = safetensors.read(stored[name])
    if leaf.transform == name_map.TRANSPOSE:
      piece = piece.T
    with np.errstate(over="ignore"):
      whole[index] = piece
    _check_finite(stored[name].path, name, whole[index])
  return whole


def _check_finite(place, name: str, piece) -> None:
  finite = np.isfinite(piece)
  if not finite.all():
    raise ValueError(
      f"{place}: tensor {name!r} has {finite.size - finite.sum()} value(s) "
      f"that are not finite as {piece.dtype}; fetch or train it again"
    )


def save(
  path,
  config: config_lib.DeepSeekConfig,
  variables,
  *,
  dtype: str = "float32",
  shard_bytes: int = 5_000_000_000,
) -> None:
  """Saves a checkpoint in DeepSeek's layout.

  Args:
    path: an empty or new folder.
    config: the model.
    variables: its `params` and `router_bias`.
    dtype: of the files: float32, bfloat16 or float16. Router biases are
      float32 in any case.
    shard_bytes: size after which another file is begun.

  Raises:
    ValueError: if the variables are not the config's, are not finite, or if
      DeepSeek's layout cannot express the config.
  """
  _check_dtype(dtype)
  fields = huggingface_config.to_json(config, dtype)
  leaves = name_map.leaves(config)
  arrays = _by_path(variables)
  _check_variables(leaves, arrays)
  planned = {}
  for leaf in leaves:
    for index, name in leaf.pieces():
      planned[name] = _plan(leaf, arrays[leaf.path], index, name, dtype)
  for name, original in name_map.copies(config).items():
    planned[name] = planned[original]._replace(name=name)
  ordered = [planned[name] for name in sorted(planned, key=_natural)]
  folder_lib.write(folder_lib.new(path), fields, ordered, shard_bytes)


def _by_path(variables) -> dict:
  with_path = jax.tree_util.tree_leaves_with_path(sharding.unbox(variables))
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


def _plan(leaf, array, index, name: str, dtype: str) -> safetensors.Planned:
  is_bias = leaf.path[0] == "router_bias"
  dtype_of_file = jnp.dtype("float32" if is_bias else dtype)

  def make() -> np.ndarray:
    with np.errstate(over="ignore"):
      piece = np.asarray(array[index]).astype(dtype_of_file)
    _check_finite("variables", name, piece)
    return piece.T if leaf.transform == name_map.TRANSPOSE else piece

  return safetensors.Planned(name, leaf.piece_shape, dtype_of_file, make)


def _natural(name: str):
  """Sorts layer 10 after layer 9, so that a layer's tensors lie together."""
  return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
