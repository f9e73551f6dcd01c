"""Multi-head latent attention.

DeepSeek-V3 section 2.1.1. Keys and values are compressed into one latent of
`kv_lora_rank` (eq. 1) plus one rotary key shared by all heads (eq. 3), which
is all that inference has to cache; queries may be compressed too (eq. 6).
RMSNorm follows each latent (section 4.2).

Legend (parallel/axes.py): B batch, L length, D model, H heads, K qk head dim
(`qk_nope_head_dim` + `qk_rope_head_dim`), U value head dim, C latent rank;
R rotary width, W = C + R width of what is cached.
"""

import chex
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dsx.models import cache
from dsx.models import config as config_lib
from dsx.models import layers
from dsx.ops import attention
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import fp8_linear
from dsx.ops import latent_attention
from dsx.ops import linear
from dsx.ops import rope
from dsx.parallel import axes
from dsx.parallel import context
from dsx.parallel import heads

# DeepSeek's code has this in the norms of both latents, whatever
# `rms_norm_eps` says; checkpoints with another `rms_norm_eps` depend on it.
LATENT_EPS = 1e-6
# The collection of what `absorb` makes of `kv_b_proj`, once for all tokens.
ABSORBED = "absorbed"


class MLA(nn.Module):
  """Causal multi-head latent attention.

  Over whole sequences (`__call__`), over whole sequences that will go on
  (`prefill`), and of a few tokens over what is remembered (`decode`).
  """

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def setup(self):
    """Declares the projections of eq. 1 to 11."""
    c = self.config
    query_width = c.num_attention_heads * c.qk_head_dim
    if c.q_lora_rank is None:
      self.q_proj = self._dense(query_width, axes.EMBED, axes.HEADS)
    else:
      self.q_a_proj = self._dense(c.q_lora_rank, axes.EMBED, axes.LATENT)
      self.q_a_layernorm = layers.RMSNorm(LATENT_EPS, self.dtypes)
      self.q_b_proj = self._dense(query_width, axes.LATENT_IN, axes.HEADS)
    self.kv_a_proj_with_mqa = self._dense(
      c.kv_lora_rank + c.qk_rope_head_dim, axes.EMBED, axes.LATENT
    )
    self.kv_a_layernorm = layers.RMSNorm(LATENT_EPS, self.dtypes)
    self.kv_b_proj = self._dense(
      c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim),
      axes.LATENT_IN,
      axes.HEADS,
    )
    self.o_proj = self._dense(c.hidden_size, axes.HEADS, axes.EMBED)

  def _dense(self, features, *names):
    stddev = self.config.initializer_range
    return layers.Dense(features, names, stddev, self.dtypes)

  @property
  def _scale(self) -> float:
    c = self.config
    return rope.softmax_scale(c.qk_head_dim, c.rope_scaling)

  def __call__(self, x, rotation, segment_ids=None):
    """Attends.

    Args:
      x: [B, L, D], normalised hidden states; zigzag where the mesh divides
        sequences (`parallel/context.py`).
      rotation: (cos, sin) of `ops.rope.cos_sin`, each [B, L, R/2], likewise.
      segment_ids: optional int32 [B, L], always in natural order; tokens see
        their own segment alone.

    Returns:
      [B, L, D].
    """
    return self.prefill(x, rotation, segment_ids)[0]

  def prefill(self, x, rotation, segment_ids=None):
    """As `__call__`; returns ([B, L, D], the entries to remember [B, L, W])."""
    chex.assert_rank(x, 3)
    query = jnp.concatenate(self._query(x, rotation), axis=-1)
    latent, position = self._latent(x, rotation)
    entries = jnp.concatenate([latent, position[:, :, 0, :]], axis=-1)
    # In FP8 what is kept is `o_proj`'s own, FP8 or E5M6.
    saved_as = "attention_output" if self.o_proj.fp8 is None else None
    if context.size() > 1 and not self.is_initializing():
      out = self._attend_divided(query, entries, segment_ids)
      out = out if saved_as is None else checkpoint_name(out, saved_as)
    else:
      out = heads.attend(
        *self._rounded(query, *self._expand(latent, position)),
        scale=self._scale,
        segment_ids=segment_ids,
        # Initialisation may be of a sequence too short for a kernel.
        impl="auto" if self.is_initializing() else self.execution.attention,
        saved_as=saved_as,
      )  # [B, L, H, U]
    return self.o_proj(out.reshape(*out.shape[:2], -1)), entries

  def _rounded(self, *arrays):
    """Queries, keys and values in FP8, where a recipe dares to."""
    core = layers.name(self, "attention_core")
    return tuple(layers.rounded(x, core, self.dtypes) for x in arrays)

  def _attend_divided(self, query, entries, segment_ids):
    """Attends from queries [B, L, H, K] to entries [B, L, W], both zigzag."""
    compute, names = self.dtypes.compute, self.kv_b_proj.names

    def core(query, entries, kernel, **places):
      latent, position = jnp.split(entries, [self.config.kv_lora_rank], axis=-1)
      if fp8 is None:
        expanded = linear.matmul(latent, kernel)
      else:
        expanded = fp8_linear.matmul(latent, kernel, fp8)
      key, value = self._keys_and_values(
        self._by_head(expanded), position[:, :, None, :]
      )
      return attention.attention(
        *self._rounded(query, key, value),
        scale=self._scale,
        impl=self.execution.attention,
        **places,
      )

    fp8 = self.kv_b_proj.fp8
    kernel = self.kv_b_proj.variables["params"]["kernel"]
    kernel = layers.dequantised(kernel, compute)
    return context.attend(core, query, entries, kernel, names, segment_ids)

  def decode(self, x, rotation, memory: cache.LayerMemory):
    """Attends to what is remembered, without expanding it.

    The up-projections of eq. 2 and 5 are linear, so that they may be applied
    to each query and to each head's output instead of to every cached latent.

    Args:
      x: [B, L, D], normalised hidden states of the tokens at hand.
      rotation: (cos, sin) of their positions.
      memory: of this layer.

    Returns:
      ([B, L, D], the memory with these tokens in it).
    """
    chex.assert_rank(x, 3)
    content, position = self._query(x, rotation)
    latent, shared = self._latent(x, rotation)
    memory = memory.appended(
      jnp.concatenate([latent, shared[:, :, 0, :]], axis=-1)
    )
    key_up, value_up = self._absorbed()
    absorbed = jnp.einsum("blhn,hnc->blhc", content, key_up)
    mixed = latent_attention.attend(
      jnp.concatenate([absorbed, position], axis=-1),
      memory.parts(),
      scale=self._scale,
    )
    mixed = mixed[..., : self.config.kv_lora_rank].astype(x.dtype)
    out = jnp.einsum("blhc,hcu->blhu", mixed, value_up)
    out = _constrain_heads(out)
    return self.o_proj(out.reshape(*out.shape[:2], -1)), memory

  def _query(self, x, rotation):
    """Queries (eq. 6 to 9): content [B, L, H, nope], position [B, L, H, R]."""
    c = self.config
    if c.q_lora_rank is None:
      q = self.q_proj(x)
    else:
      latent = checkpoint_name(self.q_a_proj(x), "latent")
      q = self.q_b_proj(self.q_a_layernorm(latent))
    q = q.reshape(*x.shape[:2], c.num_attention_heads, c.qk_head_dim)
    q = _constrain_heads(q)
    content, position = jnp.split(q, [c.qk_nope_head_dim], axis=-1)
    return content, rope.rotate(position, *rotation)

  def _latent(self, x, rotation):
    """What is cached: latent [B, L, C] (eq. 1), rotary key [B, L, 1, R]."""
    compressed = checkpoint_name(self.kv_a_proj_with_mqa(x), "latent")
    latent, position = jnp.split(
      compressed, [self.config.kv_lora_rank], axis=-1
    )
    latent = self.kv_a_layernorm(latent)
    return latent, rope.rotate(position[:, :, None, :], *rotation)

  def _expand(self, latent, position):
    """Keys [B, L, H, K] and values [B, L, H, U] (eq. 2 to 5)."""
    expanded = _constrain_heads(self._by_head(self.kv_b_proj(latent)))
    return self._keys_and_values(expanded, position)

  def _by_head(self, expanded):
    """[B, L, H * (nope + U)] as [B, L, H, nope + U], for any share of H."""
    width = self.config.qk_nope_head_dim + self.config.v_head_dim
    return expanded.reshape(*expanded.shape[:2], -1, width)

  def _keys_and_values(self, expanded, position):
    """Of `_by_head`'s, and rotary keys [B, L, 1, R]."""
    c = self.config
    content, value = jnp.split(expanded, [c.qk_nope_head_dim], axis=-1)
    shared = (*content.shape[:3], c.qk_rope_head_dim)
    position = jnp.broadcast_to(position, shared)
    return jnp.concatenate([content, position], axis=-1), value

  def _absorbed(self):
    """`kv_b_proj` as `absorb` lays it out; from `absorbed` if it is there."""
    if self.has_variable(ABSORBED, "key_up"):
      get = self.get_variable
      return get(ABSORBED, "key_up"), get(ABSORBED, "value_up")
    kernel = self.kv_b_proj.variables["params"]["kernel"]
    return absorb(kernel, self.config, self.dtypes.compute)


def absorb(kernel, config: config_lib.DeepSeekConfig, dtype):
  """The two up-projections of `kv_b_proj`, each laid out for decoding.

  Args:
    kernel: [C, H * (nope + U)], an array or FP8 with scales.
    config: the model.
    dtype: to compute in.

  Returns:
    (key_up [H, nope, C], value_up [H, C, U]). Reading them anew for every
    token costs as much as the products, so whoever decodes puts them into the
    collection `absorbed`.
  """
  c = config
  kernel = layers.dequantised(kernel, dtype)
  kernel = kernel.reshape(c.kv_lora_rank, c.num_attention_heads, -1)
  key_up, value_up = jnp.split(kernel, [c.qk_nope_head_dim], axis=-1)
  return key_up.transpose(1, 2, 0), value_up.transpose(1, 0, 2)


def _constrain_heads(x):
  names = (axes.BATCH, axes.LENGTH, axes.ACT_HEADS, None)
  return nn.with_logical_constraint(x, names)
