"""One batch of rows through their experts in FP8, and its gradients.

DeepSeek-V3 section 3.3: six products of FP8 forth and back, whatever the layout
of the rows (`fp8_grouped`); SwiGLU between them is float32, and its output is
computed anew from what waited of its inputs (section 3.3.3 (2)).

Legend (parallel/axes.py): D model, F feed-forward; R rows.
"""

from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import fp8
from dsx.ops import fp8_grouped
from dsx.ops import fp8_linear
from dsx.ops import fp8_recipe


def forward(
  rows: fp8.Quantised,
  share,
  weights,
  products: fp8_grouped.Products,
  recipe: fp8_recipe.Recipe,
  dtype,
):
  """Rows through their experts.

  Args:
    rows: [..., R, D].
    share: float32 [..., R], gate weights.
    weights: quantised.
    products: of these rows.
    recipe: of the model.
    dtype: of tokens.

  Returns:
    (y [..., R, D], SwiGLU's inputs, its output and that quantised).
  """
  gate, up, down = weights
  gated = products.fprop(rows, gate, dtype)
  passed = products.fprop(rows, up, dtype)
  hidden = _hidden(*(a.astype(jnp.float32) for a in (gated, passed)), share)
  hidden = hidden.astype(dtype)
  hidden_fp8 = fp8_linear.quantised_input(hidden, recipe)
  y = products.fprop(hidden_fp8, down, dtype)
  return y, (gated, passed), (hidden, hidden_fp8)


def _hidden(gated, passed, share):
  """silu(gate) * up * gate weight."""
  return jax.nn.silu(gated) * passed * share[..., None]


def waiting(inputs, recipe: fp8_recipe.Recipe):
  """SwiGLU's inputs as they wait for the backward pass."""
  if recipe.cache_swiglu_inputs == "compute":
    return inputs
  quantise = fp8_linear.quantise
  return tuple(
    quantise(a, fp8.ROW_TILE, recipe, recipe.activation_format) for a in inputs
  )


def _wide(x):
  if isinstance(x, fp8.Quantised):
    return x.dequantise(jnp.float32)
  return x.astype(jnp.float32)


class Gradients(NamedTuple):
  """Of one batch of rows.

  Attributes:
    rows: float32 [..., R, D].
    share: float32 [..., R].
    weights: float32, of gate, up and down.
    of_inputs: of SwiGLU's inputs, each as it is and quantised.
  """

  rows: Any
  share: Any
  weights: tuple
  of_inputs: tuple


def backward(
  rows: fp8.Quantised,
  share,
  inputs,
  dy: tuple[fp8.Quantised, fp8.Quantised],
  weights,
  products: fp8_grouped.Products,
  recipe: fp8_recipe.Recipe,
  dtype,
) -> Gradients:
  """Gradients of `forward`.

  Args:
    rows: [..., R, D], quantised by tiles along rows.
    share: float32 [..., R].
    inputs: SwiGLU's, as they waited.
    dy: [..., R, D], the gradient of y, quantised for (Dgrad, Wgrad).
    weights: quantised.
    products: of these rows.
    recipe: of the model.
    dtype: of tokens.
  """
  gate, up, down = weights
  dhidden = products.dgrad(dy[0], down, dtype).astype(jnp.float32)
  gated, passed = (_wide(a) for a in inputs)
  sigmoid = jax.nn.sigmoid(gated)
  silu = gated * sigmoid
  dshare = (dhidden * silu * passed).sum(-1)
  share = share[..., None]
  dhidden = dhidden * share
  slope = sigmoid + silu * (1.0 - sigmoid)
  # Each is quantised twice; without the barrier a CPU would compute all of the
  # above once more for every reader.
  hidden, dgated, dpassed = lax.optimization_barrier(
    tuple(
      a.astype(dtype)
      for a in (
        silu * passed * share, dhidden * passed * slope, dhidden * silu
      )
    )
  )  # fmt: skip
  hidden = fp8_linear.retiled(hidden, recipe)
  dgated_fp8, dpassed_fp8 = (
    fp8_linear.quantised_gradient(a, recipe) for a in (dgated, dpassed)
  )
  drows = products.dgrad(dgated_fp8, gate, jnp.float32)
  drows += products.dgrad(dpassed_fp8, up, jnp.float32)
  dgate, dup = (
    products.wgrad(
      rows, fp8_linear.quantised_gradient(a, recipe, along_rows=True)
    )
    for a in (dgated, dpassed)
  )
  return Gradients(
    rows=drows,
    share=dshare,
    weights=(dgate, dup, products.wgrad(hidden, dy[1])),
    of_inputs=((dgated, dgated_fp8), (dpassed, dpassed_fp8)),
  )
