"""The routed experts in FP8, from tokens to tokens.

DeepSeek-V3 section 3.3, for eq. 12's second sum. Each of an expert's three
matrices is a linear layer as `fp8_linear` has it:

  Fprop   rows, and hidden = silu(gate) * up * gate weight, by 1 x 128
  Dgrad   the gradients of y, gate and up, by 1 x 128
  Wgrad   both sides by 128 consecutive rows of one expert, counted from its
          first in the order of tokens

Between them wait the rows (one per token, however many experts it goes to) and
SwiGLU's inputs, both FP8 unless the recipe says otherwise; SwiGLU's output is
computed anew from what waited (section 3.3.3 (2)). Tiles are the same in every
layout of the rows, so all implementations agree:

  slots     equal room for every expert, then a loop over what overflows
  grouped   rows sorted by expert, each expert's filled up to whole blocks
  dense     room for every token at every expert, the slow oracle
  lookup    matrices fetched for every copy; its gradient is that of `grouped`

Legend (parallel/axes.py): T tokens, K experts per token, E experts, D model,
F feed-forward; N groups of R rows.
"""

import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import block_scaled
from dsx.ops import fp8
from dsx.ops import fp8_grouped
from dsx.ops import fp8_linear
from dsx.ops import fp8_places
from dsx.ops import fp8_probe
from dsx.ops import fp8_recipe
from dsx.ops import fp8_rows
from dsx.ops import manual_axes
from dsx.ops import permutation
from dsx.ops import platforms


@dataclasses.dataclass(frozen=True)
class Way:
  """What is known of a call before any token is; hashable, static to JAX.

  Attributes:
    recipe: of the model.
    impl: `slots`, `grouped`, `dense` or `lookup`.
    dispatched: whether rows and the gradients of results travel, or would, in
      FP8 with power-of-two scales; then that is what they are (section 3.3.3).
    copies: most entries of `index` that are experts.
    dtype: of the tokens.
    of_weights: dtype of the weights and of their gradients.
  """

  recipe: fp8_recipe.Recipe
  impl: str
  dispatched: bool
  copies: int
  dtype: Any
  of_weights: Any

  @property
  def entering(self) -> fp8_recipe.Recipe:
    """The recipe of what enters the experts: rows and gradients of results."""
    if not self.dispatched:
      return self.recipe
    return dataclasses.replace(self.recipe, scale_format="ue8m0")


def fastest(recipe: fp8_recipe.Recipe, copies: int, n_experts: int) -> str:
  """The implementation for so many copies on the current platform."""
  granularities = _granularities(recipe)
  if 2 * copies <= n_experts and set(granularities) == {"tile"}:
    return "lookup"
  on_cpu = platforms.target() == "cpu"
  return "slots" if on_cpu and "tensor" not in granularities else "grouped"


def _granularities(recipe):
  return recipe.activation_granularity, recipe.gradient_granularity


def run(x, index, weight, weights, way: Way, probe=None):
  """As `expert_mlp.expert_mlp`.

  Args:
    x: [T, D].
    index: int32 [T, K].
    weight: float32 [T, K].
    weights: (gate, up, down); those that are FP8 already are used as they are
      and have no gradient.
    way: how.
    probe: float32 [3, 3, WIDTH], zeros, or None; its cotangent is the sums of
      `fp8_probe` for gate, up and down, of what enters them (a token counts
      once), their weights and the gradients of what leaves them.

  Returns:
    [T, D] in x's dtype.

  Raises:
    ValueError: the implementation has not the recipe's granularity.
  """
  lacking = {"slots": ("tensor",), "lookup": ("tensor", "block")}
  activations, gradients = _granularities(way.recipe)
  if {activations, gradients} & set(lacking.get(way.impl, ())):
    raise ValueError(
      f"impl={way.impl!r} with activation_granularity={activations!r} and "
      f"gradient_granularity={gradients!r}: expected 'grouped' or 'dense', "
      "which have all rows that share a scale at hand"
    )
  leaves, tree = jax.tree.flatten((x, index, weight, weights, probe))
  leaves = manual_axes.align(*leaves)
  y: Any = _run(*jax.tree.unflatten(tree, leaves), way)
  return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _run(x, index, weight, weights, probe, way):
  return _forward(x, index, weight, weights, probe, way)[0]


def _forward(x, index, weight, weights, probe, way: Way):
  if way.impl == "lookup":
    y = _lookup(x, index, weight, weights, way)
    return y, (x, index, weight, weights, probe)
  return _rows_forward(x, index, weight, weights, probe, way)


def _backward(way: Way, saved, dout):
  if way.impl == "lookup":
    x, index, weight, weights, probe = saved
    way = dataclasses.replace(way, impl="grouped")
    _, saved = _rows_forward(x, index, weight, weights, probe, way)
  return _rows_backward(way, saved, dout)


_run.defvjp(_forward, _backward)


def _entering(tokens, copy, k: int, way: Way) -> fp8.Quantised:
  """Rows for Fprop of gate and up, of tokens that are quantised or not."""
  return fp8_linear.quantised_input(
    fp8_places.gather(tokens, copy, k), way.entering
  )


def _expert(tree, e):
  """The matrix of expert `e`, [1, ...]."""
  return jax.tree.map(
    lambda a: lax.dynamic_index_in_dim(a, e, 0, keepdims=True), tree
  )


class _Saved(NamedTuple):
  """What waits for the backward pass.

  Attributes:
    tokens: [T, D], quantised or not.
    index: int32 [T, K].
    weight: float32 [T, K].
    weights: of the experts, quantised.
    frozen: None for weights that take a gradient; else one 0.
    inputs: of SwiGLU, quantised or not.
    seen: float32 [2, 3, WIDTH], of activations and weights; or None.
  """

  tokens: Any
  index: Any
  weight: Any
  weights: Any
  frozen: Any
  inputs: Any
  seen: Any


def _rows_forward(x, index, weight, weights, probe, way: Way):
  k = index.shape[1]
  where = fp8_places.assign(
    index, weights[0].shape[0], way.impl, way.copies, way.recipe
  )
  frozen = isinstance(weights[0], block_scaled.BlockScaled)
  weights_fp8 = tuple(
    fp8_linear.quantised_weight(w, way.recipe) for w in weights
  )
  tokens = x
  if way.recipe.activation_granularity == "tile":
    tokens = fp8_linear.quantised_input(x, way.entering)
  rows = _entering(tokens, where.copy, k, way)
  share = fp8_places.shares(weight, where.copy)
  y, inputs, hidden = fp8_rows.forward(
    rows, share, weights_fp8, where.products, way.recipe, way.dtype
  )
  out = fp8_places.gather_sum(y, where.place)
  of_hidden: Any = None if probe is None else fp8_probe.statistics(*hidden)

  def overflow(i, carry):
    out, of_hidden = carry
    expert, copy = _overflowing(where.slots, i, index.size)
    y, _, hidden = fp8_rows.forward(
      _entering(tokens, copy, k, way),
      fp8_places.shares(weight, copy),
      _expert(weights_fp8, expert),
      where.products,
      way.recipe,
      way.dtype,
    )
    out = out.at[copy[0] // k].add(y[0].astype(jnp.float32), mode="drop")
    if of_hidden is not None:
      of_hidden += fp8_probe.statistics(*hidden)
    return out, of_hidden

  if where.slots is not None:
    count = where.slots.blocks.count
    out, of_hidden = lax.fori_loop(0, count, overflow, (out, of_hidden))
  seen = None
  if probe is not None:
    of_rows = fp8_probe.statistics(
      *((x, tokens) if isinstance(tokens, fp8.Quantised) else (
        fp8_places.gather(x, where.copy, k), rows
      ))
    )  # fmt: skip
    of_weights = [
      fp8_probe.statistics(q.dequantise(jnp.float32) if frozen else w, q)
      for w, q in zip(weights, weights_fp8, strict=True)
    ]
    seen = jnp.stack(
      [jnp.stack([of_rows, of_rows, of_hidden]), jnp.stack(of_weights)]
    )
  saved = _Saved(
    tokens=fp8_linear.named(_kept(x, tokens, way), "dispatched"),
    index=index,
    weight=weight,
    weights=weights_fp8,
    frozen=jnp.zeros((), jnp.int32) if frozen else None,
    inputs=fp8_linear.named(
      fp8_rows.waiting(inputs, way.recipe), "swiglu_input"
    ),
    seen=seen,
  )
  return out.astype(way.dtype), saved


def _kept(x, tokens, way: Way):
  """What waits of x [T, D] for Wgrad."""
  if not isinstance(tokens, fp8.Quantised):
    return x  # tiles of several rows are made anew, of the same numbers
  if way.recipe.cache_inputs == "float8":
    return tokens
  return tokens.dequantise(way.dtype) if way.dispatched else x


def _overflowing(slots, i, none: int):
  """(expert, copies [1, R]) of block `i` of the overflow."""
  expert, copy, filled = slots.overflow(i)
  return expert, jnp.where(filled, copy, none)[None]


def _rows_backward(way: Way, saved: _Saved, dout):
  index, weight, weights = saved.index, saved.weight, saved.weights
  k = index.shape[1]
  where = fp8_places.assign(
    index, weights[0].shape[0], way.impl, way.copies, way.recipe
  )
  leaving, recipe = dout, way.entering
  if recipe.gradient_granularity == "tile":
    leaving = fp8_linear.quantised_gradient(dout, recipe)

  def quantised(copy):
    """Rows for Wgrad, and dy for both."""
    rows = fp8_linear.retiled(fp8_places.gather(saved.tokens, copy, k), recipe)
    forward = fp8_linear.quantised_gradient(
      fp8_places.gather(leaving, copy, k), recipe
    )
    dy = fp8_places.gather(dout, copy, k)
    if way.dispatched:
      dy = forward.dequantise(jnp.float32)
    along = fp8_linear.quantised_gradient(dy, recipe, along_rows=True)
    return rows, (forward, along)

  rows, dy = quantised(where.copy)
  share = fp8_places.shares(weight, where.copy)
  g = fp8_rows.backward(
    rows,
    share,
    saved.inputs,
    dy,
    weights,
    where.products,
    way.recipe,
    way.dtype,
  )
  dx = fp8_places.gather_sum(g.rows, where.place)
  flat = g.share.reshape(-1)
  dweight = flat.at[where.place].get(mode="fill", fill_value=0).reshape(-1)
  seen: Any = None
  if saved.seen is not None:
    seen = [fp8_probe.statistics(*pair) for pair in g.of_inputs]

  def overflow(i, carry):
    dx, dweight, dweights, seen = carry
    expert, copy = _overflowing(where.slots, i, index.size)
    own, share = _expert(weights, expert), fp8_places.shares(weight, copy)
    entering = _entering(saved.tokens, copy, k, way)
    _, inputs, _ = fp8_rows.forward(
      entering, share, own, where.products, way.recipe, way.dtype
    )
    rows, dy = quantised(copy)
    inputs = fp8_rows.waiting(inputs, way.recipe)
    g = fp8_rows.backward(
      rows, share, inputs, dy, own, where.products, way.recipe, way.dtype
    )
    dx = dx.at[copy[0] // k].add(g.rows[0], mode="drop")
    dweight = dweight.at[copy[0]].add(g.share[0], mode="drop")
    dweights = tuple(
      lax.dynamic_update_index_in_dim(
        whole, _expert(whole, expert) + d, expert, 0
      )
      for whole, d in zip(dweights, g.weights, strict=True)
    )
    if seen is not None:
      pairs = zip(seen, g.of_inputs, strict=True)
      seen = [s + fp8_probe.statistics(*pair) for s, pair in pairs]
    return dx, dweight, dweights, seen

  carry: Any = dx, dweight, g.weights, seen
  if where.slots is not None:
    carry = lax.fori_loop(0, where.slots.blocks.count, overflow, carry)
  dx, dweight, dweights, seen = carry
  if saved.seen is not None:
    of_dy = fp8_probe.statistics(
      *((dout, leaving) if isinstance(leaving, fp8.Quantised) else (
        fp8_places.gather(dout, where.copy, k), dy[0]
      ))
    )  # fmt: skip
    gradients = jnp.stack([*seen, of_dy])
    seen = jnp.stack([*saved.seen, gradients], axis=1)
  dweights = tuple(
    None if saved.frozen is not None else d.astype(way.of_weights)
    for d in dweights
  )
  dweight = dweight.reshape(weight.shape).astype(weight.dtype)
  return dx.astype(way.dtype), None, dweight, dweights, seen


def _lookup(x, index, weight, weights, way: Way):
  """With the matrices of each copy's own expert, [T * K, ...]."""
  n_experts = weights[0].shape[0]
  known = (index >= 0) & (index < n_experts)
  expert = jnp.where(known, index, 0).reshape(-1)
  own = tuple(
    fp8_linear.quantised_weight(
      jax.tree.map(lambda a: permutation.take(a, expert), w), way.recipe
    )
    for w in weights
  )
  rows = fp8_linear.quantised_input(x, way.entering)
  rows = jax.tree.map(
    lambda a: jnp.repeat(a, index.shape[1], axis=0)[:, None], rows
  )
  share = jnp.where(known, weight, 0.0).astype(jnp.float32).reshape(-1, 1)
  products = fp8_grouped.Batched(way.recipe)
  y, _, _ = fp8_rows.forward(rows, share, own, products, way.recipe, way.dtype)
  y = y.reshape(*index.shape, -1).astype(jnp.float32)
  return y.sum(1).astype(way.dtype)
