"""The three layers that everything is made of: RMSNorm, Dense and SwiGLU.

No layer has a bias. Weights start normal with `initializer_range` (section
4.2: 0.006 for all learnable parameters), norm scales at one.

Legend (parallel/axes.py): B batch, L length, D model, F feed-forward.
"""

from flax import linen as nn
import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dsx.ops import block_scaled
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import linear
from dsx.parallel import axes


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
    return (normed * scale).astype(self.dtypes.compute)


class Dense(nn.Module):
  """y = x W without a bias.

  Attributes:
    features: width of y.
    names: logical axes of W, (input, output).
    stddev: standard deviation of the initial weights.
  """

  features: int
  names: tuple[str, str]
  stddev: float
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()

  @nn.compact
  def __call__(self, x):
    """Multiplies x [..., input] in the compute dtype."""
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(
        nn.initializers.normal(self.stddev), self.names
      ),
      (x.shape[-1], self.features),
      jnp.dtype(self.dtypes.param),
    )
    compute = self.dtypes.compute
    return linear.matmul(x.astype(compute), dequantised(kernel, compute))


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
    hidden = swiglu(gate, up)
    names = (axes.BATCH, axes.LENGTH, axes.ACT_MLP)
    hidden = nn.with_logical_constraint(hidden, names)
    return dense(x.shape[-1], (axes.MLP, axes.EMBED), "down_proj")(hidden)


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
