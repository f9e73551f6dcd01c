"""Softmax attention behind one door, with value heads of their own width.

DeepSeek-V3 section 2.1.1, eq. 10. MLA's query/key heads are wider than its
value heads (192 and 128 in V3), which many fused kernels refuse.

Legend (parallel/axes.py): B batch, L query length, S key length, H heads,
K qk head dim, U value head dim.
"""

from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dsx.ops import chunked_attention
from dsx.ops import masks
from dsx.ops import platforms
from dsx.ops import row_attention
from dsx.ops import splash_attention

IMPLEMENTATIONS = ("auto", "splash", "rows", "chunked", "naive")

# Longer than this, `rows` would hold too many scores at once.
_ROWS_LENGTH = 4096


def attention(
  q,
  k,
  v,
  *,
  scale: float,
  causal: bool = True,
  q_positions=None,
  kv_positions=None,
  segment_ids=None,
  kv_segment_ids=None,
  impl: str = "auto",
  saved_as: str | None = None,
):
  """Mixes values by the softmax of scaled query-key products.

  Args:
    q: [B, L, H, K].
    k: [B, S, H, K].
    v: [B, S, H, U].
    scale: multiplies the products, `ops.rope.softmax_scale`.
    causal: whether a query sees only keys at its own position and before.
    q_positions: int32 [B, L], what `causal` compares; the indices 0 to L-1
      if None. Documents packed into one row need no positions here: indices
      and segments suffice.
    kv_positions: int32 [B, S], likewise.
    segment_ids: optional int32 [B, L]; a query sees its own segment alone.
    kv_segment_ids: int32 [B, S]; `segment_ids` if None.
    impl: `naive` (all scores held at once; the oracle), `rows` (those of a
      block of queries), `chunked` (those of a block of queries and a block
      of keys), `splash` (TPU kernels; where the compiler places arrays on
      several devices, call `parallel.heads` instead) or `auto`, the fastest
      on this platform for these shapes.
    saved_as: a name for `jax.checkpoint` policies to keep the result by, and
      with it all that `splash` needs in order not to run again.

  Returns:
    [B, L, H, U] in q's dtype, softmax in float32. A query that sees no key
    gives zeros. Differentiable in q, k and v.

  Raises:
    ValueError: if `impl` is unknown or shapes do not fit together or `impl`.
  """
  _check(q, k, v, impl)
  visible = masks.Visible.of(
    q.shape[1],
    k.shape[1],
    causal=causal,
    q_positions=q_positions,
    kv_positions=kv_positions,
    q_segments=segment_ids,
    kv_segments=segment_ids if kv_segment_ids is None else kv_segment_ids,
  )
  impl = chosen(impl, q, k, v, visible)
  if impl == "splash":  # names within
    return splash_attention.attend(q, k, v, visible, scale, saved_as)
  attend = {
    "rows": row_attention.attend,
    "chunked": chunked_attention.attend,
    "naive": _naive,
  }[impl]
  out = attend(q, k, v, visible, scale)
  return out if saved_as is None else checkpoint_name(out, saved_as)


def chosen(
  impl: str, q, k, v, visible: masks.Visible, kernels: bool = True
) -> str:
  """What `impl` stands for.

  Args:
    impl: of `IMPLEMENTATIONS`.
    q: [B, L, H, K].
    k: [B, S, H, K].
    v: [B, S, H, U].
    visible: which keys a query sees.
    kernels: whether `auto` may be `splash`.

  Returns:
    `impl`, or what `auto` is on this platform.

  Raises:
    ValueError: if `splash` does not take these shapes.
  """
  why_not = splash_attention.why_not(q, k, v, visible)
  if impl == "splash" and why_not:
    raise ValueError(
      f"impl='splash': expected {why_not}; got q {q.shape}, k {k.shape}, "
      f"v {v.shape}; set Execution.attention to 'auto'"
    )
  if impl != "auto":
    return impl
  on_tpu = platforms.target() == "tpu" and q.dtype == jnp.bfloat16
  if kernels and on_tpu and why_not is None:
    return "splash"
  short = max(q.shape[1], k.shape[1]) <= _ROWS_LENGTH
  # Which keys a block of `rows` can leave out is fixed when it is traced.
  known = visible.by_index or visible.q_positions is None
  return "rows" if short and known else "chunked"


def _check(q, k, v, impl):
  if impl not in IMPLEMENTATIONS:
    raise ValueError(
      f"impl={impl!r}: expected one of {', '.join(IMPLEMENTATIONS)}"
    )
  shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
  if not q.ndim == k.ndim == v.ndim == 4:
    raise ValueError(f"{shapes}: expected [B, L, H, K], [B, S, H, K/U]")
  same = q.shape[0] == k.shape[0] == v.shape[0]
  same &= q.shape[2] == k.shape[2] == v.shape[2]
  if not same or k.shape[1] != v.shape[1] or q.shape[3] != k.shape[3]:
    raise ValueError(
      f"{shapes}: q and k must agree in B, H and K, k and v in S"
    )


def _naive(q, k, v, visible, scale):
  scores = jnp.einsum(
    "blhk,bshk->bhls", q, k, preferred_element_type=jnp.float32
  )
  scores = visible.mask(scores * scale)
  weights = jnp.exp(scores - lax.stop_gradient(masks.top(scores)))
  total = weights.sum(-1, keepdims=True)
  weights = weights / jnp.where(total > 0, total, 1.0)
  return jnp.einsum(
    "bhls,bshu->blhu",
    weights.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  ).astype(q.dtype)
