"""SwiGLU and the product after it, between which nothing is kept.

DeepSeek-V3 section 3.3.3 (2): what waits for the gradient are SwiGLU's inputs,
in FP8, and its output is computed again from them.

Legend (parallel/axes.py): D in, F out.
"""

import functools

import jax
import jax.numpy as jnp

from dsx.ops import fp8_linear
from dsx.ops import fp8_recipe

# For `jax.checkpoint`'s policies.
_SAVED_AS = "swiglu_input"


def matmul(
  gate,
  up,
  w,
  linear: fp8_recipe.Linear,
  probe=None,
  spread: fp8_linear.Spread = fp8_linear.WHOLE,
):
  """(silu(gate) * up) @ w in FP8, which keeps gate and up in FP8.

  Args:
    gate: [..., D], in the compute dtype.
    up: likewise.
    w: [D, F], as in `fp8_linear.matmul`.
    linear: of the layer that `w` is of.
    probe: likewise; its row of activations is about silu(gate) * up.
    spread: likewise.

  Returns:
    [..., F] in gate's dtype.
  """
  if not spread.over:
    fp8_linear.check(gate, w)
  width = gate.shape[-1]
  gate_rows, up_rows = gate.reshape(-1, width), up.reshape(-1, width)
  gate_rows, up_rows, w, probe = fp8_linear.aligned(
    gate_rows, up_rows, w, probe
  )
  y = _matmul(gate_rows, up_rows, w, probe, linear, spread)
  return y.reshape(*gate.shape[:-1], y.shape[-1])


def _swiglu(gate, up):
  """silu(gate) * up, float32."""
  gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
  return jax.nn.silu(gate) * up


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _matmul(gate, up, w, probe, linear, spread):
  return _forward(gate, up, w, probe, linear, spread)[0]


def _forward(gate, up, w, probe, linear, spread):
  hidden = _swiglu(gate, up).astype(gate.dtype)
  y, (_, *rest) = fp8_linear.forward(hidden, w, probe, linear, spread)
  kept = [fp8_linear.quantised_input(x, linear.recipe) for x in (gate, up)]
  return y, (fp8_linear.named(kept, _SAVED_AS), *rest)


def _backward(linear, spread, saved, dy):
  kept, *rest = saved
  inputs = (x.dequantise(jnp.float32) for x in kept)
  hidden, pull = jax.vjp(_swiglu, *inputs)
  dhidden, dw, dprobe = fp8_linear.gradients(
    hidden, *rest, dy, linear, spread, jnp.float32
  )
  dgate, dup = (d.astype(dy.dtype) for d in pull(dhidden))
  return dgate, dup, dw, dprobe


_matmul.defvjp(_forward, _backward)
