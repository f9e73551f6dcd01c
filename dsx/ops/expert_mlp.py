"""The routed experts, from tokens to tokens.

DeepSeek-V3 section 2.1.2, eq. 12: each token goes through the SwiGLUs of its
K experts, whose results are summed with its gate weights. One door, because
what is fast differs by platform: a CPU pays for every pass over memory, so
there all three matrices, the sort and the sum share one gradient.

Legend (parallel/axes.py): T tokens, K experts per token, E experts, D model,
F feed-forward; C slots per expert, N groups of R rows.
"""

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dsx.ops import block_scaled
from dsx.ops import expert_slots
from dsx.ops import fp8_experts
from dsx.ops import fp8_recipe
from dsx.ops import grouped_matmul
from dsx.ops import manual_axes
from dsx.ops import permutation
from dsx.ops import platforms

IMPLEMENTATIONS = ("auto", "slots", "grouped", "lookup", "dense")

# Slots per expert over the mean load: the few more rows cost less than the
# loop over what would overflow without them.
_SLACK = 1.125
_ROWS = 64


def expert_mlp(
  x,
  index,
  weight,
  gate,
  up,
  down,
  *,
  impl: str = "auto",
  copies: int | None = None,
  fp8: fp8_recipe.Recipe | None = None,
  dispatched: bool = False,
  probe=None,
):
  """Sums weight * down(silu(gate(x)) * up(x)) over each token's experts.

  Args:
    x: [T, D].
    index: int32 [T, K], experts of each token; one that is not in [0, E)
      adds nothing.
    weight: float32 [T, K], gate weights.
    gate: [E, D, F], in x's dtype (any with `fp8`), or FP8 with block scales,
      as the others.
    up: [E, D, F].
    down: [E, F, D].
    impl: `slots` (CPU), `grouped` (sorted rows and three calls of
      `grouped_matmul`; GPU and TPU), `lookup` (the matrices of each copy are
      fetched; for so few tokens that most experts rest), `dense` (every token
      through every expert, the slow oracle), or `auto`.
    copies: most entries of `index` that are experts, where it is known to be
      fewer than T * K; `grouped` then holds so many rows and no more.
    fp8: the recipe of products in FP8 (`fp8_experts`), or None for none.
    dispatched: whether `x` and the gradient of the result travel in FP8 with
      power-of-two scales; then the recipe's products take them so.
    probe: of `fp8_experts.run`.

  Returns:
    [T, D] in x's dtype. Differentiable in all but `index`.

  Raises:
    ValueError: if `impl` is unknown or shapes or dtypes do not fit together.
  """
  _check(x, index, weight, gate, up, down, impl, fp8 is not None)
  if fp8 is not None:
    if impl == "auto":
      impl = fp8_experts.fastest(fp8, index.size, gate.shape[0])
    copies = copies or index.size
    way = fp8_experts.Way(fp8, impl, dispatched, copies, x.dtype, gate.dtype)
    return fp8_experts.run(x, index, weight, (gate, up, down), way, probe)
  if impl == "auto" and 2 * index.size <= gate.shape[0]:
    impl = "lookup"
  if impl == "auto":
    impl = "slots" if platforms.target() == "cpu" else "grouped"
  if impl == "lookup":
    # Of weights in FP8, only what is looked up becomes wide.
    known = (index >= 0) & (index < gate.shape[0])
    expert = jnp.where(known, index, 0).reshape(-1)
    weight = jnp.where(known, weight, 0.0)
    weights = (_of_experts(w, expert, x.dtype) for w in (gate, up, down))
  else:
    weights = (_wide_weights(w, x.dtype) for w in (gate, up, down))
  arrays = manual_axes.align(x, index, weight, *weights)
  if impl == "grouped":
    return _grouped(*arrays, copies or index.size)
  run = {"slots": _slotted, "lookup": _lookup, "dense": _dense}[impl]
  return run(*arrays)


def _of_experts(w, expert, dtype):
  """The matrices [N, ...] of experts int32 [N]."""
  found = jax.tree.map(lambda x: permutation.take(x, expert), w)
  return _wide_weights(found, dtype)


def _wide_weights(w, dtype):
  return w.dequantise(dtype) if isinstance(w, block_scaled.BlockScaled) else w


def _check(x, index, weight, gate, up, down, impl, rounds_weights):
  if impl not in IMPLEMENTATIONS:
    raise ValueError(
      f"impl={impl!r}: expected one of {', '.join(IMPLEMENTATIONS)}"
    )
  if index.shape != weight.shape or index.shape[:1] != x.shape[:1]:
    raise ValueError(
      f"x {x.shape}, index {index.shape}, weight {weight.shape}: expected "
      "[T, D], [T, K] and [T, K]"
    )
  n, d, f = gate.shape
  if up.shape != (n, d, f) or down.shape != (n, f, d) or x.shape[1] != d:
    raise ValueError(
      f"x {x.shape}, gate {gate.shape}, up {up.shape}, down {down.shape}: "
      "expected [T, D], [E, D, F] twice and [E, F, D]"
    )
  apart = rounds_weights or isinstance(gate, block_scaled.BlockScaled)
  alike = (gate, up, down) if apart else (x, gate, up, down)
  if len({a.dtype for a in alike}) > 1:
    raise ValueError(
      f"x {x.dtype}, gate {gate.dtype}, up {up.dtype}, down {down.dtype}: "
      "cast all to one dtype"
    )


def _dense(x, index, weight, gate, up, down):
  chosen = index[:, :, None] == jnp.arange(gate.shape[0])[None, None, :]
  share = jnp.where(chosen, weight[:, :, None], 0.0).sum(1)  # [T, E]
  hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate))
  hidden = hidden * jnp.einsum("td,edf->tef", x, up)
  y = jnp.einsum("tef,efd->ted", hidden, down).astype(jnp.float32)
  return (y * share[:, :, None]).sum(1).astype(x.dtype)


def _grouped(x, index, weight, gate, up, down, copies: int):
  n_experts = gate.shape[0]
  rows, order = permutation.permute(x, index, n_experts, most=copies)
  rows = checkpoint_name(rows, "dispatched")
  sizes = permutation.group_sizes(index, n_experts)

  def matmul(rows, w):
    return grouped_matmul.grouped_matmul(rows, w, sizes)

  gated = checkpoint_name(matmul(rows, gate), "swiglu_input")
  passed = checkpoint_name(matmul(rows, up), "swiglu_input")
  y = matmul(jax.nn.silu(gated) * passed, down)
  return permutation.unpermute(y, weight, order)


def _lookup(x, index, weight, gate, up, down):
  """With the matrices of each copy's own expert, [T * K, ...]."""
  rows = jnp.repeat(x, index.shape[1], axis=0)[:, None, :]
  y, _, _ = _rows_forward(rows, weight.reshape(-1, 1), gate, up, down)
  y = y.reshape(*index.shape, -1).astype(jnp.float32)
  return y.sum(1).astype(x.dtype)


# One batch of rows: N groups of R rows, each through an expert of its own.


def _einsum(spec, *operands):
  return _wide(spec, *operands).astype(operands[0].dtype)


def _wide(spec, *operands):
  return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)


def _hidden(gated, passed, share):
  """silu(gate) * up * gate weight, in float32."""
  gated, passed = gated.astype(jnp.float32), passed.astype(jnp.float32)
  return jax.nn.silu(gated) * passed * share[:, :, None]


def _rows_forward(rows, share, gate, up, down):
  """Weighted outputs [N, R, D] of `rows` [N, R, D], `share` [N, R]."""
  gated = _einsum("nrd,ndf->nrf", rows, gate)
  passed = _einsum("nrd,ndf->nrf", rows, up)
  hidden = _hidden(gated, passed, share).astype(rows.dtype)
  return _einsum("nrf,nfd->nrd", hidden, down), gated, passed


def _rows_backward(rows, share, gated, passed, dy, gate, up, down):
  """Gradients of `_rows_forward`'s five arguments."""
  dtype = rows.dtype
  dhidden = _wide("nrd,nfd->nrf", dy, down)
  wide, passed = gated.astype(jnp.float32), passed.astype(jnp.float32)
  sigmoid = jax.nn.sigmoid(wide)
  silu = wide * sigmoid
  dshare = (dhidden * silu * passed).sum(-1)
  hidden = (silu * passed * share[:, :, None]).astype(dtype)
  dhidden = dhidden * share[:, :, None]
  dpassed = (dhidden * silu).astype(dtype)
  slope = sigmoid + silu * (1.0 - sigmoid)
  dgated = (dhidden * passed * slope).astype(dtype)
  drows = jnp.einsum(
    "nrf,ndf->nrd", dgated, gate, preferred_element_type=jnp.float32
  ) + jnp.einsum(
    "nrf,ndf->nrd", dpassed, up, preferred_element_type=jnp.float32
  )
  dgate, dup = _outer(rows, dgated), _outer(rows, dpassed)
  return drows, dshare, dgate, dup, _outer(hidden, dy)


def _outer(x, dy):
  """x transposed @ dy of each group, float32."""
  x = lax.optimization_barrier(x.swapaxes(1, 2))
  return _wide("ndr,nrf->ndf", x, dy)


# Slots for all experts at once, then a loop over the overflow.


def _slots(index, n_experts):
  capacity = -(-int(_SLACK * index.size) // n_experts)
  capacity = min(-(-capacity // 8) * 8, index.shape[0])
  # Where few tokens share an expert, blocks of the overflow are small too.
  rows = min(_ROWS, capacity)
  return expert_slots.assign(index, n_experts, capacity, rows)


def _shares(weight, copy, filled):
  """Gate weights of copies, zero where there is none."""
  share = permutation.take(weight.reshape(-1), copy).astype(jnp.float32)
  return jnp.where(filled, share, 0.0)


def _gather_sum(y, slot):
  """Sums the slots of each token, float32 [T, D]; slots past the end are 0."""
  y = y.reshape(-1, y.shape[-1])
  rows = y.at[slot].get(mode="fill", fill_value=0)
  return rows.sum(1, dtype=jnp.float32)


def _expert(w, e):
  """The matrix of expert `e`, [1, ...]."""
  return lax.dynamic_index_in_dim(w, e, 0, keepdims=True)


def _add_to_expert(w, e, term):
  return lax.dynamic_update_index_in_dim(w, _expert(w, e) + term, e, 0)


@jax.custom_vjp
def _slotted(x, index, weight, gate, up, down):
  return _slotted_forward(x, index, weight, gate, up, down)[0]


def _slotted_forward(x, index, weight, gate, up, down):
  k = index.shape[1]
  slots = _slots(index, gate.shape[0])
  rows = permutation.take(x, slots.copy // k)
  share = _shares(weight, slots.copy, slots.filled)
  y, gated, passed = _rows_forward(rows, share, gate, up, down)
  out = _gather_sum(y, slots.slot)

  def overflow(i, out):
    expert, copy, filled = slots.overflow(i)
    rows = permutation.take(x, copy // k)[None]
    share = _shares(weight, copy, filled)[None]
    weights = (_expert(w, expert) for w in (gate, up, down))
    y, _, _ = _rows_forward(rows, share, *weights)
    return out.at[copy // k].add(y[0].astype(jnp.float32))

  if slots.copy.shape[1] < x.shape[0]:  # an expert may get more than it holds
    out = lax.fori_loop(0, slots.blocks.count, overflow, out)
  gated = checkpoint_name(gated, "swiglu_input")
  passed = checkpoint_name(passed, "swiglu_input")
  saved = (x, index, weight, gate, up, down, gated, passed)
  return out.astype(x.dtype), saved


def _slotted_backward(saved, dout):
  x, index, weight, gate, up, down, gated, passed = saved
  k = index.shape[1]
  slots = _slots(index, gate.shape[0])

  def gather(copy):
    token = copy // k
    return permutation.take(x, token), permutation.take(dout, token)

  rows, dy = gather(slots.copy)
  share = _shares(weight, slots.copy, slots.filled)
  drows, dshare, *dweights = _rows_backward(
    rows, share, gated, passed, dy, gate, up, down
  )
  dx = _gather_sum(drows, slots.slot)
  dweight = dshare.reshape(-1).at[slots.slot].get(mode="fill", fill_value=0)

  def overflow(i, grads):
    dx, dweight, *dweights = grads
    expert, copy, filled = slots.overflow(i)
    rows, dy = (a[None] for a in gather(copy))
    share = _shares(weight, copy, filled)[None]
    weights = [_expert(w, expert) for w in (gate, up, down)]
    _, gated, passed = _rows_forward(rows, share, *weights)
    drows, dshare, *dw = _rows_backward(
      rows, share, gated, passed, dy, *weights
    )
    dweights = [
      lax.dynamic_update_index_in_dim(
        whole, _expert(whole, expert) + d, expert, 0
      )
      for whole, d in zip(dweights, dw, strict=True)
    ]
    dshare = jnp.where(filled, dshare[0], 0.0)
    dx = dx.at[copy // k].add(jnp.where(filled[:, None], drows[0], 0.0))
    return dx, dweight.at[copy].add(dshare), *dweights

  start = (dx, dweight.reshape(-1), *dweights)
  dx, dweight, *dweights = lax.fori_loop(0, slots.blocks.count, overflow, start)
  dweights = (d.astype(gate.dtype) for d in dweights)
  dweight = dweight.reshape(weight.shape).astype(weight.dtype)
  return dx.astype(x.dtype), None, dweight, *dweights


_slotted.defvjp(_slotted_forward, _slotted_backward)
