"""Losses of a student against the teacher's most likely tokens.

A teacher's whole distribution over 129,280 tokens is too much to store; its k
largest probabilities are nearly all of it. What is left goes into one bucket,
so that both distributions sum to one over k + 1 outcomes and the divergence is
one of true distributions: a lower bound of that over all tokens (data
processing inequality), and zero where the two agree. Without the bucket, a
student could win by moving mass off the list.

  forward  KL(teacher || student): covers what the teacher might say;
           off-policy, on texts of the teacher
  reverse  KL(student || teacher): avoids what it would not; on-policy, on
           texts of the student, whose top k the teacher scores (Gu et al. 2023)

Legend (parallel/axes.py): B batch, L length, V vocabulary; K listed tokens.
"""

from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

Direction = Literal["forward", "reverse"]
DIRECTIONS = ("forward", "reverse")

# The least logarithm of a bucket's probability, so that it is finite where all
# tokens are listed.
_LEAST = -30.0


class TopTokens(NamedTuple):
  """The most likely next tokens, by one model.

  Attributes:
    tokens: int32 [B, L, K], all different.
    log_probs: float32 [B, L, K], normalised over all V tokens.
    log_rest: float32 [B, L], of all other tokens together. It is kept, because
      one less the sum of k numbers is noise where these are nearly all.
  """

  tokens: jax.Array
  log_probs: jax.Array
  log_rest: jax.Array


def top(logits, k: int, temperature: float = 1.0) -> TopTokens:
  """The k most likely tokens of logits [B, L, V].

  Raises:
    ValueError: there are not as many tokens, or the temperature is not
      positive.
  """
  if not 1 <= k <= logits.shape[-1]:
    raise ValueError(
      f"k={k}: expected 1 to {logits.shape[-1]}, the size of the vocabulary; "
      "change it"
    )
  log_probs = _log_probs(logits, temperature)
  tokens = jax.lax.top_k(log_probs, k)[1].astype(jnp.int32)
  return of_listed(log_probs, tokens)


def of_listed(log_probs, tokens) -> TopTokens:
  """What log-probabilities [B, L, V] say of tokens [B, L, K] and the rest."""
  listed = jnp.take_along_axis(log_probs, tokens, axis=-1)
  others = jnp.put_along_axis(
    log_probs, tokens, -jnp.inf, axis=-1, inplace=False
  )
  rest = jax.nn.logsumexp(jnp.maximum(others, 2 * _LEAST), axis=-1)
  return TopTokens(tokens, listed, jnp.maximum(rest, _LEAST))


def divergence(
  logits,
  teacher: TopTokens,
  direction: Direction = "forward",
  temperature: float = 1.0,
):
  """Divergence of a student from a teacher over k tokens and the rest.

  Args:
    logits: float [B, L, V], the student's.
    teacher: what the teacher thinks of the listed tokens. No gradient goes
      into it.
    direction: see the module.
    temperature: of the student; the teacher's is in its log-probabilities.

  Returns:
    float32 [B, L], nats, at least 0 but for rounding.

  Raises:
    ValueError: direction or temperature is none.
  """
  if direction not in DIRECTIONS:
    raise ValueError(
      f"direction={direction!r}: expected {' or '.join(DIRECTIONS)}; change it"
    )
  student = _outcomes(
    of_listed(_log_probs(logits, temperature), teacher.tokens)
  )
  given = jax.lax.stop_gradient(_outcomes(teacher))
  p, q = (given, student) if direction == "forward" else (student, given)
  return (jnp.exp(p) * (p - q)).sum(-1)


def _outcomes(found: TopTokens):
  """Log-probabilities float32 [B, L, K + 1], the rest last."""
  rest = found.log_rest[..., None]
  return jnp.concatenate([found.log_probs, rest], axis=-1)


def _log_probs(logits, temperature: float):
  if not temperature > 0:
    raise ValueError(
      f"temperature={temperature}: expected more than 0; raise it"
    )
  return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
