"""One training step of dsx beside one of Hugging Face `transformers`.

Both train the same DeepSeek-V3 (6 layers, width 256, 16 experts top-4,
vocabulary 8192) on batches of 4 x 256 tokens on this machine's CPU, in
float32: forward, backward, clipping, AdamW. Each side runs in a process of its
own; a third measures the machine's matrix multiplication. The three take
turns, round after round, so that whatever else the machine does falls on all
of them alike, and one number is compared with another of the same round.

  python benchmarks/train_step.py [--rounds 5] [--record]

The `transformers` side is given the fastest of its own settings (attention
and expert implementations, PyTorch's fused AdamW); both get the same memory
allocator settings. Needs the `test` extra.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import report
from dsx import cost
from dsx.models import config as config_lib

BATCH, LENGTH = 4, 256
CONFIG = config_lib.DeepSeekConfig(
  vocab_size=8192,
  hidden_size=256,
  intermediate_size=640,
  moe_intermediate_size=128,
  num_hidden_layers=6,
  num_nextn_predict_layers=0,
  num_attention_heads=4,
  n_shared_experts=1,
  n_routed_experts=16,
  num_experts_per_tok=4,
  n_group=4,
  topk_group=2,
  first_k_dense_replace=1,
  q_lora_rank=64,
  kv_lora_rank=64,
  qk_nope_head_dim=64,
  qk_rope_head_dim=32,
  v_head_dim=64,
  max_position_embeddings=LENGTH,
)

# Memory that a step frees stays with the process, in large pages. Without
# this, both sides spend a good part of a step on page faults.
ALLOCATOR = ":".join(
  f"glibc.malloc.{name}={value}"
  for name, value in (
    ("hugetlb", 1),
    ("mmap_max", 0),
    ("trim_threshold", 1 << 40),
    ("top_pad", 1 << 26),
  )
)


def _batch():
  import numpy as np

  rng = np.random.default_rng(0)
  shape = (BATCH, LENGTH + 1)
  return rng.integers(0, CONFIG.vocab_size, shape).astype(np.int32)


def dsx():
  """A function that takes n steps of dsx and returns the last loss."""
  import jax
  import numpy as np

  from dsx.models import deepseek
  from dsx.parallel import mesh as mesh_lib
  from dsx.parallel import sharding as sharding_lib
  from dsx.training import optimizer as optimizer_lib
  from dsx.training import state as state_lib
  from dsx.training import step as step_lib

  execution = config_lib.Execution(unroll_layers=True)
  model = deepseek.DeepSeek(CONFIG, execution=execution)
  optimizer = optimizer_lib.AdamW().transformation()
  mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
  rules = sharding_lib.Sharding()
  boxed = state_lib.abstract(model, optimizer)
  placement = state_lib.shardings(boxed, rules, mesh)
  batch = {"tokens": _batch()[None]}
  scalars = {
    "learning_rate": np.float32(1e-4),
    "bias_update_speed": np.float32(1e-3),
    "balance_weight": np.float32(1e-4),
    "mtp_weight": np.float32(0.0),
    "micro_batches": np.int32(1),
  }
  with sharding_lib.use(mesh, rules):
    state = state_lib.initialise(model, optimizer, placement, 0)
    take = step_lib.compiled(model, optimizer, placement)
    take = take.lower(state, batch, scalars).compile()

  def steps(n):
    nonlocal state
    for _ in range(n):
      state, metrics = take(state, batch, scalars)
    return float(metrics["loss"])

  return steps


def transformers():
  """A function that takes n steps of `transformers`, in its best setting."""
  import torch

  tokens = torch.from_numpy(_batch()).long()
  candidates = {}
  for attention in ("eager", "sdpa"):
    for experts in ("eager", "grouped_mm"):
      steps = _transformers(attention, experts, tokens)
      steps(1)
      began = time.perf_counter()
      steps(2)
      candidates[time.perf_counter() - began] = steps
  return candidates[min(candidates)]


def _transformers(attention: str, experts: str, tokens):
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  shared = {
    name: getattr(CONFIG, name)
    for name in (
      "vocab_size hidden_size intermediate_size moe_intermediate_size "
      "num_hidden_layers num_attention_heads n_shared_experts "
      "n_routed_experts num_experts_per_tok n_group topk_group "
      "first_k_dense_replace q_lora_rank kv_lora_rank qk_nope_head_dim "
      "qk_rope_head_dim v_head_dim max_position_embeddings rms_norm_eps "
      "routed_scaling_factor norm_topk_prob initializer_range"
    ).split()
  }
  model = transformers.DeepseekV3ForCausalLM._from_config(
    transformers.DeepseekV3Config(
      num_key_value_heads=CONFIG.num_attention_heads, **shared
    ),
    attn_implementation=attention,
    experts_implementation=experts,
    dtype=torch.float32,
  )
  model.train()
  weights = sum(p.numel() for p in model.parameters())
  # dsx counts the routers' biases as published; here they are buffers.
  weights += CONFIG.num_moe_layers * CONFIG.n_routed_experts
  if weights != cost.parameters(CONFIG):
    raise ValueError(
      f"transformers has {weights} parameters, dsx {cost.parameters(CONFIG)}: "
      "expected the same model; compare the two configurations"
    )
  adam = torch.optim.AdamW(
    model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
  )

  def steps(n):
    for _ in range(n):
      logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
      loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten()
      )
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      adam.step()
      adam.zero_grad(set_to_none=True)
    return float(loss.detach())

  return steps


def matmul():
  """A function that multiplies float32 matrices n times 10."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((_SIZE, _SIZE))
  multiply = jax.jit(jnp.matmul)

  def steps(n):
    for _ in range(10 * n):
      multiply(x, x).block_until_ready()
    return 0.0

  return steps


_SIZE = 2048
_MATMUL_FLOPS = 10 * 2 * _SIZE**3
SIDES = {"dsx": dsx, "transformers": transformers, "matmul": matmul}


def serve(side: str) -> None:
  """A worker: prints the seconds of n steps for each line `n` it reads."""
  steps = SIDES[side]()
  print(json.dumps({"loss": steps(2)}), flush=True)
  for line in sys.stdin:
    began = time.perf_counter()
    loss = steps(int(line))
    seconds = (time.perf_counter() - began) / int(line)
    print(json.dumps({"loss": loss, "seconds": seconds}), flush=True)


class Worker:
  """One side in its own process."""

  def __init__(self, side: str):
    environment = dict(os.environ, GLIBC_TUNABLES=ALLOCATOR)
    environment |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    self.side = side
    self.process = subprocess.Popen(
      [sys.executable, __file__, "--serve", side],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
      text=True,
    )
    self.first_loss = self.answer()["loss"]

  def answer(self) -> dict:
    """What the process prints next."""
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(
        f"the {self.side} process ended with {self.process.wait()}; its "
        "message is above"
      )
    return json.loads(line)

  def seconds(self, steps: int) -> float:
    """Seconds per step, over `steps` steps."""
    self.process.stdin.write(f"{steps}\n")
    self.process.stdin.flush()
    return self.answer()["seconds"]

  def close(self):
    """Ends the process."""
    self.process.stdin.close()
    self.process.wait()


def compare(rounds: int, steps: int) -> str:
  """Runs all sides in turn; returns a table of the rounds and their medians."""
  flops = cost.flops_per_token(CONFIG, LENGTH)
  tokens = BATCH * LENGTH
  workers = [Worker(side) for side in SIDES]
  for worker in workers[:2]:
    print(f"{worker.side}: loss {worker.first_loss:.3f} after 2 steps")
  header = ["round", "dsx tokens/s", "transformers tokens/s", "ratio"]
  header += ["matmul GFLOP/s", "dsx's share", "transformers' share"]
  measured = []
  for _ in range(rounds):
    ours, theirs, product = (worker.seconds(steps) for worker in workers)
    rate = _MATMUL_FLOPS / product
    measured.append(
      [
        tokens / ours,
        tokens / theirs,
        theirs / ours,
        rate / 1e9,
        flops * tokens / ours / rate,
        flops * tokens / theirs / rate,
      ]
    )
    print(*_row(f"{len(measured)}/{rounds}", measured[-1]), flush=True)
  for worker in workers:
    worker.close()
  medians = [
    statistics.median(column) for column in zip(*measured, strict=True)
  ]
  rows = [_row(str(i), row) for i, row in enumerate(measured, 1)]
  rows.append(_row("median", medians))
  return (
    f"{cost.parameters(CONFIG):,} parameters, {flops / 1e6:.1f} MFLOPs per "
    f"token, {BATCH} x {LENGTH} tokens, float32, {steps} steps a round.\n\n"
    + report.table(header, rows)
  )


def _row(name: str, values: list[float]) -> list[str]:
  ours, theirs, ratio, rate, share, their_share = values
  return [
    name,
    f"{ours:,.0f}",
    f"{theirs:,.0f}",
    f"{ratio:.2f}",
    f"{rate:.0f}",
    f"{share:.1%}",
    f"{their_share:.1%}",
  ]


def main():
  """Parses flags, compares, prints and, with --record, keeps the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=4, help="steps a round")
  parser.add_argument("--record", action="store_true")
  parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.serve:
    serve(flags.serve)
    return
  body = compare(flags.rounds, flags.steps)
  print(body)
  if flags.record:
    report.record("Training step, dsx and transformers", body)


if __name__ == "__main__":
  main()
