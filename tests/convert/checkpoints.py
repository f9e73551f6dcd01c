"""Checkpoint folders for tests: small, with blocks of FP8 at ragged edges."""

import hashlib
import json
import pathlib

import numpy as np

from dsx.convert import deepseek as convert
from dsx.convert import folder as folder_lib
from dsx.convert import safetensors
from tests.models import tiny


def config(**changes):
  """Every kind of layer; matrices of up to 2 x 3 blocks."""
  fields = {
    "vocab_size": 32,
    "hidden_size": 160,
    "intermediate_size": 264,
    "moe_intermediate_size": 136,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 136,
    "kv_lora_rank": 136,
    "v_head_dim": 8,
  }
  return tiny.config(**(fields | changes))


def write(folder, *, dtype="bfloat16", shard_bytes=1 << 30, **kwargs):
  """Saves random variables; returns the folder."""
  made = config()
  convert.save(
    folder,
    made,
    tiny.variables(made),
    dtype=dtype,
    shard_bytes=shard_bytes,
    **kwargs,
  )
  return pathlib.Path(folder)


def tensors(folder) -> dict[str, np.ndarray]:
  """All tensors of a folder."""
  stored = folder_lib.tensors(pathlib.Path(folder))
  return {name: safetensors.read(tensor) for name, tensor in stored.items()}


def content(folder) -> dict[str, tuple]:
  """Dtype, shape and digest of all tensors of a folder."""
  return {
    name: (array.dtype.name, array.shape, _digest(array))
    for name, array in tensors(folder).items()
  }


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(array.tobytes()).hexdigest()


def edit(folder, change=None, **fields) -> None:
  """Changes tensors (a dict, in one file) and fields of config.json."""
  folder = pathlib.Path(folder)
  if change is not None:
    arrays = tensors(folder)
    change(arrays)
    path = folder / "model.safetensors"
    planned = [
      safetensors.Planned(k, v.shape, v.dtype, lambda v=v: [v])
      for k, v in arrays.items()
    ]
    safetensors.write(path, planned)
  path = folder / folder_lib.CONFIG
  whole = {**json.loads(path.read_text()), **fields}
  whole = {k: v for k, v in whole.items() if v is not ...}
  path.write_text(json.dumps(whole))


def fields(folder) -> dict:
  """Content of config.json."""
  return json.loads((pathlib.Path(folder) / folder_lib.CONFIG).read_text())
