"""Plain sampling: the whole context is read again for every token.

The slow, obvious way, which decoding with a cache has to agree with.

Legend (parallel/axes.py): B batch, L length, V vocabulary.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dsx.inference import sampling
from dsx.models import deepseek


@functools.partial(jax.jit, static_argnums=(0, 5))
def _extend(model, variables, window, filled, key, n_tokens, temperature):
  """Appends `n_tokens` to a window [L] of which `filled` are tokens."""
  length = window.shape[0]

  def append(i, carry):
    window, filled, out = carry
    logits, _ = model.apply(variables, window[None, :])
    row = lax.dynamic_index_in_dim(logits[0], filled - 1, 0, False)
    token = sampling.sample(jax.random.fold_in(key, i), row, temperature)
    # A full window forgets its first token.
    full = filled == length
    window = jnp.where(full, jnp.roll(window, -1), window)
    filled = jnp.where(full, filled, filled + 1)
    window = lax.dynamic_update_index_in_dim(window, token, filled - 1, 0)
    return window, filled, out.at[i].set(token)

  out = jnp.zeros((n_tokens,), jnp.int32)
  return lax.fori_loop(0, n_tokens, append, (window, filled, out))[2]


def generate(
  model: deepseek.DeepSeek,
  variables,
  prompt: list[int],
  *,
  n_tokens: int,
  window: int,
  temperature: float = 1.0,
  key=None,
) -> list[int]:
  """Continues a prompt.

  Args:
    model: the model; its MTP modules are not used.
    variables: `params` and `router_bias`.
    prompt: token ids, at least one.
    n_tokens: how many tokens to append.
    window: context in tokens; older ones are forgotten.
    temperature: 0 takes the best token.
    key: a typed PRNG key; needed for a temperature above 0.

  Returns:
    The new token ids.

  Raises:
    ValueError: for an empty prompt, or a temperature below 0 or not finite.
  """
  if not prompt:
    raise ValueError("prompt=[]: expected at least one token; start with BOS")
  if not 0 <= temperature < float("inf"):
    raise ValueError(
      f"temperature={temperature!r}: expected a finite number of at least 0"
    )
  key = jax.random.key(0) if key is None else key
  kept = prompt[-window:]
  padded = np.zeros(window, np.int32)
  padded[: len(kept)] = kept
  tokens = _extend(
    model,
    variables,
    padded,
    jnp.int32(len(kept)),
    key,
    n_tokens,
    jnp.float32(temperature),
  )
  return np.asarray(tokens).tolist()
