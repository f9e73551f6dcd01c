"""Folders in Hugging Face's layout, written without the code under test."""

from collections.abc import Mapping
import json
import pathlib

import ml_dtypes
import numpy as np

from dsx.convert import huggingface_config
from dsx.convert import name_map
from dsx.models import config as config_lib

_NAMES = {
  "float32": "F32",
  "float16": "F16",
  "bfloat16": "BF16",
  "float8_e4m3fn": "F8_E4M3",
  "float8_e8m0fnu": "F8_E8M0",
}
_FP8 = {
  "quant_method": "fp8",
  "fmt": "e4m3",
  "activation_scheme": "dynamic",
  "weight_block_size": [128, 128],
}


def write_file(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a .safetensors file."""
  header, offset = {}, 0
  for name, array in tensors.items():
    header[name] = {
      "dtype": _NAMES[array.dtype.name],
      "shape": list(array.shape),
      "data_offsets": [offset, offset + array.nbytes],
    }
    offset += array.nbytes
  text = json.dumps(header).encode()
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for array in tensors.values():
      file.write(np.ascontiguousarray(array).tobytes())


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads every tensor of a folder, as raw bytes of their dtypes."""
  found = {}
  dtypes = {short: name for name, short in _NAMES.items()}
  for path in sorted(folder.glob("*.safetensors")):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in header.items():
      begin, end = (8 + length + i for i in entry["data_offsets"])
      dtype = np.dtype(getattr(ml_dtypes, dtypes[entry["dtype"]], None) or "f4")
      if entry["dtype"] == "F16":
        dtype = np.dtype(np.float16)
      flat = np.frombuffer(data[begin:end], dtype)
      found[name] = flat.reshape(entry["shape"])
  return found


def tensors(
  config: config_lib.DeepSeekConfig,
  dtype: str = "bfloat16",
  *,
  scales: str = "float32",
  copies: bool = True,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Random tensors of a model under the names of its files.

  Args:
    config: the model.
    dtype: bfloat16, float16 or float32; fp8 for linear layers in FP8 and all
      else in bfloat16.
    scales: dtype of the scales of fp8.
    copies: whether MTP modules bring embedding and head along.
    seed: of the numbers.
  """
  rng = np.random.default_rng(seed)
  plain = "bfloat16" if dtype == "fp8" else dtype
  plain = getattr(ml_dtypes, plain, plain)
  made: dict[str, np.ndarray] = {}
  for leaf in name_map.leaves(config):
    for _, name in leaf.pieces():
      noise = rng.normal(size=leaf.piece_shape).astype(np.float32)
      if name.endswith("norm.weight"):
        made[name] = (1 + 0.1 * noise).astype(plain)
      elif leaf.path[0] == "router_bias":
        made[name] = 0.1 * noise
      elif dtype == "fp8" and leaf.is_linear:
        made[name] = np.clip(100 * noise, -448, 448).astype(
          ml_dtypes.float8_e4m3fn
        )
        shape = [-(-n // 128) for n in leaf.piece_shape]
        exponents = rng.integers(-9, -7, shape)
        scale = 2.0**exponents * (1.0 if scales != "float32" else 1.1)
        made[f"{name}_scale_inv"] = scale.astype(
          getattr(ml_dtypes, scales, scales)
        )
      else:
        made[name] = (noise / leaf.piece_shape[-1] ** 0.5).astype(plain)
  if copies:
    for name, original in name_map.copies(config).items():
      made[name] = made[original]
  return made


def write(
  folder: pathlib.Path,
  config: config_lib.DeepSeekConfig,
  made: Mapping[str, np.ndarray],
  **files: str,
) -> pathlib.Path:
  """Writes a folder in one file, config.json and others beside it."""
  folder.mkdir(parents=True)
  fields = huggingface_config.to_json(config, "bfloat16")
  fields["x_of_another_program"] = [1, "two"]
  if any(array.dtype.name.startswith("float8") for array in made.values()):
    fields["quantization_config"] = _FP8
  (folder / "config.json").write_text(json.dumps(fields))
  for name, text in files.items():
    (folder / name).write_text(text)
  write_file(folder / "model.safetensors", made)
  return folder
