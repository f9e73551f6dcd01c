"""Peak memory of converting a checkpoint of 2 GB, against its largest tensor.

Makes a checkpoint shaped like DeepSeek-V3 (bfloat16, several shards, one MTP
module), then converts it with `experiments.convert`, each time in a process
of its own, and reads that process's peak resident memory from the kernel
(VmHWM). What the same program needs for a checkpoint of the same shape with
one layer and a tiny vocabulary is its constant; what it needs beyond that is
compared with the largest tensor. The bound is twice that tensor.

  python benchmarks/convert_memory.py [--folder DIR] [--record]
"""

import argparse
import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import report
from dsx.models import config as config_lib

_ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = config_lib.DeepSeekConfig(
  vocab_size=32_000,
  hidden_size=2048,
  intermediate_size=8192,
  moe_intermediate_size=1024,
  num_hidden_layers=6,
  num_nextn_predict_layers=1,
  num_attention_heads=16,
  n_routed_experts=16,
  num_experts_per_tok=4,
  n_group=4,
  topk_group=2,
  first_k_dense_replace=1,
  q_lora_rank=768,
  kv_lora_rank=512,
)
# The same program on next to nothing: imports, compilation, buffers.
SMALL = dataclasses.replace(
  CONFIG,
  vocab_size=128,
  intermediate_size=1024,
  num_hidden_layers=2,
  n_routed_experts=4,
  num_experts_per_tok=2,
)
_SHARD_BYTES = 500_000_000
_POLL_SECONDS = 0.01
# source, target, format; each target is the next one's source.
_STEPS = (
  ("bf16", "fp8", "hf_fp8"),
  ("fp8", "bf16_again", "hf"),
  ("bf16", "workdir", "orbax"),
  ("workdir", "bf16_from_workdir", "hf"),
  ("fp8", "workdir_fp8", "orbax"),
  ("workdir_fp8", "fp8_from_workdir", "hf_fp8"),
)
# Loading in Python, with what the arrays themselves take.
_LOADS = (("bf16", "bfloat16"), ("fp8", "bfloat16"), ("fp8", "fp8"))


def make(folder: pathlib.Path, config: config_lib.DeepSeekConfig) -> None:
  """Writes a random checkpoint."""
  import ml_dtypes
  import numpy as np

  from dsx.convert import folder as folder_lib
  from dsx.convert import huggingface_config
  from dsx.convert import name_map
  from dsx.convert import safetensors

  rng = np.random.default_rng(0)

  def random(shape):
    noise = rng.standard_normal(shape, dtype=np.float32)
    return [(0.02 * noise).astype(ml_dtypes.bfloat16)]

  copies = name_map.copies(config)
  made = {}
  planned = []
  for leaf in name_map.leaves(config):
    for _, name in leaf.pieces():
      shape = leaf.piece_shape
      dtype = np.dtype(np.float32 if leaf.is_bias else ml_dtypes.bfloat16)

      def parts(shape=shape, dtype=dtype, name=name):
        if name in copies.values():  # repeated by the MTP module
          made[name] = made.get(name) or random(shape)
          return made[name]
        return [part.astype(dtype) for part in random(shape)]

      planned.append(safetensors.Planned(name, shape, dtype, parts))
  by_name = {tensor.name: tensor for tensor in planned}
  planned += [by_name[o]._replace(name=name) for name, o in copies.items()]
  planned.sort(key=lambda tensor: name_map.natural(tensor.name))
  fields = huggingface_config.to_json(config, "bfloat16")
  folder_lib.write(folder_lib.new(folder), fields, planned, _SHARD_BYTES)


def load(folder: pathlib.Path, dtype: str) -> None:
  """Loads a checkpoint and prints the bytes of its arrays."""
  import jax

  from dsx.convert import deepseek

  _, variables = deepseek.load(folder, dtype=dtype, layout="layers")
  print(sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))


def run(*command: str) -> dict:
  """Runs a Python command; its output, seconds and peak memory in bytes."""
  start = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, *command],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  peak = 0
  while process.poll() is None:
    peak = max(peak, _peak(process.pid))
    time.sleep(_POLL_SECONDS)
  out, err = process.communicate()
  if process.returncode:
    raise SystemExit(f"{' '.join(command)}: {err}")
  seconds = time.monotonic() - start
  return {"out": out, "seconds": seconds, "peak": peak}


def _peak(pid: int) -> int:
  """The most memory that a process has had resident, in bytes."""
  try:
    text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
  except OSError:  # it has ended
    return 0
  lines = dict(line.split(":", 1) for line in text.splitlines())
  return 1024 * int(lines.get("VmHWM", "0 kB").split()[0])


def _tensors(folder: pathlib.Path) -> dict:
  """Sizes of a checkpoint's tensors: in all, of the largest; and shards."""
  from dsx.convert import data_check
  from dsx.convert import huggingface_source

  source = huggingface_source.find(folder)
  sizes = [data_check.n_bytes(entry) for entry in source.entries.values()]
  shards = len(list(folder.glob("*.safetensors")))
  return {"all": sum(sizes), "largest": max(sizes), "shards": shards}


def measure(root: pathlib.Path) -> str:
  """Makes, converts, loads and describes it in Markdown."""
  for size in ("small", "large"):
    (root / size).mkdir()
    run(__file__, "--make", size, "--folder", str(root / size / "bf16"))
  made = _tensors(root / "large" / "bf16")
  rows = []
  for source, target, kind in _STEPS:
    measured = {
      size: run(
        "-m",
        "experiments.convert",
        f"--source={root / size / source}",
        f"--target={root / size / target}",
        f"--target_format={kind}",
        f"--shard_bytes={_SHARD_BYTES}",
      )
      for size in ("small", "large")
    }
    name = f"{source} -> {target}"
    rows.append(_row(name, measured, {"small": 0, "large": 0}, made))
    print(rows[-1], file=sys.stderr)
  for source, dtype in _LOADS:
    measured = {
      size: run(
        __file__, "--load", dtype, "--folder", str(root / size / source)
      )
      for size in ("small", "large")
    }
    arrays = {size: int(m["out"]) for size, m in measured.items()}
    name = f"load {source} as {dtype}"
    rows.append(_row(name, measured, arrays, made))
    print(rows[-1], file=sys.stderr)
  header = ["conversion", "s", "peak MB", "constant MB", "arrays MB"]
  header += ["beyond MB", "x largest tensor"]
  return (
    f"{made['all'] / 1e9:.2f} GB in {made['shards']} shards, the largest "
    f"tensor {made['largest'] / 1e6:.0f} MB.\n\n"
    + report.table(header, rows)
    + "\n\n"
    + _equal(root / "large")
  )


def _row(name: str, measured: dict, arrays: dict, made: dict) -> list[str]:
  """Peak of the large one, less arrays and the small one's constant."""
  constant = measured["small"]["peak"] - arrays["small"]
  beyond = measured["large"]["peak"] - arrays["large"] - constant
  return [
    name,
    f"{measured['large']['seconds']:.0f}",
    f"{measured['large']['peak'] / 1e6:.0f}",
    f"{constant / 1e6:.0f}",
    f"{arrays['large'] / 1e6:.0f}",
    f"{beyond / 1e6:.0f}",
    f"{beyond / made['largest']:.2f}",
  ]


def _equal(root: pathlib.Path) -> str:
  """Which tensors came back as they were."""
  from dsx.convert import huggingface_source

  said = []
  for one, two in (("bf16", "bf16_from_workdir"), ("fp8", "fp8_from_workdir")):
    first = huggingface_source.find(root / one)
    second = huggingface_source.find(root / two)
    same = first.entries.keys() == second.entries.keys() and all(
      first.read(name).tobytes() == second.read(name).tobytes()
      for name in first.entries
    )
    how = "equal bit for bit" if same else "DIFFERENT"
    said.append(f"{one} and {two}: {len(first.entries)} tensors {how}")
  return "; ".join(said) + "."


def main():
  """Parses flags, measures, prints and, with --record, keeps the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", help="Where to work; 12 GB.")
  parser.add_argument("--record", action="store_true")
  parser.add_argument("--make", choices=("small", "large"))
  parser.add_argument("--load")
  flags = parser.parse_args()
  if flags.make:
    config = SMALL if flags.make == "small" else CONFIG
    make(pathlib.Path(flags.folder), config)
    return
  if flags.load:
    load(pathlib.Path(flags.folder), flags.load)
    return
  root = pathlib.Path(tempfile.mkdtemp(prefix="convert_", dir=flags.folder))
  try:
    body = measure(root)
  finally:
    shutil.rmtree(root)
  print(body)
  if flags.record:
    report.record("Peak memory of a conversion", body)


if __name__ == "__main__":
  main()
