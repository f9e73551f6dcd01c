"""From logits to a token: how a text is continued, and the draw itself.

The distribution that a token is drawn from is made in the order of the field:
temperature, then top-k, then top-p, then min-p. Every draw has a key of its
own, folded from the request's seed, the token's position and the purpose, so
that what a request says depends neither on the requests beside it nor on how
often it was interrupted.

Legend (parallel/axes.py): B batch, V vocabulary.
"""

import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

MOST_TOP_LOGPROBS = 20
MOST_STOP_TOKENS = 8
_MOST_STOP_STRINGS = 16
# Purposes of a draw at one position.
TOKEN, DRAFT, ACCEPT = 0, 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How a text is continued.

  Attributes:
    max_new_tokens: tokens to draw, unless the text ends before.
    temperature: divides the logits; 0 takes the best token.
    top_k: draw from this many best tokens only (and those that tie with the
      last of them); 0 for all.
    top_p: draw from the smallest set of best tokens whose probability reaches
      this.
    min_p: draw from tokens at least this share as probable as the best.
    seed: of the draws, 0 to 2**64 - 1.
    stop: strings that end the text; they are left out of it.
    stop_tokens: ids that end the text, beside the vocabulary's EOS.
    ignore_eos: whether to go on after EOS.
    top_logprobs: how many of the best tokens to report with each token.
  """

  max_new_tokens: int = 200
  temperature: float = 0.7
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 0
  stop: tuple[str, ...] = ()
  stop_tokens: tuple[int, ...] = ()
  ignore_eos: bool = False
  top_logprobs: int = 0

  def __post_init__(self):
    check_temperature(self.temperature)
    least = {"max_new_tokens": 0, "top_k": 0, "seed": 0, "top_logprobs": 0}
    for field, bound in least.items():
      if getattr(self, field) < bound:
        _refuse(field, getattr(self, field), f"at least {bound}", "raise it")
    most = {"seed": 2**64 - 1, "top_logprobs": MOST_TOP_LOGPROBS}
    for field, bound in most.items():
      if getattr(self, field) > bound:
        _refuse(field, getattr(self, field), f"at most {bound}", "lower it")
    if not 0 < self.top_p <= 1:
      _refuse("top_p", self.top_p, "above 0 and at most 1", "1 keeps all")
    if not 0 <= self.min_p <= 1:
      _refuse("min_p", self.min_p, "0 to 1", "0 keeps all")
    if len(self.stop) > _MOST_STOP_STRINGS or "" in self.stop:
      expected = f"at most {_MOST_STOP_STRINGS} strings, none of them empty"
      _refuse("stop", self.stop, expected, "leave some out")
    if len(self.stop_tokens) > MOST_STOP_TOKENS:
      expected = f"at most {MOST_STOP_TOKENS} ids"
      _refuse("stop_tokens", self.stop_tokens, expected, "leave some out")


def _refuse(field: str, got, expected: str, remedy: str) -> None:
  raise ValueError(f"{field}={got!r}: expected {expected}; {remedy}")


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


class Shape(NamedTuple):
  """What shapes the distributions of a batch; each [B], of one request each.

  Attributes:
    temperature: float32.
    top_k: int32, 0 for all.
    top_p: float32.
    min_p: float32.
    key: uint32 [B, 2], the seeds' two words.
  """

  temperature: Any
  top_k: Any
  top_p: Any
  min_p: Any
  key: Any

  @classmethod
  def of(cls, requests):
    """The shape of several `Sampling`s, as numpy arrays."""
    floats, words = np.float32, np.uint32
    return cls(
      np.array([s.temperature for s in requests], floats),
      np.array([min(s.top_k, 2**31 - 1) for s in requests], np.int32),
      np.array([s.top_p for s in requests], floats),
      np.array([s.min_p for s in requests], floats),
      np.array([(s.seed >> 32, s.seed & 0xFFFFFFFF) for s in requests], words),
    )

  def keys(self, positions, purpose: int):
    """A typed key per row for a draw at `positions` int32 [B]."""

    def one(words, position):
      key = jax.random.wrap_key_data(words, impl="threefry2x32")
      return jax.random.fold_in(jax.random.fold_in(key, position), purpose)

    return jax.vmap(one)(self.key, positions)


def log_distribution(logits, shape: Shape):
  """The distribution that a token is drawn from.

  Args:
    logits: float32 [B, V].
    shape: of each row.

  Returns:
    Log-probabilities float32 [B, V], -inf for what cannot be drawn. At
    temperature 0 the best token has all the probability.
  """
  warm = logits / jnp.maximum(shape.temperature, 1e-6)[:, None]
  truncated = (shape.top_k > 0) | (shape.top_p < 1) | (shape.min_p > 0)
  kept = lax.cond(
    (truncated & (shape.temperature > 0)).any(),
    lambda: jnp.where(warm >= _threshold(warm, shape), warm, -jnp.inf),
    lambda: warm,
  )
  best = best_token(logits)[:, None] == jnp.arange(logits.shape[1])[None, :]
  greedy = jnp.where(best, 0.0, -jnp.inf)
  cold = (shape.temperature == 0)[:, None]
  return jnp.where(cold, greedy, jax.nn.log_softmax(kept, -1))


def _threshold(warm, shape: Shape):
  """The smallest logit of each row [B, 1] that may be drawn."""
  ordered = -jnp.sort(-warm, axis=-1)
  rank = jnp.arange(warm.shape[1])[None, :]
  size = jnp.where(shape.top_k > 0, shape.top_k, warm.shape[1])[:, None]
  ordered = jnp.where(rank < size, ordered, -jnp.inf)
  probability = jax.nn.softmax(ordered, -1)
  before = jnp.cumsum(probability, -1) - probability
  # The best token always stays, whatever rounding says.
  kept = (before < shape.top_p[:, None]) | (rank == 0)
  kept &= rank < size
  kept &= probability >= shape.min_p[:, None] * probability[:, :1]
  return jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)


def best_token(logits):
  """The first of the best tokens int32 [...] of logits [..., V].

  `argmax` in two reductions of one operand each, which a CPU vectorises where
  it walks through argmax's pairs one by one.
  """
  n = logits.shape[-1]
  tokens = jnp.arange(n, dtype=jnp.int32)
  best = logits.max(-1, keepdims=True)
  # Not a number is equal to nothing.
  return jnp.minimum(jnp.where(logits == best, tokens, n).min(-1), n - 1)


def draw(log_probabilities, keys):
  """Draws a token per row, int32 [B], of [B, V] with typed keys [B].

  Gumbel's trick, as `jax.random.categorical`, with `best_token` for argmax.
  """
  n = log_probabilities.shape[-1:]
  noise = jax.vmap(lambda key: jax.random.gumbel(key, n))(keys)
  return best_token(log_probabilities + noise)


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
