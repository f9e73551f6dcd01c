"""Tokens a second of dsx beside `transformers`, from the same weights.

Both continue the same random prompts greedily, in float32 on this machine's
CPU: dsx with its engine, `transformers` with `generate` and its cache. Each
side has a process of its own and the two take turns, round after round, so
that whatever else the machine does falls on both alike.

  python benchmarks/decode.py [--rounds 3] [--record]

With a GPU, the roofline is measured instead: decoding reads every active weight
and all of the cache once per step, and can't be faster than the memory's
bandwidth allows. `transformers` is not needed there:

  python benchmarks/decode.py --roofline [--record]

The `transformers` side needs the `test` extra.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import report
from dsx import cost
from dsx.models import config as config_lib

PROMPT, NEW = 32, 96
BATCHES = (1, 32)
ROOFLINE_BATCHES = (1, 8, 32, 128)
# 13.6M parameters, deep and fine-grained as V3 is.
CONFIG = config_lib.DeepSeekConfig(
  vocab_size=4096,
  hidden_size=192,
  intermediate_size=512,
  moe_intermediate_size=64,
  num_hidden_layers=12,
  first_k_dense_replace=1,
  num_nextn_predict_layers=0,
  num_attention_heads=6,
  q_lora_rank=96,
  kv_lora_rank=64,
  qk_nope_head_dim=32,
  qk_rope_head_dim=16,
  v_head_dim=32,
  n_routed_experts=24,
  n_shared_experts=1,
  num_experts_per_tok=4,
  n_group=4,
  topk_group=2,
  routed_scaling_factor=1.0,
  max_position_embeddings=512,
  initializer_range=0.04,
)
# DeepSeek-V2-Lite's shape.
V2_LITE = config_lib.DeepSeekConfig(
  vocab_size=102400,
  hidden_size=2048,
  intermediate_size=10944,
  moe_intermediate_size=1408,
  num_hidden_layers=27,
  first_k_dense_replace=1,
  num_nextn_predict_layers=0,
  num_attention_heads=16,
  q_lora_rank=None,
  n_routed_experts=64,
  n_shared_experts=2,
  num_experts_per_tok=6,
  n_group=1,
  topk_group=1,
  scoring_func="softmax",
  topk_method="greedy",
  norm_topk_prob=False,
  routed_scaling_factor=1.0,
  max_position_embeddings=4096,
)
# gin_configs/models/v3_small.gin
V3_SMALL = config_lib.DeepSeekConfig(
  vocab_size=32768,
  hidden_size=768,
  intermediate_size=2304,
  moe_intermediate_size=320,
  num_hidden_layers=12,
  first_k_dense_replace=1,
  num_nextn_predict_layers=0,
  num_attention_heads=12,
  q_lora_rank=384,
  kv_lora_rank=256,
  qk_nope_head_dim=64,
  qk_rope_head_dim=32,
  v_head_dim=64,
  n_routed_experts=64,
  n_shared_experts=1,
  num_experts_per_tok=6,
  n_group=8,
  topk_group=4,
  max_position_embeddings=4096,
)


def _prompts(batch: int):
  import numpy as np

  rng = np.random.default_rng(0)
  return rng.integers(0, CONFIG.vocab_size, (batch, PROMPT))


def _variables(config, dtype: str = "float32"):
  """Random weights in the layout of decoding."""
  import jax
  import jax.numpy as jnp

  from dsx.models import deepseek
  from dsx.models import layout
  from dsx.ops import dtypes as dtypes_lib
  from dsx.parallel import sharding

  model = deepseek.DeepSeek(config, dtypes_lib.Dtypes(param=dtype))
  init = jax.jit(lambda key: sharding.unbox(model.init(key, tokens)))
  tokens = jnp.zeros((1, 8), jnp.int32)
  return layout.to_layers(config, init(jax.random.key(0)))


def _decode(engine, prompts, new: int) -> float:
  """Tokens a second of one batch of greedy continuations."""
  from dsx.inference import request as request_lib
  from dsx.inference import sampling

  how = sampling.Sampling(max_new_tokens=new, temperature=0.0)
  start, drawn = time.perf_counter(), 0
  for prompt in prompts:
    engine.submit(
      request_lib.Request(prompt=tuple(prompt.tolist()), sampling=how)
    )
  while engine.busy:
    drawn += sum(len(update.drawn) for update in engine.step())
  assert drawn == len(prompts) * new, drawn
  return drawn / (time.perf_counter() - start)


def dsx(folder: str):
  """A function of a batch size that measures dsx."""
  from dsx.convert import deepseek as convert
  from dsx.inference import decoding as decoding_lib
  from dsx.inference import engine as engine_lib

  config, variables = convert.load(folder, layout="layers")
  engines = {
    batch: engine_lib.Engine(
      config,
      variables,
      decoding=decoding_lib.Decoding(
        slots=batch, steps=32, context=PROMPT + NEW + 1
      ),
    )
    for batch in BATCHES
  }
  return lambda batch: _decode(engines[batch], _prompts(batch), NEW)


def transformers(folder: str):
  """A function of a batch size that measures transformers."""
  os.environ["HF_HUB_OFFLINE"] = "1"
  import torch
  import transformers as library

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = library.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()
  model.generation_config.eos_token_id = None

  def measure(batch: int) -> float:
    tokens = torch.from_numpy(_prompts(batch))
    start = time.perf_counter()
    with torch.no_grad():
      text = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
      )
    assert text.shape == (batch, PROMPT + NEW), text.shape
    return batch * NEW / (time.perf_counter() - start)

  return measure


SIDES = {"dsx": dsx, "transformers": transformers}


def serve(side: str, folder: str) -> None:
  """Answers each batch size on standard input with tokens a second."""
  measure = SIDES[side](folder)
  for batch in BATCHES:
    measure(batch)  # compiles, or warms up
  print("ready", flush=True)
  for line in sys.stdin:
    print(json.dumps(measure(int(line))), flush=True)


class _Side:
  """One side's process."""

  def __init__(self, side: str, folder: str):
    self._process = subprocess.Popen(
      [sys.executable, __file__, "--side", side, "--folder", folder],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )

  def wait(self) -> None:
    """Returns when it is ready."""
    assert self._process.stdout is not None
    if self._process.stdout.readline().strip() != "ready":
      raise RuntimeError(
        f"{self._process.args} ended: run it by hand to see why"
      )

  def measure(self, batch: int) -> float:
    """Tokens a second of one batch."""
    assert self._process.stdin and self._process.stdout
    print(batch, file=self._process.stdin, flush=True)
    return json.loads(self._process.stdout.readline())

  def end(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()


def compare(rounds: int) -> str:
  """The table of dsx beside transformers."""
  from dsx.convert import deepseek as convert

  with tempfile.TemporaryDirectory() as folder:
    convert.save(folder, CONFIG, _variables(CONFIG))
    sides = {name: _Side(name, folder) for name in SIDES}
    try:
      for side in sides.values():
        side.wait()
      rates = [
        {b: {n: s.measure(b) for n, s in sides.items()} for b in BATCHES}
        for _ in range(rounds)
      ]
    finally:
      for side in sides.values():
        side.end()
  rows = []
  for batch in BATCHES:
    ours, theirs = (
      [rate[batch][name] for rate in rates] for name in ("dsx", "transformers")
    )
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    rows.append(
      [
        str(batch),
        f"{statistics.median(ours):.0f}",
        f"{statistics.median(theirs):.0f}",
        f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to "
        f"{max(ratios):.1f})",
      ]
    )
  table = report.table(
    ["batch", "dsx tokens/s", "transformers tokens/s", "ratio"], rows
  )
  return f"{table}\n\n{cache_table(CONFIG)}"


def cache_table(config: config_lib.DeepSeekConfig) -> str:
  """Cache bytes per token: latents beside expanded keys and values."""
  rows = []
  for name, c, n in (
    ("this model, float32", config, 4),
    ("DeepSeek-V2-Lite's shape, bfloat16", V2_LITE, 2),
    ("DeepSeek-V3, bfloat16", config_lib.DeepSeekConfig(), 2),
  ):
    heads = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    expanded = c.num_hidden_layers * heads * n
    latent = cost.cache_bytes_per_token(c, n)
    rows.append(
      [name, f"{latent:,}", f"{expanded:,}", f"{expanded / latent:.1f}"]
    )
  return report.table(
    ["cache bytes per token", "latent (dsx)", "expanded", "ratio"], rows
  )


def _bytes_per_step(config, batch: int, context: int, size: int) -> float:
  """What one step has to read: active weights once, and the cache."""
  reached = (
    1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** batch
  )
  parts = cost.parameters_by_part(config)
  weights = parts.total - parts.embedding - parts.experts * (1 - reached)
  cached = cost.cache_bytes_per_token(config, size) * batch * context
  return size * weights + cached


def roofline() -> str:
  """The table of decoding beside the memory's bandwidth, on a GPU."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from dsx.inference import decoding as decoding_lib
  from dsx.inference import engine as engine_lib
  from dsx.ops import dtypes as dtypes_lib

  if jax.default_backend() == "cpu":
    sys.exit("--roofline measures a GPU or TPU, and JAX sees none")
  block = jnp.ones(2**28, jnp.float32)  # 1 GiB, read and written
  copy = jax.jit(lambda x: x + 1)
  copy(block).block_until_ready()
  start = time.perf_counter()
  for _ in range(10):
    block = copy(block)
  block.block_until_ready()
  bandwidth = 10 * 2 * block.nbytes / (time.perf_counter() - start)
  del block
  rows, rng, context = [], np.random.default_rng(0), 1024
  dtypes = dtypes_lib.Dtypes(param="bfloat16", compute="bfloat16")
  for name, config in (("v3_small", V3_SMALL), ("V2-Lite's shape", V2_LITE)):
    variables = _variables(config, "bfloat16")
    for batch in ROOFLINE_BATCHES:
      engine = engine_lib.Engine(
        config,
        variables,
        dtypes=dtypes,
        decoding=decoding_lib.Decoding(
          slots=batch, steps=64, context=2 * context
        ),
      )
      prompts = rng.integers(0, config.vocab_size, (batch, context - 128))
      _decode(engine, prompts, 256)
      rate = max(_decode(engine, prompts, 256) for _ in range(2))
      seconds = batch / rate
      bound = _bytes_per_step(config, batch, context, 2) / bandwidth
      rows.append(
        [
          name,
          str(batch),
          f"{rate:.0f}",
          f"{1e3 * seconds:.2f}",
          f"{1e3 * bound:.2f}",
          f"{100 * bound / seconds:.0f}%",
        ]
      )
      print(*rows[-1], flush=True)
  table = report.table(
    ["model", "batch", "tokens/s", "ms a step", "bound, ms", "of the bound"],
    rows,
  )
  device = jax.devices()[0].device_kind
  return (
    f"{device}, {bandwidth / 1e9:.0f} GB/s measured, jax {jax.__version__}, "
    f"bfloat16, about {context} tokens of context; prefill is part of the "
    f"time.\n\n{table}"
  )


def main():
  """Prints the table, and records it if asked to."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--record", action="store_true")
  parser.add_argument("--roofline", action="store_true")
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.side:
    serve(flags.side, flags.folder)
    return
  body = roofline() if flags.roofline else compare(flags.rounds)
  print(body)
  if flags.record:
    what = (
      "against the bound of the memory"
      if flags.roofline
      else f"beside `transformers`, {cost.parameters(CONFIG) / 1e6:.1f}M "
      f"parameters ({CONFIG.num_hidden_layers} layers, width "
      f"{CONFIG.hidden_size}, {CONFIG.n_routed_experts} experts top-"
      f"{CONFIG.num_experts_per_tok}), {NEW} tokens after {PROMPT}"
    )
    report.record(
      f"Decoding {what}", f"`python {' '.join(sys.argv)}`\n\n{body}"
    )


if __name__ == "__main__":
  main()
