"""The three layers that everything is made of: RMSNorm, Dense and SwiGLU.

No layer of DeepSeek's has a bias; Qwen2's attention has. Weights start normal
with `initializer_range` (section 4.2: 0.006 for all learnable parameters), norm
scales at one.

Legend (parallel/axes.py): B batch, L length, D model, F feed-forward.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dsx.ops import block_scaled
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import fp8_linear
from dsx.ops import fp8_probe
from dsx.ops import fp8_recipe
from dsx.ops import fp8_swiglu
from dsx.ops import linear
from dsx.parallel import axes
from dsx.parallel import fp8_layer


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, in float32.

  Attributes:
    eps: added to the mean square.
  """

  eps: float
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()

  @nn.compact
  def __call__(self, x):
    """Normalises x [..., D]; returns the compute dtype."""
    scale = self.param(
      "scale",
      nn.with_logical_partitioning(nn.initializers.ones, (axes.NORM,)),
      (x.shape[-1],),
      jnp.dtype(self.dtypes.param),
    )
    wide = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * lax.rsqrt(variance + self.eps)
    scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
    normed = (normed * scale).astype(self.dtypes.compute)
    return rounded(normed, name(self), self.dtypes)


class Dense(nn.Module):
  """y = x W, in FP8 where the recipe says so, and perhaps + b.

  Attributes:
    features: width of y.
    names: logical axes of W, (input, output).
    stddev: standard deviation of the initial weights.
    use_bias: whether there is a bias b, zero at first.
  """

  features: int
  names: tuple[str, str]
  stddev: float
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  use_bias: bool = False

  @property
  def fp8(self) -> fp8_recipe.Linear | None:
    """What is FP8 of this layer."""
    recipe = self.dtypes.fp8
    return None if recipe is None else recipe.linear(name(self))

  @nn.compact
  def __call__(self, x, up=None):
    """Multiplies in the compute dtype, or in FP8.

    Args:
      x: [..., input].
      up: likewise; then the input is silu(x) * up. Of both only FP8 is kept.
    """
    y = self._multiplied(x, up)
    if not self.use_bias:
      return y
    bias = self.param(
      "bias",
      nn.with_logical_partitioning(nn.initializers.zeros, (self.names[1],)),
      (self.features,),
      jnp.dtype(self.dtypes.param),
    )
    bias = jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - 1))
    return y + bias

  def _multiplied(self, x, up) -> Any:
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(
        nn.initializers.normal(self.stddev), self.names
      ),
      (x.shape[-1], self.features),
      jnp.dtype(self.dtypes.param),
    )
    compute = self.dtypes.compute
    x, fp8 = x.astype(compute), self.fp8
    if fp8 is None:
      return linear.matmul(x, dequantised(kernel, compute))
    # Master weights are rounded once, to FP8.
    probe = self.get_variable(fp8_probe.COLLECTION, fp8_probe.NAME)
    inputs = (x,) if up is None else (x, up.astype(compute))
    matmul = fp8_linear.matmul if up is None else fp8_swiglu.matmul

    def core(*arrays):
      *arrays, probe, spread = arrays
      return matmul(*arrays, fp8, probe, spread)

    return fp8_layer.run(core, inputs, kernel, probe, self.names)


class SwiGLU(nn.Module):
  """down(silu(gate(x)) * up(x)), the dense and the shared feed-forward.

  Attributes:
    features: F, the hidden width.
    stddev: standard deviation of the initial weights.
  """

  features: int
  stddev: float
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()

  @nn.compact
  def __call__(self, x):
    """Maps x [B, L, D] to [B, L, D]."""

    def dense(features, names, name):
      return Dense(features, names, self.stddev, self.dtypes, name=name)

    gate = dense(self.features, (axes.EMBED, axes.MLP), "gate_proj")(x)
    up = dense(self.features, (axes.EMBED, axes.MLP), "up_proj")(x)
    down = dense(x.shape[-1], (axes.MLP, axes.EMBED), "down_proj")
    names = (axes.BATCH, axes.LENGTH, axes.ACT_MLP)
    fp8 = down.fp8
    if fp8 is not None and fp8.recipe.cache_swiglu_inputs == "float8":
      gate, up = (nn.with_logical_constraint(x, names) for x in (gate, up))
      return down(gate, up)
    hidden = swiglu(gate, up)
    return down(nn.with_logical_constraint(hidden, names))


def name(module: nn.Module, *more: str) -> str:
  """What a recipe calls a module, or what is in it."""
  return "/".join((*module.path, *more))


def rounded(x, named: str, dtypes: dtypes_lib.Dtypes):
  """`x` [..., C], rounded to FP8 where a recipe dares to (`allow_sensitive`).

  Args:
    x: what a part of the model makes or takes.
    named: the part, as recipes call it.
    dtypes: of the model.
  """
  recipe = dtypes.fp8
  if recipe is None or recipe.precision(named) == "compute":
    return x
  return fp8_linear.rounded(x, recipe)


def rounded_weight(w, named: str, dtypes: dtypes_lib.Dtypes):
  """A matrix [D, F], likewise."""
  recipe = dtypes.fp8
  if recipe is None or recipe.precision(named) == "compute":
    return w
  return fp8_linear.rounded_weight(w, recipe)


def dequantised(kernel, dtype):
  """A matrix in `dtype`, whether it is an array or FP8 with block scales."""
  if isinstance(kernel, block_scaled.BlockScaled):
    return kernel.dequantise(dtype)
  return kernel.astype(dtype)


def swiglu(gate, up):
  """silu(gate) * up in the inputs' dtype; the inputs are named for remat."""
  gate = checkpoint_name(gate, "swiglu_input")
  up = checkpoint_name(up, "swiglu_input")
  return jax.nn.silu(gate) * up
