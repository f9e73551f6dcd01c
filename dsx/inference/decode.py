"""Decoding a chunk: some tokens of every sequence, without asking the host.

One compiled loop. A step reads the last token of each sequence and the drafts
after it, accepts what stands (`speculative.verify`; without drafts this is
plain decoding), and lets the MTP modules draft what may come next. Sequences
end by themselves, at a stop token or when they are long enough; the loop ends
when all have, or after the chunk's steps.

Legend (parallel/axes.py): B batch, V vocabulary; J drafts per step, L = J + 1
tokens read per step, T = steps * L length of the tail.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dsx.inference import prefill
from dsx.inference import sampling
from dsx.inference import speculative
from dsx.models import cache
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
  """

  count: Any
  accepted: Any
  token: Any
  sampled_logprob: Any
  scores: prefill.Scores


class _Carry(NamedTuple):
  step: Any
  state: State
  drafts: Drafts
  tails: tuple
  tail_seen: Any  # bool [B, T]
  tail_positions: Any  # int32 [B, T]
  drawn: Drawn


class _Chunk(NamedTuple):
  """What does not change within a chunk."""

  model: decoder.Decoder
  variables: Any
  shape: sampling.Shape
  stop: Any
  contexts: tuple
  context_seen: Any
  n_top: int
  vocab_size: int


@functools.partial(
  jax.jit,
  static_argnames=("model", "context_pages", "steps", "n_top", "vocab_size"),
  donate_argnames=("pages", "drafts"),
)
def decode(
  model: decoder.Decoder,
  variables,
  pages,
  table,
  state: State,
  drafts: Drafts,
  fresh,
  shape: sampling.Shape,
  stop,
  *,
  context_pages: int,
  steps: int,
  n_top: int,
  vocab_size: int,
):
  """Draws up to `steps` * L tokens of each sequence.

  Args:
    model: the model; its `n_mtp` is J.
    variables: in the layout `layers`, with `absorbed`.
    pages: [P, N, page, W], donated.
    table: int32 [B, n], with room for all that the chunk may draw.
    state: of each sequence.
    drafts: of the chunk before, donated.
    fresh: bool [B], sequences that are new, whose drafts mean nothing.
    shape: of each sequence's distribution.
    stop: int32 [B, m], tokens that end each sequence; -1 for none.
    context_pages: how many columns of the table hold all that is cached.
    steps: most steps.
    n_top: how many best tokens to report with each token.
    vocab_size: ids from here on only pad the model's vocabulary.

  Returns:
    (pages, state, drafts, `Drawn`).
  """
  b, n = table.shape[0], drafts.tokens.shape[1] + 1
  contexts = cache.gather(pages, table[:, :context_pages])
  seen = jnp.arange(contexts[0].shape[1], dtype=jnp.int32)[None, :]
  chunk = _Chunk(
    model,
    variables,
    shape,
    stop,
    contexts,
    seen < state.length[:, None],
    n_top,
    vocab_size,
  )
  blank = Drafts.none(b, n - 1, vocab_size)
  start = _Carry(
    jnp.int32(0),
    state,
    jax.tree.map(
      lambda new, old: jnp.where(
        jnp.expand_dims(fresh, range(1, old.ndim)), new, old
      ),
      blank,
      drafts,
    ),
    tuple(jnp.zeros((b, steps * n, x.shape[2]), x.dtype) for x in contexts),
    jnp.zeros((b, steps * n), bool),
    jnp.zeros((b, steps * n), jnp.int32),
    _nothing_drawn(steps, b, n, n_top),
  )
  end = lax.while_loop(
    lambda c: (c.step < steps) & (c.state.remaining > 0).any(),
    functools.partial(_step, chunk),
    start,
  )
  pages = cache.append(
    pages, table, end.tail_positions, end.tail_seen, end.tails
  )
  return pages, end.state, end.drafts, end.drawn


def _nothing_drawn(steps: int, b: int, n: int, n_top: int) -> Drawn:
  each, best = (steps, b, n), (steps, b, n, n_top)
  integers, floats = (
    functools.partial(jnp.zeros, dtype=t) for t in (jnp.int32, jnp.float32)
  )
  return Drawn(
    count=integers((steps, b)),
    accepted=integers((steps, b)),
    token=integers(each),
    sampled_logprob=floats(each),
    scores=prefill.Scores(floats(each), integers(best), floats(best)),
  )


def _step(chunk: _Chunk, carry: _Carry) -> _Carry:
  state, drafts = carry.state, carry.drafts
  n = drafts.tokens.shape[1] + 1
  active = state.remaining > 0
  inputs = jnp.concatenate([state.token[:, None], drafts.tokens], axis=1)
  places = jnp.arange(n, dtype=jnp.int32)
  positions = state.length[:, None] + places[None, :]
  memory = _memory(chunk, carry, n)
  found: Any = chunk.model.apply(
    chunk.variables, inputs, positions, memory, active, method="decode"
  )
  hidden, passed_on, memory = found
  logits = _logits(chunk, hidden)
  verdict, sampled = lax.cond(
    (chunk.shape.temperature > 0).any(),
    functools.partial(_drawn_verdict, chunk),
    _greedy_verdict,
    state,
    drafts,
    logits,
  )
  count, stopped = _kept(chunk, state, verdict)
  drawn = _recorded(chunk, carry, verdict, count, sampled, logits)
  last = jnp.maximum(count - 1, 0)
  token = jnp.take_along_axis(verdict.tokens, last[:, None], axis=1)[:, 0]
  new = State(
    token=jnp.where(count > 0, token, state.token),
    length=state.length + count,
    remaining=jnp.where(stopped, 0, state.remaining - count),
  )
  drafts, memory = _drafted(
    chunk, new, verdict.tokens, passed_on, positions, memory, last, active
  )
  start = (0, memory.offset)
  update = lax.dynamic_update_slice
  seen = places[None, :] < count[:, None]
  return _Carry(
    carry.step + 1,
    new,
    drafts,
    memory.tails,
    update(carry.tail_seen, seen, start),
    update(carry.tail_positions, positions, start),
    drawn,
  )


def _memory(chunk: _Chunk, carry: _Carry, n: int) -> cache.Memory:
  """What query j sees: all that was kept, and the inputs 0 to j."""
  offset = carry.step * n
  column = jnp.arange(carry.tail_seen.shape[1], dtype=jnp.int32) - offset
  query = jnp.arange(n, dtype=jnp.int32)
  at_hand = (column[None, :] >= 0) & (column[None, :] <= query[:, None])
  return cache.Memory(
    chunk.contexts,
    chunk.context_seen,
    carry.tails,
    carry.tail_seen[:, None, :] | at_hand[None, :, :],
    offset,
  )


def _logits(chunk: _Chunk, hidden):
  logits: Any = chunk.model.apply(chunk.variables, hidden, method="logits")
  return logits[..., : chunk.vocab_size]


def _greedy_verdict(state: State, drafts: Drafts, logits):
  """As `_drawn_verdict` when no sequence has a temperature: nothing to draw."""
  del state
  best = sampling.best_token(logits)
  found = speculative.verify_greedy(drafts.tokens, best)
  return found, jnp.zeros(best.shape, jnp.float32)


def _drawn_verdict(chunk: _Chunk, state: State, drafts: Drafts, logits):
  """The `Verdict`, and the log-probability [B, L] that each token had."""
  n = drafts.tokens.shape[1]
  shape = chunk.shape
  log_p = [sampling.log_distribution(logits[:, j], shape) for j in range(n + 1)]
  log_p = jnp.stack(log_p, axis=1)
  uniform = [
    jax.vmap(jax.random.uniform)(
      shape.keys(state.length + 1 + j, sampling.ACCEPT)
    )
    for j in range(n)
  ]
  uniform = jnp.stack(uniform, 1) if n else jnp.zeros((len(state.token), 0))

  def draw(rest, accepted):
    keys = shape.keys(state.length + 1 + accepted, sampling.TOKEN)
    return sampling.draw(rest, keys)

  found = speculative.verify(drafts.tokens, drafts.log_q, log_p, uniform, draw)
  own = jnp.take_along_axis(log_p, found.tokens[..., None], axis=2)[..., 0]
  return found, own


def _kept(chunk: _Chunk, state: State, verdict: speculative.Verdict):
  """How many tokens count, and whether a stop token is the last of them."""
  n = verdict.tokens.shape[1]
  places = jnp.arange(n, dtype=jnp.int32)[None, :]
  limit = jnp.minimum(verdict.accepted + 1, state.remaining)
  ends = (verdict.tokens[:, :, None] == chunk.stop[:, None, :]).any(-1)
  ends &= places < limit[:, None]
  stopped = ends.any(1)
  count = jnp.where(stopped, jnp.argmax(ends, axis=1) + 1, limit)
  return count.astype(jnp.int32), stopped


def _recorded(chunk: _Chunk, carry: _Carry, verdict, count, sampled, logits):
  """The record with this step in it."""
  now = Drawn(
    count=count,
    accepted=jnp.where(count > 0, verdict.accepted, 0),
    token=verdict.tokens,
    sampled_logprob=sampled,
    scores=prefill.scores(logits, verdict.tokens, chunk.n_top),
  )

  def write(record, value):
    return lax.dynamic_update_index_in_dim(record, value, carry.step, 0)

  return jax.tree.map(write, carry.drawn, now)


def _drafted(chunk, state, tokens, passed_on, positions, memory, last, active):
  """What the MTP modules propose after the last token that counts.

  Module k reads, at each position, the token k places on: one that was drawn,
  or behind the last of them a draft of the modules before it.
  """
  model, b = chunk.model, tokens.shape[0]
  ahead = jnp.pad(tokens, ((0, 0), (0, model.n_mtp)))
  found, log_q = [], []
  for number in range(model.n_mtp):
    seen = ahead[:, number : number + tokens.shape[1]]
    hidden, passed_on, memory = model.apply(
      chunk.variables,
      number,
      passed_on,
      seen,
      positions,
      memory,
      active,
      method="draft",
    )
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    token, q = lax.cond(
      (chunk.shape.temperature > 0).any(),
      functools.partial(_proposed, chunk, number),
      _best_proposed,
      state,
      _logits(chunk, hidden)[:, 0],
    )
    ahead = ahead.at[jnp.arange(b), last + 1 + number].set(token)
    found.append(token)
    log_q.append(q)
  if not found:
    return Drafts.none(b, 0, chunk.vocab_size), memory
  return Drafts(jnp.stack(found, 1), jnp.stack(log_q, 1)), memory


def _proposed(chunk: _Chunk, number: int, state: State, logits):
  """A draft of each sequence, and the distribution that it was drawn from."""
  q = sampling.log_distribution(logits, chunk.shape)
  keys = chunk.shape.keys(state.length + 1 + number, sampling.DRAFT)
  return sampling.draw(q, keys), q


def _best_proposed(state: State, logits):
  """As `_proposed` when no sequence has a temperature."""
  del state
  best = sampling.best_token(logits)
  certain = best[:, None] == jnp.arange(logits.shape[1])[None, :]
  return best, jnp.where(certain, 0.0, -jnp.inf)
