"""Which queries see which keys.

Legend (parallel/axes.py): B batch, H heads, L query length, S key length.
"""

from typing import Any
from typing import NamedTuple

from jax import lax
import jax.numpy as jnp

# Finite, so that a query that sees no key gives no NaN; far below any score.
HIDDEN = -1e30


def top(scores):
  """The largest score of each query [..., L, 1], for a stable softmax.

  For a query that sees no key it stays far above `HIDDEN`, so that exp(score
  - top) is 0 there too and not 1.
  """
  return jnp.maximum(scores.max(-1, keepdims=True), HIDDEN / 2)


class Visible(NamedTuple):
  """Positions and segments of queries and keys; each [B or 1, length].

  A query sees a key when the key's position is not above its own (if there
  are positions) and when their segments are equal (if there are segments).

  Attributes:
    q_positions: int32 or None.
    kv_positions: int32 or None.
    q_segments: int32 or None.
    kv_segments: int32 or None.
    by_index: whether positions are the plain indices, so that whole blocks
      above the diagonal may be left out.
  """

  q_positions: Any
  kv_positions: Any
  q_segments: Any
  kv_segments: Any
  by_index: bool

  @classmethod
  def of(
    cls,
    q_length: int,
    kv_length: int,
    *,
    causal: bool,
    q_positions=None,
    kv_positions=None,
    q_segments=None,
    kv_segments: Any = None,
  ):
    """Fills in index positions where `causal` needs them."""
    by_index = causal and q_positions is None and kv_positions is None
    if not causal:
      q_positions = kv_positions = None
    else:
      if q_positions is None:
        q_positions = jnp.arange(q_length, dtype=jnp.int32)[None]
      if kv_positions is None:
        kv_positions = jnp.arange(kv_length, dtype=jnp.int32)[None]
    if q_segments is not None and kv_segments.shape[1] != kv_length:
      raise ValueError(
        f"kv_segment_ids {kv_segments.shape}: expected [B, S={kv_length}]; "
        "give them when keys are not as many as queries"
      )
    return cls(q_positions, kv_positions, q_segments, kv_segments, by_index)

  def mask(self, scores):
    """`scores` [B, H, L, S] with `HIDDEN` where a key is not seen."""
    for query, key, see in (
      (self.q_positions, self.kv_positions, jnp.greater_equal),
      (self.q_segments, self.kv_segments, jnp.equal),
    ):
      if query is not None:
        seen = see(query[:, None, :, None], key[:, None, None, :])
        scores = jnp.where(seen, scores, HIDDEN)
    return scores

  def reached(self, rows: int, columns: int):
    """Which blocks of keys the order of positions lets blocks of queries see.

    Args:
      rows: queries of a block; divides L.
      columns: keys of a block; divides S.

    Returns:
      bool [L / rows, S / columns], False where no query of the block sees a
      key of the block in any sequence; None without positions.
    """
    if self.q_positions is None:
      return None
    last = self.q_positions.max(0).reshape(-1, rows).max(1)
    first = self.kv_positions.min(0).reshape(-1, columns).min(1)
    return last[:, None] >= first[None, :]

  def part(self, q_start, q_length: int, kv_start, kv_length: int):
    """The same question of a block of queries and a block of keys."""

    def cut(x, start, length):
      return (
        None if x is None else lax.dynamic_slice_in_dim(x, start, length, 1)
      )

    return Visible(
      cut(self.q_positions, q_start, q_length),
      cut(self.kv_positions, kv_start, kv_length),
      cut(self.q_segments, q_start, q_length),
      cut(self.kv_segments, kv_start, kv_length),
      False,
    )
