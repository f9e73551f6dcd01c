"""What a step draws: which drafts stand, the token after them, and the end.

Legend (parallel/axes.py): B batch, V vocabulary; J drafts per step, L = J + 1.
"""

import jax
import jax.numpy as jnp

from dsx.inference import chunk as chunk_lib
from dsx.inference import sampling
from dsx.inference import speculative


def greedy(state: chunk_lib.State, drafts: chunk_lib.Drafts, logits):
  """As `drawn` when no sequence has a temperature: nothing to draw."""
  del state
  best = sampling.best_token(logits)
  found = speculative.verify_greedy(drafts.tokens, best)
  return found, jnp.zeros(best.shape, jnp.float32)


def drawn(
  chunk: chunk_lib.Chunk,
  state: chunk_lib.State,
  drafts: chunk_lib.Drafts,
  logits,
):
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


def kept(
  chunk: chunk_lib.Chunk, state: chunk_lib.State, verdict: speculative.Verdict
):
  """How many tokens count, and whether a stop token is the last of them."""
  n = verdict.tokens.shape[1]
  places = jnp.arange(n, dtype=jnp.int32)[None, :]
  limit = jnp.minimum(verdict.accepted + 1, state.remaining)
  ends = (verdict.tokens[:, :, None] == chunk.stop[:, None, :]).any(-1)
  ends &= places < limit[:, None]
  stopped = ends.any(1)
  count = jnp.where(stopped, jnp.argmax(ends, axis=1) + 1, limit)
  return count.astype(jnp.int32), stopped
