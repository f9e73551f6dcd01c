"""How far the sampler's log-probabilities are from the trainer's.

  python benchmarks/mismatch.py [--models r1_tiny v3_tiny] [--record]

Sampler and trainer have the same weights and run other programs: one reads a
latent cache through absorbed projections, token by token, with drafts or
without; the other whole rows. Each is in float32, in bfloat16 or in FP8
(`gin_configs/precision`; emulated on a CPU). Policies have learnt to add, so
that their distributions have peaks, and answer sums at temperature 1; the
differences are those that `rl.update.Updater` reports, with the sampler's
experts replayed and with the trainer's own choice.

  max, mean    of |log p_trainer - log p_sampler|, in nats a token
  k3           estimate of KL(sampler || trainer), in nats a token
  over 0.1     share of tokens that differ by more than 0.1 nats
  experts      share of read tokens that the trainer's routers, left to
               themselves, send to other experts in some layer

Fails if float32 with replay is not at the level of rounding. --record writes
the tables into docs/benchmarks.md.
"""

import argparse
import functools
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from benchmarks import adding_policy
from benchmarks import fp8_page
from benchmarks import report
from dsx import cost
from dsx.data import vocab as vocab_lib
from dsx.inference import decoding as decoding_lib
from dsx.inference import sampling as sampling_lib
from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import moe
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import fp8_recipe
from dsx.rl import rollout
from dsx.rl import update

SECTION = "mismatch"
# Steps of learning to add: enough for answers that end and are mostly right.
STEPS = {"r1_tiny": 200, "v3_tiny": 100}
# FP8's as in gin_configs/precision/fp8.gin: every number the default.
PRECISIONS = {
  "float32": dtypes_lib.Dtypes(),
  "bfloat16": dtypes_lib.Dtypes(compute="bfloat16"),
  "fp8": dtypes_lib.Dtypes(compute="bfloat16", fp8=fp8_recipe.Recipe()),
}
PAIRS = (
  ("float32", "float32"),
  ("bfloat16", "bfloat16"),
  ("fp8", "fp8"),
  ("bfloat16", "float32"),
  ("fp8", "bfloat16"),
)
SAMPLING = sampling_lib.Sampling(temperature=1.0, max_new_tokens=48)
# Sums of another order, a product the other way round: what float32 leaves of
# log-probabilities down to -20. A wrong expert makes a thousand times as much.
ROUNDING = 5e-5
HEADER: str = "sampler,trainer,drafts,replay,max,mean,k3,over 0.1,experts"


def sample(config, variables, dtypes, drafts: int, prompts: int, group: int):
  """Answers to sums, with the experts of all tokens.

  Returns:
    (samples, how many of the drafts stood, NaN if there were none).
  """
  vocabulary = vocab_lib.ByteVocabulary()
  roller = rollout.Roller(
    config,
    dtypes,
    decoding=decoding_lib.Decoding(
      slots=prompts * group,
      page_size=16,
      steps=16,
      drafts=drafts,
      least_context=64,
      record_experts=True,
    ),
    eos=vocabulary.special["eos"],
    vocab_size=vocabulary.size,
  )
  roller.load(variables, 0)
  template = adding_policy.TEMPLATE
  samples = roller.sample(
    [
      template.tokens(vocabulary, problem.prompt)
      for problem in adding_policy.problems()[-prompts:]
    ],
    group_size=group,
    sampling=SAMPLING,
    run_seed=0,
    step=0,
  )
  stats = roller.stats
  stood = stats.accepted / stats.drafted if stats.drafted else float("nan")
  return samples, stood


class Trainer:
  """The trainer's view of samples, in one precision."""

  def __init__(self, config: config_lib.DeepSeekConfig, dtypes):
    """Compiles nothing yet."""
    self._model = deepseek.DeepSeek(config, dtypes)
    size = vocab_lib.ByteVocabulary().size
    self._updaters = {
      replay: update.Updater(
        self._model,
        None,  # no step is taken
        update.Settings(replay=replay, row_length=64, micro_batch_tokens=4096),
        sampling=SAMPLING,
        vocab_size=size,
      )
      for replay in (True, False)
    }

  def differences(self, variables, samples, replay: bool) -> dict[str, float]:
    """`mismatch_*` of `Updater.recompute`."""
    # The reference is another matter, and any will do.
    return self._updaters[replay].recompute(variables, samples, variables).facts

  def experts(self, variables, samples) -> float:
    """Share of read tokens that the routers themselves send elsewhere."""
    rows = self._updaters[False].pack(samples).rows
    read = other = 0
    for i in range(len(rows.inputs)):
      one = jax.tree.map(lambda x, i=i: x[i], rows)
      own = np.asarray(self._routed(variables, one))
      known = (one.experts >= 0).all((2, 3))
      differ = np.sort(own, -1) != np.sort(one.experts, -1)
      read += int(known.sum())
      other += int((differ.any((2, 3)) & known).sum())
    return other / read

  @functools.cached_property
  def _routed(self):
    """Experts [B, L, M, K] of rows, from the routers alone."""

    @jax.jit
    def routed(variables, rows):
      chosen: Any
      _, chosen = self._model.apply(
        variables,
        rows.inputs,
        rows.positions,
        rows.segments,
        valid=rows.segments > 0,
        method="features",
        mutable=[moe.CHOSEN],
      )
      index = chosen[moe.CHOSEN]["moe_layers"]["mlp"]["index"]
      return jax.numpy.moveaxis(index, 0, 2)

    return routed


def measure(name: str, steps: int, prompts: int, group: int) -> tuple[str, str]:
  """All rows of one model.

  Returns:
    (a line about the policy, the table).

  Raises:
    ValueError: float32 with replay differs by more than rounding.
  """
  config = adding_policy.build(name)
  variables, loss = adding_policy.trained(config, steps=steps)
  trainers = {p: Trainer(config, dtypes) for p, dtypes in PRECISIONS.items()}
  found, tokens, stood = {}, [], {}
  for drafts in (0, 1):
    for sampler in PRECISIONS:
      samples, stood[drafts] = sample(
        config, variables, PRECISIONS[sampler], drafts, prompts, group
      )
      tokens.append(sum(len(s.tokens) for s in samples))
      for trainer in (t for s, t in PAIRS if s == sampler):
        for replay in (True, False):
          facts = trainers[trainer].differences(variables, samples, replay)
          experts = None
          if not replay:
            experts = trainers[trainer].experts(variables, samples)
          key = (sampler, trainer, drafts, replay)
          found[key] = row(*key, facts, experts)
          print(f"{name}:", *found[key], flush=True)
          check(key, facts)
  order = [
    (*pair, drafts, replay)
    for pair in PAIRS
    for replay in (True, False)
    for drafts in (0, 1)
  ]
  about = (
    f"{name}: {cost.parameters(config) / 1e3:,.0f}K parameters, "
    f"{config.num_moe_layers} layers of {config.n_routed_experts} experts "
    f"top-{config.num_experts_per_tok}, {steps} steps of learning to add "
    f"({loss:.3f} nats a token left); {prompts} x {group} answers, "
    f"{np.mean(tokens):,.0f} tokens a row; {stood[1]:.0%} of FP8's drafts "
    "stood."
  )
  return about, report.table(HEADER.split(","), [found[k] for k in order])


def check(key: tuple, facts: dict[str, float]) -> None:
  """Refuses float32 with replay that is not at the level of rounding.

  Args:
    key: sampler, trainer, drafts, replay.
    facts: `mismatch_*`.

  Raises:
    ValueError: it is not.
  """
  most = facts["mismatch_max"]
  exact = key[:2] == ("float32", "float32") and key[3]
  if exact and not most <= ROUNDING:
    raise ValueError(
      f"float32 with replay, drafts={key[2]}: log-probabilities differ by "
      f"{most:.3g} nats: expected at most {ROUNDING:g}, rounding; look for "
      "what sampler and trainer compute differently"
    )


def row(
  sampler: str,
  trainer: str,
  drafts: int,
  replay: bool,
  facts: dict[str, float],
  experts: float | None,
) -> list[str]:
  """A row of the table; experts that are replayed are the recorded ones."""
  return [
    sampler,
    trainer,
    str(drafts),
    "yes" if replay else "no",
    f"{facts['mismatch_max']:.2g}",
    f"{facts['mismatch_mean']:.2g}",
    f"{facts['mismatch_kl']:.2g}",
    f"{facts['mismatch_large']:.2%}",
    "replayed" if experts is None else f"{experts:.2%}",
  ]


def main():
  """Prints the tables, and records them if asked to."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument(
    "--models", nargs="+", default=list(STEPS), choices=list(STEPS)
  )
  parser.add_argument("--steps", type=int, help="of learning to add")
  parser.add_argument("--prompts", type=int, default=16)
  parser.add_argument("--group", type=int, default=16)
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args()
  parts = [f"`python {' '.join(sys.argv)}`"]
  for name in flags.models:
    try:
      about, table = measure(
        name, flags.steps or STEPS[name], flags.prompts, flags.group
      )
    except ValueError as error:
      sys.exit(f"{name}: {error}")
    print(about, table, sep="\n", flush=True)
    parts += [about, table]
  if flags.record:
    os.chdir(report.RESULTS.parents[1])
    fp8_page.write(SECTION, "\n\n".join(parts), report.RESULTS)


if __name__ == "__main__":
  main()
