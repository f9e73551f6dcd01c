"""Multi-head latent attention.

DeepSeek-V3 section 2.1.1. Keys and values are compressed into one latent of
`kv_lora_rank` (eq. 1) plus one rotary key shared by all heads (eq. 3), which
is all that inference has to cache; queries may be compressed too (eq. 6).
RMSNorm follows each latent (section 4.2).

Legend (parallel/axes.py): B batch, L length, D model, H heads, K qk head dim
(`qk_nope_head_dim` + `qk_rope_head_dim`), U value head dim, C latent rank.
"""

import chex
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dsx.models import config as config_lib
from dsx.models import layers
from dsx.ops import attention
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import rope
from dsx.parallel import axes

# DeepSeek's code has this in the norms of both latents, whatever
# `rms_norm_eps` says; checkpoints with another `rms_norm_eps` depend on it.
LATENT_EPS = 1e-6


class MLA(nn.Module):
  """Causal multi-head latent attention over whole sequences."""

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def _dense(self, features, names, name):
    stddev = self.config.initializer_range
    return layers.Dense(features, names, stddev, self.dtypes, name=name)

  def _norm(self, name):
    return layers.RMSNorm(LATENT_EPS, self.dtypes, name=name)

  @nn.compact
  def __call__(self, x, rotation, segment_ids=None):
    """Attends.

    Args:
      x: [B, L, D], normalised hidden states.
      rotation: (cos, sin) of `ops.rope.cos_sin`, each [B, L, R/2].
      segment_ids: optional int32 [B, L]; tokens see their own segment alone.

    Returns:
      [B, L, D].
    """
    chex.assert_rank(x, 3)
    query = self._query(x, rotation)
    key, value = self._key_value(x, rotation)
    out = attention.attention(
      query,
      key,
      value,
      scale=rope.softmax_scale(
        self.config.qk_head_dim, self.config.rope_scaling
      ),
      segment_ids=segment_ids,
      impl=self.execution.attention,
    )  # [B, L, H, U]
    out = checkpoint_name(out, "attention_output")
    out = out.reshape(*out.shape[:2], -1)
    return self._dense(x.shape[-1], (axes.HEADS, axes.EMBED), "o_proj")(out)

  def _query(self, x, rotation):
    """Queries [B, L, H, K] (eq. 6 to 9)."""
    c = self.config
    width = c.num_attention_heads * c.qk_head_dim
    if c.q_lora_rank is None:
      q = self._dense(width, (axes.EMBED, axes.HEADS), "q_proj")(x)
    else:
      down = self._dense(c.q_lora_rank, (axes.EMBED, axes.LATENT), "q_a_proj")
      latent = checkpoint_name(down(x), "latent")
      latent = self._norm("q_a_layernorm")(latent)
      up = self._dense(width, (axes.LATENT_IN, axes.HEADS), "q_b_proj")
      q = up(latent)
    q = q.reshape(*x.shape[:2], c.num_attention_heads, c.qk_head_dim)
    q = _constrain_heads(q)
    content, position = jnp.split(q, [c.qk_nope_head_dim], axis=-1)
    return jnp.concatenate([content, rope.rotate(position, *rotation)], -1)

  def _key_value(self, x, rotation):
    """Keys [B, L, H, K] and values [B, L, H, U] (eq. 1 to 5)."""
    c = self.config
    down = self._dense(
      c.kv_lora_rank + c.qk_rope_head_dim,
      (axes.EMBED, axes.LATENT),
      "kv_a_proj_with_mqa",
    )
    compressed = checkpoint_name(down(x), "latent")
    latent, position = jnp.split(compressed, [c.kv_lora_rank], axis=-1)
    latent = self._norm("kv_a_layernorm")(latent)
    up = self._dense(
      c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim),
      (axes.LATENT_IN, axes.HEADS),
      "kv_b_proj",
    )
    kv = up(latent).reshape(*x.shape[:2], c.num_attention_heads, -1)
    kv = _constrain_heads(kv)
    content, value = jnp.split(kv, [c.qk_nope_head_dim], axis=-1)
    position = rope.rotate(position[:, :, None, :], *rotation)
    shared = (*content.shape[:3], c.qk_rope_head_dim)
    position = jnp.broadcast_to(position, shared)
    return jnp.concatenate([content, position], axis=-1), value


def _constrain_heads(x):
  names = (axes.BATCH, axes.LENGTH, axes.ACT_HEADS, None)
  return nn.with_logical_constraint(x, names)
