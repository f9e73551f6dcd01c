"""From logits to a token, and how many of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How a text is continued.

  Attributes:
    max_new_tokens: tokens to draw, unless the text ends before.
    temperature: divides the logits; 0 takes the best token.
    window: tokens of context that the model sees; None for as many as it is
      meant for.
    seed: of the draws.
  """

  max_new_tokens: int = 200
  temperature: float = 0.7
  window: int | None = None
  seed: int = 0

  def __post_init__(self):
    check_temperature(self.temperature)
    for field in ("max_new_tokens", "window"):
      value = getattr(self, field)
      if value is not None and value < 1:
        raise ValueError(
          f"{field}={value!r}: expected at least 1 token; raise it"
        )


def check_temperature(temperature: float) -> None:
  """Refuses what no distribution can be divided by.

  Raises:
    ValueError: it is negative, infinite or NaN.
  """
  if not (math.isfinite(temperature) and temperature >= 0):
    raise ValueError(
      f"temperature={temperature!r}: expected a finite number of at least 0; "
      "1 draws as the model predicts, 0 takes the best token"
    )


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
