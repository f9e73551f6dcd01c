"""DeepSeek-V2-Lite, V2, V3, V3.1 and R1: one model, five configurations.

DeepSeek-V3 section 2. `DeepSeek.__call__` returns logits; training calls
`features`, which stops before the output head so that the logits of a large
vocabulary are never held whole (`training/losses.py`).

Where the mesh divides sequences, `features` works in another order of tokens
(`parallel/context.py`); what it takes and returns is in the natural one.

Legend (parallel/axes.py): B batch, L length, D model, V vocabulary,
E experts.
"""

from typing import Literal

import chex
from flax import linen as nn
from jax import lax
import jax.numpy as jnp

from dsx.models import config as config_lib
from dsx.models import dense_config
from dsx.models import layers
from dsx.models import mtp
from dsx.models import transformer
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import rope
from dsx.parallel import axes
from dsx.parallel import context

_HEAD = "lm_head"


class Embedding(nn.Module):
  """Rows of a [V, D] table."""

  config: dense_config.Config
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()

  @nn.compact
  def __call__(self, tokens):
    """Looks up tokens [B, L]; returns [B, L, D] in the compute dtype."""
    c = self.config
    table = self.param(
      "embedding",
      nn.with_logical_partitioning(
        nn.initializers.normal(c.initializer_range), (axes.VOCAB, axes.EMBED)
      ),
      (c.vocab_size, c.hidden_size),
      jnp.dtype(self.dtypes.param),
    )
    rows = table.astype(self.dtypes.compute)[tokens]
    rows = layers.rounded(rows, layers.name(self), self.dtypes)
    # Each device looks up its own columns of its neighbours' tokens, and then
    # rows change places: a micro-batch has fewer tokens than the table, which
    # would travel whole, as would its gradient.
    names = (axes.LOOKUP_BATCH, axes.LENGTH, axes.EMBED)
    rows = nn.with_logical_constraint(rows, names)
    names = (axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
    return nn.with_logical_constraint(rows, names)


class Head(nn.Module):
  """The output head [D, V], shared by the main model and every MTP module."""

  config: dense_config.Config
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()

  def setup(self):
    """Declares the kernel."""
    c = self.config
    self.kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(
        nn.initializers.normal(c.initializer_range), (axes.EMBED, axes.VOCAB)
      ),
      (c.hidden_size, c.vocab_size),
      jnp.dtype(self.dtypes.param),
    )

  def __call__(self, hidden):
    """Logits float32 [B, L, V] of hidden [B, L, D]."""
    logits = lax.dot_general(
      head_input(hidden, self.dtypes),
      head_kernel(self.kernel, self.dtypes),
      (((hidden.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    names = (axes.BATCH, axes.LENGTH, axes.ACT_VOCAB)
    return nn.with_logical_constraint(logits, names)


def head_input(hidden, dtypes: dtypes_lib.Dtypes):
  """Hidden states as the output head multiplies them."""
  return layers.rounded(hidden.astype(dtypes.compute), _HEAD, dtypes)


def head_kernel(kernel, dtypes: dtypes_lib.Dtypes):
  """The output head's kernel [D, V], likewise."""
  return layers.rounded_weight(kernel, _HEAD, dtypes).astype(dtypes.compute)


class DeepSeek(nn.Module):
  """The language model, main layers and MTP modules.

  Attributes:
    config: what the model is.
    dtypes: which numbers have which precision.
    execution: how it is run.
  """

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def setup(self):
    """Declares the parts in the order of figure 2 and figure 3."""
    c, parts = self.config, (self.config, self.dtypes)
    dense = c.first_k_dense_replace
    self.embed_tokens = Embedding(*parts)
    if dense:
      self.dense_layers = transformer.Stack(
        c, True, dense, self.dtypes, self.execution
      )
    if c.num_moe_layers:
      self.moe_layers = transformer.Stack(
        c, False, c.num_moe_layers, self.dtypes, self.execution
      )
    self.norm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)
    self.lm_head = Head(*parts)
    self.mtp = [
      mtp.MTP(c, self.dtypes, self.execution)
      for _ in range(c.num_nextn_predict_layers)
    ]

  def __call__(self, tokens, positions=None, segment_ids=None):
    """Next-token logits.

    Args:
      tokens: int32 [B, L].
      positions: int32 [B, L]; default 0 to L-1.
      segment_ids: int32 [B, L]; tokens attend within their segment alone.

    Returns:
      (logits float32 [B, L, V], aux). aux has the keys of `features`, and
      `mtp_logits`, a tuple of one [B, L, V] per MTP module: row i of module
      k predicts token i+k+1 (the last k rows have no input and mean nothing).
    """
    aux = self.features(tokens, positions, segment_ids)
    aux["mtp_logits"] = tuple(self.lm_head(h) for h in aux["mtp_hidden"])
    return self.lm_head(aux["hidden"]), aux

  def features(
    self,
    tokens,
    positions=None,
    segment_ids=None,
    *,
    valid=None,
    experts=None,
    mtp: Literal["trained", "detached", "none"] = "trained",
  ):
    """Everything below the output head.

    Args:
      tokens: int32 [B, L].
      positions: int32 [B, L]; default 0 to L-1.
      segment_ids: optional int32 [B, L].
      valid: optional bool [B, L]; the rest is padding, which no routed expert
        sees and which counts neither as load nor for balance.
      experts: optional integers [B, L, M, K], what each expert layer but
        those of MTP modules chose when another forward pass (a sampler's) read
        these tokens, to be replayed; a token with a negative one in a layer
        chooses for itself there.
      mtp: whether MTP modules take part; `detached` ones send no gradient to
        the main model, its embedding included.

    Returns:
      A dict of
        hidden: [B, L, D], after the final norm; input of the output head.
        mtp_hidden: tuple of [B, L, D], the same for each MTP module that
          takes part.
        load: float32 [M, E], tokens per expert of each expert layer, MTP
          modules last; M is 0 for a model without experts.
        balance_loss: float32 [B], eq. 17 without alpha, summed over layers.
        dropped: float32 [], copies that found no room, summed over layers.
    """
    chex.assert_rank(tokens, 2)
    c = self.config
    self._check_experts(tokens, experts)
    parts = 1 if self.is_initializing() else context.size()
    if positions is None:
      positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
      positions = jnp.broadcast_to(positions[None, :], tokens.shape)
    # From here to the end tokens are in the order of `parallel/context.py`.
    positions = context.spread(positions, parts)
    rotation = rope.cos_sin(
      positions, c.qk_rope_head_dim, c.rope_theta, c.rope_scaling
    )
    segments = segment_ids  # of which padding is none
    if valid is not None:
      segments = jnp.where(valid, 1 if segments is None else segments, -1)
      valid = context.spread(valid, parts)
    if experts is not None:
      experts = jnp.moveaxis(context.spread(experts, parts), 2, 0)
    x = self.embed_tokens(context.spread(tokens, parts))
    loads = jnp.zeros((0, c.n_routed_experts), jnp.float32)
    balance = jnp.zeros(tokens.shape[:1], jnp.float32)
    dropped = jnp.zeros((), jnp.float32)
    if c.first_k_dense_replace:
      x, _ = self.dense_layers(x, rotation, segment_ids, None)
    if c.num_moe_layers:
      x, aux = self.moe_layers(x, rotation, segment_ids, valid, valid, experts)
      loads, balance = aux["load"], aux["balance_loss"].sum(0)
      dropped = aux["dropped"].sum()
    hidden = self.norm(x)
    previous = hidden if c.mtp_hidden == "post_norm" else x
    if mtp == "detached":
      previous = lax.stop_gradient(previous)
    mtp_hidden = []
    modules = () if mtp == "none" else self.mtp
    for k, module in enumerate(modules, start=1):
      shifted, mask = (
        context.spread(x, parts) for x in _shift(tokens, k, segments)
      )
      if valid is not None:
        mask &= valid
      embedding = self.embed_tokens(shifted)
      if mtp == "detached":
        embedding = lax.stop_gradient(embedding)
      x, normed, aux = module(
        previous, embedding, rotation, segment_ids, mask, valid
      )
      previous = normed if c.mtp_hidden == "post_norm" else x
      mtp_hidden.append(normed)
      loads = jnp.concatenate([loads, aux["load"][None, :]])
      balance = balance + aux["balance_loss"]
      dropped = dropped + aux["dropped"]
    return {
      "hidden": context.natural(hidden, parts),
      "mtp_hidden": tuple(context.natural(h, parts) for h in mtp_hidden),
      "load": loads,
      "balance_loss": balance,
      "dropped": dropped,
    }

  def _check_experts(self, tokens, experts) -> None:
    c = self.config
    shape = (*tokens.shape, c.num_moe_layers, c.num_experts_per_tok)
    if experts is not None and experts.shape != shape:
      raise ValueError(
        f"experts of shape {tuple(experts.shape)}: expected {shape}, those of "
        "each token in each expert layer without MTP modules; record them with "
        "this model"
      )


def _shift(tokens, k: int, segment_ids):
  """Token i+k at position i, and whether there is one (bool [B, L]).

  The token must belong to the segment of position i.
  """
  mask = jnp.arange(tokens.shape[1]) < tokens.shape[1] - k
  mask = jnp.broadcast_to(mask[None, :], tokens.shape)
  if segment_ids is not None:
    mask &= jnp.roll(segment_ids, -k, axis=1) == segment_ids
  return jnp.where(mask, jnp.roll(tokens, -k, axis=1), 0), mask
