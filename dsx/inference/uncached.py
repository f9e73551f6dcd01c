"""Plain sampling: the whole context is read again for every token.

The slow, obvious way, which decoding with a cache has to agree with. It
compiles once for a model, a window and a number of tokens.

Legend (parallel/axes.py): L length, V vocabulary.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dsx.inference import sampling
from dsx.models import language_model
from dsx.parallel import mesh as mesh_lib

# Contexts are padded to multiples of this, which causality makes invisible,
# so that there are fewer shapes to compile.
_ROUND = 64
_NONE = -1  # no token


@functools.partial(
  jax.jit, static_argnames=("model", "n_tokens", "window", "vocab_size")
)
def _extend(
  model,
  variables,
  context,
  filled,
  key,
  temperature,
  stop,
  *,
  n_tokens,
  window,
  vocab_size,
):
  """Draws up to `n_tokens` after a context [L] of which `filled` are tokens."""

  def goes_on(carry):
    i, _, _, out = carry
    return (i < n_tokens) & ((i == 0) | (out[i - 1] != stop))

  def append(carry):
    i, context, filled, out = carry
    logits, _ = model.apply(variables, context[None, :])
    row = lax.dynamic_index_in_dim(logits[0], filled - 1, 0, False)
    token = sampling.sample(
      jax.random.fold_in(key, i), row[:vocab_size], temperature
    )
    # A full window forgets its first token.
    full = filled == window
    context = jnp.where(full, jnp.roll(context, -1), context)
    filled = jnp.where(full, filled, filled + 1)
    context = lax.dynamic_update_index_in_dim(context, token, filled - 1, 0)
    return i + 1, context, filled, out.at[i].set(token)

  out = jnp.full((n_tokens,), _NONE, jnp.int32)
  return lax.while_loop(goes_on, append, (jnp.int32(0), context, filled, out))[
    3
  ]


def generate(
  model: language_model.Model,
  variables,
  prompt: list[int],
  *,
  n_tokens: int,
  window: int,
  temperature: float = 1.0,
  key=None,
  stop: int | None = None,
  vocab_size: int | None = None,
) -> list[int]:
  """Continues a prompt.

  Args:
    model: the model; its MTP modules are not used.
    variables: `params` and `router_bias`.
    prompt: token ids, at least one.
    n_tokens: how many tokens to append at most.
    window: context in tokens; older ones are forgotten.
    temperature: 0 takes the best token.
    key: a typed PRNG key; by default that of seed 0.
    stop: a token, such as EOS, after which none is drawn.
    vocab_size: ids from here on are never drawn: rows that only pad the
      model's vocabulary. By default all may be.

  Returns:
    The new token ids; `stop` is the last of them if it was drawn.

  Raises:
    ValueError: for an empty prompt, or a number out of its range.
  """
  if not prompt:
    raise ValueError("prompt=[]: expected at least one token; start with BOS")
  for name, number in (("n_tokens", n_tokens), ("window", window)):
    if number < 1:
      raise ValueError(f"{name}={number!r}: expected at least 1; raise it")
  sampling.check_temperature(temperature)
  kept = prompt[-window:]
  # What will never be filled need not be computed.
  length = min(window, len(kept) + n_tokens)
  # Experts want tokens that divide over the devices of the current mesh.
  shards = mesh_lib.batch_shards(jax.sharding.get_abstract_mesh())
  unit = math.lcm(_ROUND, shards)
  context = np.zeros(-(-length // unit) * unit, np.int32)
  context[: len(kept)] = kept
  tokens = _extend(
    model,
    variables,
    context,
    jnp.int32(len(kept)),
    jax.random.key(0) if key is None else key,
    jnp.float32(temperature),
    jnp.int32(_NONE - 1 if stop is None else stop),
    n_tokens=n_tokens,
    window=window,
    vocab_size=vocab_size,
  )
  return [token for token in np.asarray(tokens).tolist() if token != _NONE]
