"""What the MTP modules propose, as steps of one compiled loop.

DeepSeek-V3 section 2.2 and 5.4.3. Legend (parallel/axes.py): B batch, L tokens
read per step, V vocabulary.
"""

import functools

from jax import lax
import jax.numpy as jnp

from dsx.inference import chunk as chunk_lib
from dsx.inference import sampling


def drafted(chunk, state, tokens, passed_on, positions, memory, last, active):
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
      chunk.logits(hidden)[:, 0],
    )
    ahead = ahead.at[jnp.arange(b), last + 1 + number].set(token)
    found.append(token)
    log_q.append(q)
  if not found:
    return chunk_lib.Drafts.none(b, 0, chunk.vocab_size), memory
  return chunk_lib.Drafts(jnp.stack(found, 1), jnp.stack(log_q, 1)), memory


def _proposed(
  chunk: chunk_lib.Chunk, number: int, state: chunk_lib.State, logits
):
  """A draft of each sequence, and the distribution that it was drawn from."""
  q = sampling.log_distribution(logits, chunk.shape)
  keys = chunk.shape.keys(state.length + 1 + number, sampling.DRAFT)
  return sampling.draw(q, keys), q


def _best_proposed(state: chunk_lib.State, logits):
  """As `_proposed` when no sequence has a temperature."""
  del state
  best = sampling.best_token(logits)
  certain = best[:, None] == jnp.arange(logits.shape[1])[None, :]
  return best, jnp.where(certain, 0.0, -jnp.inf)
