"""Tiny models on the disk, and how a case spoils a copy of one."""

from collections.abc import Callable
import hashlib
import json
import pathlib

import ml_dtypes
import numpy as np

from dsx.convert import conversion
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_config
from dsx.convert import huggingface_source
from dsx.convert import name_map
from dsx.convert import safetensors
from dsx.models import config as config_lib
from dsx.training import imported

# Every kind of layer, and matrices of several blocks of FP8.
CONFIG = config_lib.DeepSeekConfig(
  vocab_size=320,
  hidden_size=160,
  intermediate_size=264,
  moe_intermediate_size=136,
  num_hidden_layers=2,
  first_k_dense_replace=1,
  num_nextn_predict_layers=1,
  num_attention_heads=2,
  q_lora_rank=136,
  kv_lora_rank=136,
  qk_nope_head_dim=8,
  qk_rope_head_dim=4,
  v_head_dim=8,
  n_routed_experts=4,
  n_group=2,
  topk_group=1,
  num_experts_per_tok=2,
  max_position_embeddings=64,
)
WEIGHTS = "model.safetensors"


def make(folder: pathlib.Path) -> None:
  """Writes `bf16` and `fp8` in Hugging Face's layout, and the workdir `run`."""
  rng = np.random.default_rng(0)
  made = {}
  for leaf in name_map.leaves(CONFIG):
    for _, name in leaf.pieces():
      noise = 0.05 * rng.standard_normal(leaf.piece_shape, dtype=np.float32)
      made[name] = noise if leaf.is_bias else noise.astype(ml_dtypes.bfloat16)
  for name, original in name_map.copies(CONFIG).items():
    made[name] = made[original]
  bf16 = folder / "bf16"
  bf16.mkdir()
  fields = huggingface_config.to_json(CONFIG, "bfloat16")
  (bf16 / folder_lib.CONFIG).write_text(json.dumps(fields))
  _write(bf16 / WEIGHTS, made)
  options = conversion.Conversion(target_format="hf_fp8")
  source = huggingface_source.find(bf16)
  conversion.write(source, folder / "fp8", options)
  imported.write(bf16, folder / "run")


def _write(path: pathlib.Path, made: dict[str, np.ndarray]) -> None:
  planned = [
    safetensors.Planned(
      name, array.shape, array.dtype, lambda array=array: [array]
    )
    for name, array in made.items()
  ]
  safetensors.write(path, planned)


def change_tensors(
  folder: pathlib.Path, change: Callable[[dict[str, np.ndarray]], object]
) -> None:
  """Lets `change` edit the tensors of a folder, which it gets by name."""
  stored = folder_lib.tensors(folder)
  made = {name: safetensors.read(tensor) for name, tensor in stored.items()}
  change(made)
  (folder / folder_lib.INDEX).unlink(missing_ok=True)
  _write(folder / WEIGHTS, made)


def change_fields(folder: pathlib.Path, **fields) -> None:
  """Changes config.json; a dict changes fields of a field."""
  path = folder / folder_lib.CONFIG
  whole = json.loads(path.read_text())
  for name, value in fields.items():
    inner = whole.get(name)
    both = isinstance(value, dict) and isinstance(inner, dict)
    whole[name] = {**inner, **value} if both else value
  path.write_text(json.dumps(whole))


def index(folder: pathlib.Path, name: str) -> None:
  """Writes an index by which file `name` holds every tensor."""
  table = {tensor: name for tensor in folder_lib.tensors(folder)}
  text = json.dumps({"weight_map": table})
  (folder / folder_lib.INDEX).write_text(text)


def is_whole(folder: pathlib.Path) -> bool:
  """Whether anybody would take a folder for a model."""
  manifests = folder.glob("checkpoints/*/manifest.json")
  return (folder / folder_lib.CONFIG).exists() or any(manifests)


def digest(folder: pathlib.Path) -> str:
  """Of the names and contents of all files below a folder."""
  total = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    total.update(repr(str(path.relative_to(folder))).encode())
    if path.is_file():
      total.update(hashlib.sha256(path.read_bytes()).digest())
  return total.hexdigest()
