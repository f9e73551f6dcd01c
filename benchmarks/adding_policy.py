"""A small policy that adds, for measurements of reinforcement learning.

Weights of nothing but noise would draw tokens alike likely, and never end an
answer. A few hundred steps on worked sums (what `sft` does, without its files)
give distributions with peaks, answers of various lengths and rewards that
differ.
"""

import functools

import jax
import numpy as np

from dsx.data import arithmetic
from dsx.data import prompt_template
from dsx.data import vocab as vocab_lib
from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import optimizer as optimizer_lib
from dsx.training import state as state_lib
from dsx.training import step as step_lib

TEMPLATE = prompt_template.Template(kind="plain")
LONGEST = 63  # of prompt and answer together, in tokens
_ROWS = 64


def problems(n: int = 2048):
  """Sums of two numbers of two digits, always the same."""
  return arithmetic.Generated(train=n).problems("train")


@functools.cache
def _samples() -> tuple[np.ndarray, np.ndarray]:
  """Worked sums in rows [n, LONGEST + 1], and which tokens are learnt."""
  vocabulary = vocab_lib.ByteVocabulary()
  found = problems()
  tokens = np.zeros((len(found), LONGEST + 1), np.int32)
  learnt = np.zeros_like(tokens)
  for row, problem in enumerate(found):
    prompt = TEMPLATE.tokens(vocabulary, problem.prompt)
    answer = prompt_template.response_tokens(
      vocabulary, arithmetic.solution(problem)
    )
    both = [*prompt, *answer, vocabulary.special["eos"]]
    tokens[row, : len(both)] = both
    learnt[row, len(prompt) : len(both)] = 1
  return tokens, learnt


def build(name: str) -> config_lib.DeepSeekConfig:
  """A model of `gin_configs/models`."""
  from experiments import configuration

  target = "dsx.models.config.DeepSeekConfig"
  configuration.prepare(target, [f"gin_configs/models/{name}.gin"])
  return configuration.build(target)


def trained(
  config: config_lib.DeepSeekConfig,
  *,
  steps: int,
  learning_rate: float = 3e-3,
  seed: int = 0,
):
  """Weights after some steps, in float32.

  Args:
    config: the model, of the byte vocabulary.
    steps: of the optimizer, on 64 sums each.
    learning_rate: from which it falls to a tenth, linearly.
    seed: of the first weights, and of what is learnt when.

  Returns:
    (variables, the last steps' mean loss in nats a token).
  """
  model = deepseek.DeepSeek(config)
  optimizer = optimizer_lib.AdamW(
    weight_decay=0.0, moment_dtype="float32"
  ).transformation()
  mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
  rules = sharding_lib.Sharding()
  placement = state_lib.shardings(
    state_lib.abstract(model, optimizer), rules, mesh
  )
  samples, rng = _samples(), np.random.default_rng(seed)
  losses = []
  with sharding_lib.use(mesh, rules):
    state = state_lib.initialise(model, optimizer, placement, seed)
    take = step_lib.compiled(model, optimizer, placement)
    for step in range(steps):
      rows = rng.integers(0, len(samples[0]), _ROWS)
      tokens, learnt = (x[rows][None] for x in samples)
      rate = learning_rate * (1 - 0.9 * step / steps)
      state, metrics = take(
        state,
        {"tokens": tokens, "loss_mask": learnt},
        {
          "learning_rate": np.float32(rate),
          "bias_update_speed": np.float32(1e-3),
          "balance_weight": np.float32(1e-4),
          "mtp_weight": np.float32(0.3),
          "micro_batches": np.int32(1),
        },
      )
      losses.append(metrics["loss"])
    last = float(np.mean([float(loss) for loss in losses[-10:]]))
  return {"params": state.params, "router_bias": state.router_bias}, last
