"""Decoding a chunk: some tokens of every sequence, without asking the host.

One compiled loop. A step reads the last token of each sequence and the drafts
after it, accepts what stands (`speculative.verify`; without drafts this is
plain decoding), and lets the MTP modules draft what may come next. Sequences
end by themselves, at a stop token or when they are long enough; the loop ends
when enough of them have, or after the chunk's steps.

Legend (parallel/axes.py): B batch, V vocabulary; J drafts per step, L = J + 1
tokens read per step, T = steps * L length of the tail.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dsx.inference import chunk as chunk_lib
from dsx.inference import drafting
from dsx.inference import prefill
from dsx.inference import sampling
from dsx.inference import verdicts
from dsx.models import cache
from dsx.models import decoder


class _Carry(NamedTuple):
  step: Any
  state: chunk_lib.State
  drafts: chunk_lib.Drafts
  tails: tuple
  tail_seen: Any  # bool [B, T]
  tail_positions: Any  # int32 [B, T]
  drawn: chunk_lib.Drawn


@functools.partial(
  jax.jit,
  static_argnames=(
    "model",
    "context_pages",
    "steps",
    "n_top",
    "vocab_size",
    "records",
  ),
  donate_argnames=("pages", "drafts"),
)
def decode(
  model: decoder.Decoder,
  variables,
  pages,
  table,
  state: chunk_lib.State,
  drafts: chunk_lib.Drafts,
  fresh,
  shape: sampling.Shape,
  stop,
  enough,
  *,
  context_pages: int,
  steps: int,
  n_top: int,
  vocab_size: int,
  records: bool,
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
    enough: int32 [], the chunk ends when no more sequences than these go on.
    context_pages: how many columns of the table hold all that is cached.
    steps: most steps.
    n_top: how many best tokens to report with each token.
    vocab_size: ids from here on only pad the model's vocabulary.
    records: whether to record experts.

  Returns:
    (pages, state, drafts, `Drawn`).
  """
  b, n = table.shape[0], drafts.tokens.shape[1] + 1
  contexts = cache.gather(pages, table[:, :context_pages])
  seen = jnp.arange(contexts[0].shape[1], dtype=jnp.int32)[None, :]
  chunk = chunk_lib.Chunk(
    model,
    variables,
    shape,
    stop,
    contexts,
    seen < state.length[:, None],
    n_top,
    vocab_size,
    records,
  )
  blank = chunk_lib.Drafts.none(b, n - 1, vocab_size)
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
    _nothing_drawn(chunk, steps, b, n),
  )
  end = lax.while_loop(
    lambda c: (c.step < steps) & ((c.state.remaining > 0).sum() > enough),
    functools.partial(_step, chunk),
    start,
  )
  pages = cache.append(
    pages, table, end.tail_positions, end.tail_seen, end.tails
  )
  return pages, end.state, end.drafts, end.drawn


def _nothing_drawn(
  chunk: chunk_lib.Chunk, steps: int, b: int, n: int
) -> chunk_lib.Drawn:
  each, best = (steps, b, n), (steps, b, n, chunk.n_top)
  c = chunk.model.config
  chosen = (*each, c.num_moe_layers, c.num_experts_per_tok)
  integers, floats = (
    functools.partial(jnp.zeros, dtype=t) for t in (jnp.int32, jnp.float32)
  )
  return chunk_lib.Drawn(
    count=integers((steps, b)),
    accepted=integers((steps, b)),
    token=integers(each),
    sampled_logprob=floats(each),
    scores=prefill.Scores(floats(each), integers(best), floats(best)),
    experts=jnp.zeros(chosen, decoder.index_type(c)) if chunk.records else None,
  )


def _step(chunk: chunk_lib.Chunk, carry: _Carry) -> _Carry:
  state, drafts = carry.state, carry.drafts
  n = drafts.tokens.shape[1] + 1
  active = state.remaining > 0
  inputs = jnp.concatenate([state.token[:, None], drafts.tokens], axis=1)
  places = jnp.arange(n, dtype=jnp.int32)
  positions = state.length[:, None] + places[None, :]
  memory = _memory(chunk, carry, n)
  found, experts = decoder.apply(
    chunk.model,
    chunk.variables,
    inputs,
    positions,
    memory,
    active,
    method="decode",
    records=chunk.records,
  )
  hidden, passed_on, memory = found
  logits = chunk.logits(hidden)
  verdict, sampled = lax.cond(
    (chunk.shape.temperature > 0).any(),
    functools.partial(verdicts.drawn, chunk),
    verdicts.greedy,
    state,
    drafts,
    logits,
  )
  count, stopped = verdicts.kept(chunk, state, verdict)
  scores = prefill.scores(logits, verdict.tokens, chunk.n_top)
  drawn = _recorded(carry, verdict, count, sampled, scores, experts)
  last = jnp.maximum(count - 1, 0)
  token = jnp.take_along_axis(verdict.tokens, last[:, None], axis=1)[:, 0]
  new = chunk_lib.State(
    token=jnp.where(count > 0, token, state.token),
    length=state.length + count,
    remaining=jnp.where(stopped, 0, state.remaining - count),
  )
  drafts, memory = drafting.drafted(
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


def _memory(chunk: chunk_lib.Chunk, carry: _Carry, n: int) -> cache.Memory:
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


def _recorded(carry: _Carry, verdict, count, sampled, scores, experts):
  """The record with this step in it."""
  now = chunk_lib.Drawn(
    count=count,
    accepted=jnp.where(count > 0, verdict.accepted, 0),
    token=verdict.tokens,
    sampled_logprob=sampled,
    scores=scores,
    experts=experts,
  )

  def write(record, value):
    return lax.dynamic_update_index_in_dim(record, value, carry.step, 0)

  return jax.tree.map(write, carry.drawn, now)
