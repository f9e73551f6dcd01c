"""A tiny policy, answers that it gave, and what an update of it should be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsx.inference import sampling
from dsx.models import deepseek
from dsx.models import moe
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import sample
from dsx.rl import update
from dsx.training import state as state_lib
from tests.training import tiny

TEMPERATURE = 0.8
SAMPLING = sampling.Sampling(temperature=TEMPERATURE)
# Rows of 64 with room for three or four of the answers.
LONGEST = 24


def _plain(updates, state, params=None, *, take=True, **unused):
  del params, unused
  return jax.tree.map(lambda g: jnp.where(take, g, 0.0), updates), state


# The direction is the gradient, so that a step at rate 1 shows it.
PLAIN = optax.GradientTransformationExtraArgs(
  lambda params: optax.EmptyState(), _plain
)


@functools.cache
def model() -> deepseek.DeepSeek:
  """One layer of experts and one MTP module: the rest is models' tests'."""
  config = tiny.model_config(num_hidden_layers=1, first_k_dense_replace=0)
  return deepseek.DeepSeek(config)


@functools.cache
def start(seed: int) -> state_lib.TrainState:
  """A first state, on the host."""
  boxed = state_lib.abstract(model(), PLAIN)
  mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
  placement = state_lib.shardings(boxed, sharding_lib.Sharding(), mesh)
  state = state_lib.initialise(model(), PLAIN, placement, seed)
  return jax.device_get(state)


def state(seed: int = 0) -> state_lib.TrainState:
  """A fresh copy, on one device."""
  return jax.tree.map(jnp.asarray, start(seed))


def variables(seed: int = 0) -> dict:
  own = state(seed)
  return {"params": own.params, "router_bias": own.router_bias}


@functools.cache
def _run():
  def run(variables, tokens, experts):
    aux, chosen = model().apply(
      variables,
      tokens,
      experts=experts,
      method="features",
      mutable=[moe.CHOSEN],
    )
    kernel = variables["params"]["lm_head"]["kernel"]
    logits = tuple(h @ kernel for h in (aux["hidden"], *aux["mtp_hidden"]))
    index = chosen[moe.CHOSEN]["moe_layers"]["mlp"]["index"]
    return logits, jnp.moveaxis(index, 0, 2)

  return jax.jit(run)


def table(logits, temperature: float = TEMPERATURE):
  """Log-probabilities of all tokens, in numpy."""
  warm = np.asarray(logits, np.float64) / temperature
  warm -= warm.max(-1, keepdims=True)
  return warm - np.log(np.exp(warm).sum(-1, keepdims=True))


def logits(variables, samples):
  """Of whole samples in rows of their own.

  Returns:
    (the main model's and the MTP module's, float32 [N, LONGEST, V]; experts
    that were chosen [N, LONGEST, M, K]).
  """
  tokens = np.zeros((len(samples), LONGEST), np.int32)
  experts = np.full((*tokens.shape, 1, 2), -1, np.int32)
  for i, s in enumerate(samples):
    both = np.concatenate([s.prompt, s.tokens])
    tokens[i, : len(both)] = both
    if s.experts is not None:
      experts[i, : len(s.experts)] = s.experts
  return _run()(variables, tokens, experts)


def of_answer(s: sample.Sample, row):
  """The part of a row [LONGEST, ...] that predicts the answer's tokens."""
  first = len(s.prompt) - 1
  return row[first : first + len(s.tokens)]


def samples(n: int = 12, seed: int = 0) -> list[sample.Sample]:
  """Answers with the policy's own log-probabilities and experts."""
  rng = np.random.default_rng(seed)
  blank = [
    sample.Sample(
      prompt_number=i // 4,
      number=i % 4,
      prompt=rng.integers(0, 64, rng.integers(1, 7)).astype(np.int32),
      tokens=rng.integers(0, 64, rng.integers(1, 17)).astype(np.int32),
      logprob=np.zeros(0, np.float32),
      sampled_logprob=np.zeros(0, np.float32),
      experts=None,
      version=np.zeros(0, np.int32),
      truncated=False,
    )
    for i in range(n)
  ]
  found, chosen = _run_all(blank)
  return [
    sample.Sample(
      **{
        **vars(s),
        "logprob": _picked(s, table(own, 1.0)),
        "sampled_logprob": _picked(s, table(own)),
        "experts": np.array(
          experts[: len(s.prompt) + len(s.tokens) - 1], np.int32
        ),
        "version": np.zeros(len(s.tokens), np.int32),
      }
    )
    for s, own, experts in zip(blank, found, chosen, strict=True)
  ]


def _run_all(blank):
  (found, _), chosen = logits(variables(), blank)
  return np.asarray(found), np.asarray(chosen)


def _picked(s, row):
  own = np.asarray(of_answer(s, row))
  return own[np.arange(len(s.tokens)), s.tokens]


def updater(settings: update.Settings, **changes) -> update.Updater:
  """An updater whose step at rate 1 takes the gradient off."""
  kwargs = {"sampling": SAMPLING} | changes
  return update.Updater(model(), PLAIN, settings, **kwargs)


def gradient(before, after):
  """What a step of rate 1 took off."""
  return jax.tree.map(
    lambda a, b: np.asarray(a) - np.asarray(b), before.params, after.params
  )
