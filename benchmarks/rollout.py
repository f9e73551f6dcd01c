"""Tokens a second of rollouts, and where their time goes.

A step of R1-Zero's shape (32 prompts, 16 answers to each, DeepSeek-R1 section
2.2.1) of a policy of 100K parameters, on this machine's CPU: 512 answers of 24
tokens each, and of various lengths, about as many on average. Programs are
compiled and warm. The split is that of other rounds, in which the host waits
for the device each time: `host` is whatever is neither reading prompts nor
drawing tokens, the scheduler, the records, the samples. It hides where several
engines take turns, so that the parts are more than the whole.

  python benchmarks/rollout.py [--rounds 5] [--drafts 0] [--experts] [--record]
"""

import argparse
import collections
import contextlib
import dataclasses
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from dsx import cost
from dsx.inference import decode
from dsx.inference import prefill
from dsx.inference import sampling as sampling_lib
from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.parallel import sharding
from dsx.rl import rollout

PROMPTS, GROUP, PROMPT = 32, 16, 12
CONFIG = config_lib.DeepSeekConfig(
  vocab_size=264,
  hidden_size=64,
  intermediate_size=128,
  moe_intermediate_size=32,
  num_hidden_layers=3,
  first_k_dense_replace=1,
  num_nextn_predict_layers=1,
  num_attention_heads=4,
  q_lora_rank=None,
  kv_lora_rank=16,
  qk_nope_head_dim=8,
  qk_rope_head_dim=8,
  v_head_dim=8,
  n_routed_experts=4,
  n_shared_experts=1,
  num_experts_per_tok=2,
  n_group=1,
  topk_group=1,
  max_position_embeddings=512,
)
# Nearly uniform policies draw one of eight stop tokens every 33 tokens.
LENGTHS = {
  "24 tokens each": sampling_lib.Sampling(temperature=1.0, max_new_tokens=24),
  "2 to 48 tokens": sampling_lib.Sampling(
    temperature=1.0, max_new_tokens=48, stop_tokens=tuple(range(8))
  ),
}


@contextlib.contextmanager
def timed(module, name: str, seconds: dict[str, float]):
  """Counts seconds inside of a function of a module, waiting for its result."""
  inner = getattr(module, name)

  def outer(*args, **kwargs):
    start = time.perf_counter()
    found = jax.block_until_ready(inner(*args, **kwargs))
    seconds[name] += time.perf_counter() - start
    return found

  setattr(module, name, outer)
  try:
    yield
  finally:
    setattr(module, name, inner)


def step(roller, variables, sampling, turn: int, seconds) -> int:
  """Loads weights and samples; returns how many tokens were drawn."""
  rng = np.random.default_rng(turn)
  prompts = rng.integers(8, CONFIG.vocab_size, (PROMPTS, PROMPT)).tolist()
  start = time.perf_counter()
  roller.load(variables, turn)
  seconds["load"] += time.perf_counter() - start
  samples = roller.sample(
    prompts, group_size=GROUP, sampling=sampling, run_seed=0, step=turn
  )
  seconds["all"] += time.perf_counter() - start
  return sum(len(sample.tokens) for sample in samples)


def measure(roller, variables, sampling, rounds: int) -> list[str]:
  """A row of the table: some rounds, and the split of others."""
  for turn in range(2):  # compiles
    step(roller, variables, sampling, turn, collections.defaultdict(float))
  total, tokens = [], 0
  for turn in range(rounds):
    seconds = collections.defaultdict(float)
    tokens += step(roller, variables, sampling, turn, seconds)
    total.append(seconds["all"])
  parts = []
  for turn in range(rounds):
    seconds = collections.defaultdict(float)
    with (
      timed(prefill, "prefill", seconds),
      timed(decode, "decode", seconds),
    ):
      step(roller, variables, sampling, turn, seconds)
    inside = [seconds[name] for name in ("load", "prefill", "decode")]
    parts.append([*inside, seconds["all"] - sum(inside)])
  middle = [statistics.median(column) for column in zip(*parts, strict=True)]
  return [
    f"{tokens / rounds:,.0f}",
    f"{statistics.median(total):.3f} ({min(total):.3f} to {max(total):.3f})",
    f"{tokens / sum(total):,.0f}",
    *(f"{1e3 * part:.1f}" for part in middle),
  ]


def main():
  """Prints the table, and records it if asked to."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--drafts", type=int, default=0)
  parser.add_argument("--slots", type=int, default=rollout.DECODING.slots)
  parser.add_argument("--steps", type=int, default=rollout.DECODING.steps)
  parser.add_argument("--experts", action="store_true")
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args()
  model = deepseek.DeepSeek(CONFIG)
  tokens = jnp.zeros((1, 8), jnp.int32)
  init = jax.jit(lambda key: sharding.unbox(model.init(key, tokens)))
  variables = init(jax.random.key(0))
  roller = rollout.Roller(
    CONFIG,
    decoding=dataclasses.replace(
      rollout.DECODING,
      slots=flags.slots,
      steps=flags.steps,
      drafts=flags.drafts,
      record_experts=flags.experts,
    ),
  )
  rows = [
    [name, *measure(roller, variables, sampling, flags.rounds)]
    for name, sampling in LENGTHS.items()
  ]
  header = ["answers", "tokens", "s a step", "tokens/s"]
  header += [f"{part} ms" for part in ("load", "prefill", "decode", "host")]
  table = report.table(header, rows)
  print(table)
  if flags.record:
    report.record(
      f"Rollouts of {PROMPTS} x {GROUP} answers, "
      f"{cost.parameters(CONFIG) / 1e3:.0f}K parameters "
      f"({CONFIG.num_hidden_layers} layers, width {CONFIG.hidden_size}, "
      f"{CONFIG.n_routed_experts} experts top-{CONFIG.num_experts_per_tok})",
      f"`python {' '.join(sys.argv)}`\n\n{table}",
    )


if __name__ == "__main__":
  main()
