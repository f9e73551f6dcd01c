"""Attention over latents: all heads share one entry per token.

What decoding does in place of expanding keys and values (DeepSeek-V2 section
2.1.2; DeepSeek-V3 section 2.1.1 caches the same two vectors): the up-projection
of keys is absorbed into the queries and that of values into the output, and
the cached entry, latent and rotary key side by side, is key and value in one.

Legend (parallel/axes.py): B batch, L query length, S entries, H heads; W width
of an entry, the latent rank and the rotary width together.
"""

import jax.numpy as jnp

from dsx.ops import masks


def attend(query, memories, *, scale: float):
  """Mixes entries by the softmax of scaled products with the queries.

  Args:
    query: [B, L, H, W].
    memories: pairs of entries [B, S, W] and which of them each query sees,
      bool [B or 1, L or 1, S]. One softmax goes over all of them, so that
      what lies in several places need not be brought together.
    scale: multiplies the products.

  Returns:
    float32 [B, L, H, W]; of the entries' width, so that no slice of the cache
    is ever copied: its first part is the mixture of latents. A query that sees
    nothing gives zeros.
  """
  b, n, heads, width = query.shape
  rows = query.reshape(b, n * heads, width)
  scores = []
  for entries, seen in memories:
    products = _einsum("brw,bsw->brs", rows, entries) * scale
    products = products.reshape(b, n, heads, -1)
    scores.append(jnp.where(seen[:, :, None, :], products, masks.HIDDEN))
  top = masks.top(
    jnp.concatenate([s.max(-1, keepdims=True) for s in scores], -1)
  )
  total, out = 0.0, 0.0
  for (entries, _), score in zip(memories, scores, strict=True):
    weights = jnp.exp(score - top)
    total = total + weights.sum(-1, keepdims=True)
    weights = weights.astype(entries.dtype).reshape(b, n * heads, -1)
    out = out + _einsum("brs,bsw->brw", weights, entries)
  out = out.reshape(b, n, heads, width)
  return out / jnp.where(total > 0, total, 1.0)


def _einsum(spec, *operands):
  return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)
