"""What MTP drafts are worth: how many stand, and how much faster texts come.

Continues held-out text of each run's own corpus, with and without drafts, by
turns, at temperature 0 and 1 and for one text at a time and for many side by
side. The machine's other work falls on both alike; a ratio is of neighbours.

  python benchmarks/speculation.py --checkpoints runs/v3_tiny [DIR ...] \
    [--rounds 3] [--record]

Beforehand, what theory promises at temperature 1: how much the distributions of
model and module overlap, on average over held-out text as it stands. It needs
no draws, so that it tells runs apart that the tables below cannot.

DeepSeek-V3 reports 85 to 90% of second tokens accepted, and 1.8 times the
tokens per second (section 5.4.3). Several checkpoints are compared: that is how
`mtp_hidden` was settled.
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from dsx.data import pipeline
from dsx.inference import decoding as decoding_lib
from dsx.inference import engine as engine_lib
from dsx.inference import request as request_lib
from dsx.inference import sampling
from dsx.models import deepseek
from dsx.training import pretrained
from dsx.training import restore

PROMPT, NEW = 64, 128
SIDE_BY_SIDE = 16
TEMPERATURES = (0.0, 1.0)


def _records(path, n: int) -> np.ndarray:
  """`n` held-out records of a run, int32 [n, L]."""
  with restore.checkpoints(path) as checkpointer:
    data = pipeline.Data(**checkpointer.metadata(None)["run"]["data"])
  source = pipeline.open_split(data, "validation", shuffle=False)
  return source.rows(np.arange(n))["tokens"][:, :-1]


def _overlap(found, variables, rows) -> tuple[float, float]:
  """(mean of sum(min(p, q)), share of equal best tokens) over `rows`."""
  model = deepseek.DeepSeek(found.config, found.dtypes)

  @jax.jit
  def measure(variables, tokens):
    logits, aux = model.apply(variables, tokens)
    # Module 1 at position i and the model at i + 1 predict one token.
    p, q = logits[:, 1:-1], aux["mtp_logits"][0][:, :-2]
    both = jnp.minimum(jax.nn.softmax(p), jax.nn.softmax(q)).sum(-1)
    return both.mean(), (p.argmax(-1) == q.argmax(-1)).mean()

  parts = np.split(rows, len(rows) // 16)
  return tuple(np.mean([measure(variables, part) for part in parts], axis=0))


def _continue(engine, prompts, temperature: float):
  """Continues texts; returns (tokens a second, steps, drafted, accepted)."""
  before, start = engine.stats, time.perf_counter()
  for seed, prompt in enumerate(prompts):
    how = sampling.Sampling(
      max_new_tokens=NEW, temperature=temperature, seed=seed
    )
    engine.submit(request_lib.Request(prompt=prompt, sampling=how))
  while engine.busy:
    engine.step()
  seconds, after = time.perf_counter() - start, engine.stats
  return (
    (after.drawn_tokens - before.drawn_tokens) / seconds,
    after.steps - before.steps,
    after.drafted - before.drafted,
    after.accepted - before.accepted,
  )


def _promise(path: str) -> list[str]:
  found = pretrained.find(path)
  overlap, agree = _overlap(found, found.read(mtp=True), _records(path, 256))
  shares = [f"{100 * share:.2f}%" for share in (overlap, agree)]
  return [path, found.config.mtp_hidden, *shares]


def _rows(path: str, rounds: int) -> list[list[str]]:
  found = pretrained.find(path)
  variables = found.read(layout="layers", mtp=True)
  records = _records(path, 2 * SIDE_BY_SIDE)[:, :PROMPT]
  prompts = [tuple(row.tolist()) for row in records]
  hidden, rows = found.config.mtp_hidden, []
  for slots in (1, SIDE_BY_SIDE):
    engines = [
      engine_lib.Engine(
        found.config,
        variables,
        dtypes=found.dtypes,
        decoding=decoding_lib.Decoding(slots=slots, drafts=drafts, context=256),
      )
      for drafts in (0, 1)
    ]
    few = prompts[: 2 * slots] if slots > 1 else prompts[:8]
    for temperature in TEMPERATURES:
      for engine in engines:
        _continue(engine, few[:1], temperature)  # compiles
        _continue(engine, few[:slots], temperature)
      rounds_of = [
        [_continue(engine, few, temperature) for engine in engines]
        for _ in range(rounds)
      ]
      plain, drafted = zip(*rounds_of, strict=True)
      share = drafted[0][3] / drafted[0][2]
      speed = [
        statistics.median(r[0] for r in side) for side in (plain, drafted)
      ]
      ratio = statistics.median(d[0] / p[0] for p, d in rounds_of)
      rows.append(
        [
          path,
          hidden,
          f"{temperature:g}",
          str(slots),
          f"{100 * share:.1f}%",
          f"{plain[0][1] / drafted[0][1]:.2f}",
          f"{speed[0]:.0f}",
          f"{speed[1]:.0f}",
          f"{ratio:.2f}",
        ]
      )
      print(*rows[-1], flush=True)
  return rows


def main():
  """Prints the table, and records it if asked to."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--checkpoints", nargs="+", required=True)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args()
  promises = report.table(
    ["run", "mtp_hidden", "overlap of p and q", "best tokens agree"],
    [_promise(path) for path in flags.checkpoints],
  )
  print(promises, flush=True)
  header = [
    "run",
    "mtp_hidden",
    "temperature",
    "side by side",
    "drafts accepted",
    "steps saved",
    "tokens/s",
    "with drafts",
    "ratio",
  ]
  rows = [
    row for path in flags.checkpoints for row in _rows(path, flags.rounds)
  ]
  table = report.table(header, rows)
  print(table)
  if flags.record:
    report.record(
      "Speculative decoding with the MTP module",
      f"`python {' '.join(sys.argv)}`: continuations of {NEW} tokens of "
      f"held-out text after {PROMPT}; steps saved is the number of steps "
      "without drafts over that with them; medians of "
      f"{flags.rounds} rounds.\n\n{promises}\n\n{table}",
    )


if __name__ == "__main__":
  main()
