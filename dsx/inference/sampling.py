"""From logits to a token."""

import jax
import jax.numpy as jnp


def sample(key, logits, temperature):
  """Draws from softmax(logits / temperature); the best token at 0.

  Args:
    key: a typed PRNG key.
    logits: float32 [..., V].
    temperature: float32 [], at least 0.

  Returns:
    int32 [...].
  """
  warm = logits / jnp.maximum(temperature, 1e-6)
  drawn = jax.random.categorical(key, warm, axis=-1)
  best = jnp.argmax(logits, axis=-1)
  return jnp.where(temperature > 0, drawn, best).astype(jnp.int32)
