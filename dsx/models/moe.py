"""DeepSeekMoE: shared and routed experts, balanced by a bias.

DeepSeek-V3 section 2.1.2, eq. 12 to 20. Nothing is dropped.

Legend (parallel/axes.py): B batch, L length, D model, T = B*L tokens,
E experts, K experts per token, F feed-forward of one expert.
"""

import chex
from flax import linen as nn
from jax import lax
import jax.numpy as jnp

from dsx.models import config as config_lib
from dsx.models import layers
from dsx.ops import block_scaled
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import fp8_probe
from dsx.ops import fp8_recipe
from dsx.ops import routing
from dsx.parallel import axes
from dsx.parallel import expert
from dsx.parallel import replicas as replicas_lib

# The collection of the experts that each layer chose, int32 [B, L, K].
CHOSEN = "chosen"


class Router(nn.Module):
  """Affinities of tokens and experts, and the bias that steers selection.

  The bias lives in its own collection `router_bias`: the optimizer never sees
  it, no gradient, decay or clipping touches it, and it stays float32 because
  steps of gamma = 0.001 vanish in bfloat16 at 0.5.
  """

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()

  @nn.compact
  def __call__(self, x):
    """Returns affinities float32 [B, L, E] and the bias [E] (or None)."""
    c = self.config
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(
        nn.initializers.normal(c.initializer_range), (axes.EMBED, axes.ROUTER)
      ),
      (x.shape[-1], c.n_routed_experts),
      jnp.dtype(self.dtypes.param),
    )
    name = layers.name(self)
    x = layers.rounded(x, name, self.dtypes)
    kernel = layers.rounded_weight(kernel, name, self.dtypes)
    logits = lax.dot_general(
      x.astype(self.dtypes.router),
      kernel.astype(self.dtypes.router),
      (((2,), (0,)), ((), ())),
      precision=lax.Precision.HIGHEST,
    )
    scores = routing.affinities(logits, c.scoring_func)
    if not c.has_router_bias:
      return scores, None
    bias = self.variable(
      "router_bias",
      "e_score_correction_bias",
      lambda: jnp.zeros((c.n_routed_experts,), jnp.float32),
    )
    return scores, bias.value


class Experts(nn.Module):
  """The routed experts: E feed-forwards, each over its own rows.

  With a variable `placement` (`placed.py`) there are more rows of parameters
  than experts: copies, and the tokens of an expert are dealt out to its own.
  """

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def _kernel(self, name, shape, names):
    init = nn.initializers.normal(self.config.initializer_range)
    kernel = self.param(
      name,
      nn.with_logical_partitioning(init, names),
      shape,
      jnp.dtype(self.dtypes.param),
    )
    if isinstance(kernel, block_scaled.BlockScaled):
      return kernel  # `expert_mlp` widens what it needs of it
    if self._fp8 is not None:
      return kernel  # master weights are rounded once, to FP8
    return kernel.astype(self.dtypes.compute)

  @nn.compact
  def __call__(self, x, index, weight):
    """Takes tokens through their experts (eq. 12's second sum).

    Args:
      x: [B, L, D].
      index: int32 [B, L, K], experts of each token; negative for none.
      weight: float32 [B, L, K].

    Returns:
      ([B, L, D], copies dropped for want of room, float32 []).
    """
    c = self.config
    replicas = self.get_variable(replicas_lib.COLLECTION, replicas_lib.NAME)
    if replicas is not None:
      index = replicas_lib.choose(index, replicas)
      c = replicas_lib.routing_fields(c, replicas)
    n, d = c.n_routed_experts, x.shape[-1]
    f = self.config.moe_intermediate_size
    into = (axes.EXPERTS, axes.EXPERT_EMBED, axes.EXPERT_MLP)
    out = (axes.EXPERTS, axes.EXPERT_MLP, axes.EXPERT_EMBED)
    kernels = (
      self._kernel("gate_proj", (n, d, f), into),
      self._kernel("up_proj", (n, d, f), into),
      self._kernel("down_proj", (n, f, d), out),
    )
    return expert.run(
      x,
      index,
      weight,
      kernels,
      c,
      impl=self.execution.experts,
      dispatch=self.execution.dispatch,
      fp8=self._fp8,
      probe=self.get_variable(fp8_probe.COLLECTION, fp8_probe.NAME),
    )

  @property
  def _fp8(self) -> fp8_recipe.Recipe | None:
    recipe = self.dtypes.fp8
    if recipe is None or recipe.linear(layers.name(self)) is None:
      return None
    return recipe


def _latest(_, new):
  return new


class MoE(nn.Module):
  """Router, routed experts and the shared experts, fused into one SwiGLU."""

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  @nn.compact
  def __call__(self, x, mask=None, valid=None, experts=None):
    """Applies the layer.

    Args:
      x: [B, L, D], normalised hidden states.
      mask: optional bool [B, L] of the tokens that count for balance.
      valid: optional bool [B, L]; the rest is padding, which no routed expert
        sees: all alike, it would crowd into a few of them.
      experts: optional integers [B, L, K] to replay (`routing.route`).

    Returns:
      ([B, L, D], aux) with aux `load` float32 [E], tokens that chose each
      expert, `balance_loss` float32 [B], eq. 17 without alpha, and `dropped`
      float32 [], copies that found no room on their way.
    """
    chex.assert_rank(x, 3)
    c = self.config
    scores, bias = Router(c, self.dtypes, name="gate")(x)
    flat_mask = None if mask is None else mask.reshape(-1)
    if experts is not None:
      experts = experts.reshape(-1, experts.shape[-1])
    routed = routing.route(
      scores.reshape(-1, c.n_routed_experts),
      bias,
      c,
      mask=flat_mask,
      experts=experts,
    )
    index, weight = (
      a.reshape(*x.shape[:2], -1) for a in (routed.index, routed.weight)
    )
    if not self.is_initializing():
      # For whoever makes the collection mutable; else it costs nothing.
      self.sow(CHOSEN, "index", index, reduce_fn=_latest, init_fn=lambda: None)
    if valid is not None:
      index = jnp.where(valid[:, :, None], index, -1)
    run = Experts(c, self.dtypes, self.execution, name="experts")
    y, dropped = run(x, index, weight)
    if c.n_shared_experts:
      y = y + layers.SwiGLU(
        c.moe_intermediate_size * c.n_shared_experts,
        c.initializer_range,
        self.dtypes,
        name="shared_experts",
      )(x)
    balance = routing.balance_loss(scores, c.num_experts_per_tok, mask=mask)
    aux = {"load": routed.load, "balance_loss": balance, "dropped": dropped}
    return y, aux
