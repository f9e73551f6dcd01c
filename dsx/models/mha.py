"""Multi-head attention with grouped queries, as dense models have it.

Several query heads share one head of keys and values (Ainslie et al. 2023).
Qwen2 adds biases to queries, keys and values, Qwen3 normalises queries and
keys before they turn; Llama does neither. RoPE turns the first half of a head
with the second (`rope.rotate_halves`), not neighbours as DeepSeek's does.

Legend (parallel/axes.py): B batch, L length, D model, H heads, K head width;
J heads of keys and values.
"""

import chex
from flax import linen as nn
import jax.numpy as jnp

from dsx.models import config as config_lib
from dsx.models import dense_config
from dsx.models import layers
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import rope
from dsx.parallel import axes
from dsx.parallel import context
from dsx.parallel import heads


class MHA(nn.Module):
  """Causal attention over whole sequences."""

  config: dense_config.DenseConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def setup(self):
    """Declares the projections under the names of the published files."""
    c = self.config
    self.q_proj = self._dense(c.num_attention_heads * c.head_dim)
    self.k_proj = self._dense(c.num_key_value_heads * c.head_dim)
    self.v_proj = self._dense(c.num_key_value_heads * c.head_dim)
    if c.qk_norm:
      self.q_norm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)
      self.k_norm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)
    self.o_proj = layers.Dense(
      c.hidden_size,
      (axes.HEADS, axes.EMBED),
      c.initializer_range,
      self.dtypes,
    )

  def _dense(self, features: int) -> layers.Dense:
    c = self.config
    return layers.Dense(
      features,
      (axes.EMBED, axes.HEADS),
      c.initializer_range,
      self.dtypes,
      use_bias=c.attention_bias,
    )

  def __call__(self, x, rotation, segment_ids=None):
    """Attends.

    Args:
      x: [B, L, D], normalised hidden states.
      rotation: (cos, sin) of every position, each [B, L, K/2].
      segment_ids: optional int32 [B, L]; tokens see their own segment alone.

    Returns:
      [B, L, D].

    Raises:
      ValueError: the mesh divides sequences.
    """
    chex.assert_rank(x, 3)
    if context.size() > 1 and not self.is_initializing():
      raise ValueError(
        f"mesh.MeshShape.context={context.size()}: expected 1 for a dense "
        "model, whose keys and values have no latent to gather; lower it"
      )
    query, key = (self._by_head(f(x)) for f in (self.q_proj, self.k_proj))
    if self.config.qk_norm:
      query, key = self.q_norm(query), self.k_norm(key)
    query = rope.rotate_halves(query, *rotation)
    key = rope.rotate_halves(key, *rotation)
    value = self._by_head(self.v_proj(x))
    core = layers.name(self, "attention_core")
    out = heads.attend(
      *(
        layers.rounded(_constrained(a), core, self.dtypes)
        for a in (query, self._shared(key), self._shared(value))
      ),
      scale=self.config.head_dim**-0.5,
      segment_ids=segment_ids,
      impl="auto" if self.is_initializing() else self.execution.attention,
      saved_as="attention_output" if self.o_proj.fp8 is None else None,
    )  # [B, L, H, K]
    return self.o_proj(out.reshape(*out.shape[:2], -1))

  def _by_head(self, x):
    """[B, L, J * K] as [B, L, J, K]."""
    return x.reshape(*x.shape[:2], -1, self.config.head_dim)

  def _shared(self, x):
    """Keys or values [B, L, J, K], one for each query head: [B, L, H, K]."""
    c = self.config
    return jnp.repeat(x, c.num_attention_heads // c.num_key_value_heads, axis=2)


def _constrained(x):
  names = (axes.BATCH, axes.LENGTH, axes.ACT_HEADS, None)
  return nn.with_logical_constraint(x, names)
