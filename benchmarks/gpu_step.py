"""The training step of v3_small on one device: tokens/s, MFU, memory, kernels.

  python benchmarks/gpu_step.py [--record]

Takes the model of gin_configs/models/v3_small.gin and the precisions, the
recomputation and the micro-batch of gin_configs/runs/v3_small.gin, on tokens
that are drawn: neither gin nor data nor TensorFlow is needed, only jax, flax,
optax, orbax-checkpoint, chex, einops and numpy. Times steps after the first
ones, then profiles a few more and prints the ten kernels that took the most
time. With --record all of it is appended to docs/benchmarks.md.

--tiny shrinks the model until a CPU takes a step at once: the whole way can be
tried without a GPU, and its numbers mean nothing.
"""

import argparse
import ast
import dataclasses
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import profiled
from benchmarks import report
from dsx import cost
from dsx.models import config as config_lib
from dsx.ops import dtypes as dtypes_lib

_MODEL = "gin_configs/models/v3_small.gin"
_BINDING = re.compile(r"^config\.DeepSeekConfig\.(\w+) = ([^#\n]+)", re.M)
_TINY: dict[str, Any] = {
  "vocab_size": 512,
  "hidden_size": 64,
  "intermediate_size": 96,
  "moe_intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "q_lora_rank": 32,
  "kv_lora_rank": 32,
  "qk_nope_head_dim": 16,
  "qk_rope_head_dim": 8,
  "v_head_dim": 16,
  "n_routed_experts": 16,
}
_PROFILED_STEPS = 3


def model_config(tiny: bool) -> config_lib.DeepSeekConfig:
  """The model, read from its gin file without gin: numbers, one a line."""
  path = pathlib.Path(__file__).resolve().parents[1] / _MODEL
  fields: dict[str, Any] = {
    name: ast.literal_eval(value.strip())
    for name, value in _BINDING.findall(path.read_text(encoding="utf-8"))
  }
  return config_lib.DeepSeekConfig(**(fields | (_TINY if tiny else {})))


class Training:
  """A compiled training step with its state and one batch of drawn tokens.

  Attributes:
    config: the model.
    shape: sequences and their length.
    compiled: the step.
    compile_seconds: it took that long.
  """

  def __init__(
    self,
    config: config_lib.DeepSeekConfig,
    execution: config_lib.Execution,
    dtypes: dtypes_lib.Dtypes,
    shape: tuple[int, int],
  ):
    import jax
    import numpy as np

    from dsx.models import deepseek
    from dsx.parallel import mesh as mesh_lib
    from dsx.parallel import sharding as sharding_lib
    from dsx.training import optimizer as optimizer_lib
    from dsx.training import state as state_lib
    from dsx.training import step as step_lib

    self.config, self.shape = config, shape
    model = deepseek.DeepSeek(config, dtypes, execution)
    optimizer = optimizer_lib.AdamW().transformation()
    mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
    rules = sharding_lib.Sharding()
    boxed = state_lib.abstract(model, optimizer)
    placement = state_lib.shardings(boxed, rules, mesh)
    rng = np.random.default_rng(0)
    size = (1, shape[0], shape[1] + 1)
    tokens = rng.integers(0, config.vocab_size, size).astype(np.int32)
    self._batch = jax.device_put({"tokens": tokens}, jax.devices()[0])
    self._scalars = {
      "learning_rate": np.float32(1e-4),
      "bias_update_speed": np.float32(1e-3),
      "balance_weight": np.float32(1e-4),
      "mtp_weight": np.float32(0.3),
      "micro_batches": np.int32(1),
    }
    with sharding_lib.use(mesh, rules):
      self._state = state_lib.initialise(model, optimizer, placement, 0)
      began = time.perf_counter()
      take = step_lib.compiled(model, optimizer, placement)
      lowered = take.lower(self._state, self._batch, self._scalars)
      self.compiled = lowered.compile()
      self.compile_seconds = time.perf_counter() - began

  def steps(self, count: int) -> float:
    """Takes steps; returns the last loss, once it is known."""
    for _ in range(count):
      self._state, metrics = self.compiled(
        self._state, self._batch, self._scalars
      )
    return float(metrics["loss"])

  def memory(self) -> dict[str, int]:
    """Bytes on the device: planned by the compiler, and at most in use."""
    import jax

    found = {}
    planned = self.compiled.memory_analysis()
    if planned is not None:
      # The step is given the state, and uses its bytes for the new one.
      found["state and batch"] = planned.argument_size_in_bytes
      found["temporary, planned"] = planned.temp_size_in_bytes
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
      found["peak in use"] = stats["peak_bytes_in_use"]
      found["of"] = stats.get("bytes_limit", 0)
    return found

  def top(self, folder: pathlib.Path) -> list[list[str]]:
    """Profiles a few steps; returns the cells of the slowest kernels."""
    import jax

    with jax.profiler.trace(str(folder)):
      self.steps(_PROFILED_STEPS)
    named = profiled.sources(self.compiled.as_text() or "")
    return profiled.rows(profiled.kernels(folder), named, _PROFILED_STEPS)


def measure(training: Training, steps: int, dtype: str) -> list[list[str]]:
  """Times steps; returns the cells of a table of what was measured."""
  import jax

  training.steps(2)
  began = time.perf_counter()
  loss = training.steps(steps)
  seconds = (time.perf_counter() - began) / steps
  device = jax.devices()[0]
  tokens = training.shape[0] * training.shape[1]
  flops = cost.flops_per_token(training.config, training.shape[1], mtp=True)
  peak = cost.device_peak_flops(device.device_kind, dtype)
  of = "published" if peak else "measured, float32"
  peak = peak or cost.measure_peak_flops()
  rate = tokens / seconds
  rows = [
    ["device", f"{device.device_kind}, jax {jax.__version__}"],
    ["tokens/s", f"{rate:,.0f}"],
    ["ms a step", f"{1e3 * seconds:,.1f}"],
    ["MFU", f"{rate * flops / peak:.1%} of {peak / 1e12:,.1f} TFLOP/s ({of})"],
    ["MFLOPs a token", f"{flops / 1e6:,.1f}"],
    ["compilation", f"{training.compile_seconds:,.1f} s"],
    ["loss at the end", f"{loss:.3f}"],
  ]
  for name, size in training.memory().items():
    rows.append([f"memory, {name}", f"{size / 2**30:,.2f} GiB"])
  return rows


def run(flags: argparse.Namespace) -> str:
  """Measures and profiles; returns what to print."""
  shape = (flags.batch or (2 if flags.tiny else 16),)
  shape += (flags.length or (64 if flags.tiny else 2048),)
  execution = config_lib.Execution(
    remat=flags.remat,
    attention=flags.attention,
    experts=flags.experts,
    unroll_layers=flags.unroll_layers,
  )
  dtypes = dataclasses.replace(dtypes_lib.Dtypes(), compute=flags.dtype)
  config = model_config(flags.tiny)
  training = Training(config, execution, dtypes, shape)
  rows = measure(training, flags.steps, flags.dtype)
  with tempfile.TemporaryDirectory() as folder:
    top = training.top(pathlib.Path(flags.profile or folder))
  parameters = cost.parameters(config) + cost.mtp_parameters(config)
  command = " ".join(["python benchmarks/gpu_step.py", *sys.argv[1:]])
  return (
    f"`{command}`: {parameters:,} parameters with MTP, {shape[0]} x {shape[1]}"
    f" tokens, {flags.dtype}, remat {flags.remat}, {flags.steps} steps.\n\n"
    + report.table(["", "measured"], rows)
    + f"\n\nThe ten kernels that take the most time, {_PROFILED_STEPS} steps"
    " (^ is backward):\n\n" + report.table(profiled.HEADER, top)
  )


def main():
  """Parses flags, runs, prints and, with --record, keeps it."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--batch", type=int, help="sequences; 16, tiny 2")
  parser.add_argument("--length", type=int, help="tokens; 2048, tiny 64")
  parser.add_argument("--steps", type=int, default=20, help="timed steps")
  parser.add_argument("--remat", default="paper", help="none, paper or full")
  parser.add_argument("--dtype", default="bfloat16", help="of matrix products")
  parser.add_argument("--attention", default="auto", help="of ops.attention")
  parser.add_argument("--experts", default="auto", help="of ops.expert_mlp")
  parser.add_argument("--unroll_layers", action="store_true")
  parser.add_argument("--tiny", action="store_true", help="for a CPU")
  parser.add_argument("--profile", help="folder to keep the profile in")
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args()
  import jax

  try:
    body = run(flags)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    sys.exit("the device's memory is full: give a smaller --batch, or --remat")
  print(body)
  if flags.record:
    report.record("Training step of v3_small on one device", body)


if __name__ == "__main__":
  main()
