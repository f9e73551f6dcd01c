"""What decoding a chunk of tokens reads, carries along and leaves.

Legend (parallel/axes.py): B batch, V vocabulary; J drafts per step, L = J + 1
tokens read per step; M expert layers, K experts per token.
"""

from typing import Any
from typing import NamedTuple

import jax.numpy as jnp

from dsx.inference import prefill
from dsx.inference import sampling
from dsx.models import decoder


class State(NamedTuple):
  """Where each sequence stands.

  Attributes:
    token: int32 [B], the last token, which has not been read yet.
    length: int32 [B], tokens before it, all of them in the cache.
    remaining: int32 [B], tokens still to be drawn; 0 for a slot at rest.
  """

  token: Any
  length: Any
  remaining: Any


class Drafts(NamedTuple):
  """What the MTP modules propose after each `State.token`.

  Attributes:
    tokens: int32 [B, J].
    log_q: float32 [B, J, V], the distributions that they were drawn from.
  """

  tokens: Any
  log_q: Any

  @classmethod
  def none(cls, batch: int, n: int, vocab_size: int) -> "Drafts":
    """Token 0 for certain: a proposal as good as any other."""
    log_q = jnp.full((batch, n, vocab_size), -jnp.inf)
    return cls(jnp.zeros((batch, n), jnp.int32), log_q.at[:, :, 0].set(0.0))


class Drawn(NamedTuple):
  """What a chunk drew; [steps, B, L] unless said otherwise.

  Attributes:
    count: int32 [steps, B], how many of the L tokens were drawn.
    accepted: int32 [steps, B], drafts that stood (before any stop).
    token: int32.
    sampled_logprob: float32, under the distribution drawn from.
    scores: under the model.
    experts: int [steps, B, L, M, K], of the tokens that were read, each before
      the one that was drawn (`decoder.apply`); None if not recorded.
  """

  count: Any
  accepted: Any
  token: Any
  sampled_logprob: Any
  scores: prefill.Scores
  experts: Any


class Chunk(NamedTuple):
  """What does not change while a chunk is decoded.

  Attributes:
    model: the model; its `n_mtp` is J.
    variables: in the layout `layers`, with `absorbed`.
    shape: of each sequence's distribution.
    stop: int32 [B, m], tokens that end each sequence; -1 for none.
    contexts: N arrays [B, S, W], see `models.cache`.
    context_seen: bool [B, S].
    n_top: how many best tokens to report with each token.
    vocab_size: ids from here on only pad the model's vocabulary.
    records: whether to record experts.
  """

  model: decoder.Decoder
  variables: Any
  shape: sampling.Shape
  stop: Any
  contexts: tuple
  context_seen: Any
  n_top: int
  vocab_size: int
  records: bool

  def logits(self, hidden):
    """float32 [B, L, V] of hidden [B, L, D], without padding."""
    logits: Any = self.model.apply(self.variables, hidden, method="logits")
    return logits[..., : self.vocab_size]
