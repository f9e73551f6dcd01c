"""The transformer block and the stack: dense layers first, then experts.

DeepSeek-V3 section 2.1 and figure 2: pre-norm attention and feed-forward
around one residual stream. Layers of a kind share one scanned body, so that
61 layers compile like two; their parameters are stacked on a leading axis.

Legend (parallel/axes.py): B batch, L length, D model, E experts;
W width of what is cached.
"""

from typing import Any

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from dsx.models import cache
from dsx.models import config as config_lib
from dsx.models import dense_config
from dsx.models import layers
from dsx.models import mha
from dsx.models import mla
from dsx.models import moe
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import fp8_probe
from dsx.parallel import axes
from dsx.parallel import halves

# What `remat='paper'` keeps (section 3.2.3): latents rather than the MLA
# up-projections, SwiGLU's inputs rather than its output, no RMSNorm output.
SAVED = (
  "latent",
  "attention_output",
  "residual",
  "swiglu_input",
  "dispatched",
)


class Block(nn.Module):
  """One layer: attention, then a dense or an expert feed-forward."""

  config: dense_config.Config
  dense: bool
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def setup(self):
    """Declares both halves, each with its norm."""
    c: Any = self.config
    self.input_layernorm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)
    is_dense_model = isinstance(c, dense_config.DenseConfig)
    attention: Any = mha.MHA if is_dense_model else mla.MLA
    self.self_attn = attention(c, self.dtypes, self.execution)
    self.post_attention_layernorm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)
    if self.dense:
      width, stddev = c.intermediate_size, c.initializer_range
      self.mlp = layers.SwiGLU(width, stddev, self.dtypes)
    else:
      self.mlp = moe.MoE(c, self.dtypes, self.execution)

  def __call__(
    self,
    x,
    rotation,
    segment_ids=None,
    mask=None,
    valid=None,
    experts=None,
  ):
    """Maps x [B, L, D] to ([B, L, D], aux of `moe.MoE`, {} if dense)."""
    arrays = (x, rotation, segment_ids, mask, valid, experts)
    together = self.execution.overlap == "none" or self.is_initializing()
    if self.dense or together:
      return self._whole(*arrays)
    # Nothing of one half depends on the other: which runs while the other's
    # tokens travel is for the compiler's scheduler to choose.
    y, aux = zip(
      *(self._whole(*half) for half in halves.split(arrays)), strict=True
    )
    return halves.join(y), {
      "load": aux[0]["load"] + aux[1]["load"],
      "dropped": aux[0]["dropped"] + aux[1]["dropped"],
      "balance_loss": halves.join([a["balance_loss"] for a in aux]),
    }

  def _whole(self, x, rotation, segment_ids, mask, valid, experts):
    attended = self.self_attn(self.input_layernorm(x), rotation, segment_ids)
    return self._feed_forward(x + attended, mask, valid, experts)

  def prefill(self, x, rotation, valid):
    """Maps x [B, L, D] to ([B, L, D], entries to remember [B, L, W])."""
    attended, entries = self.self_attn.prefill(
      self.input_layernorm(x), rotation
    )
    return self._feed_forward(x + attended, valid=valid)[0], entries

  def decode(self, x, rotation, memory: cache.LayerMemory, valid):
    """Maps x [B, L, D] to ([B, L, D], the memory with its tokens)."""
    attended, memory = self.self_attn.decode(
      self.input_layernorm(x), rotation, memory
    )
    return self._feed_forward(x + attended, valid=valid)[0], memory

  def _feed_forward(self, x, mask=None, valid=None, experts=None):
    x = checkpoint_name(x, "residual")
    normed = self.post_attention_layernorm(x)
    if self.dense:
      y, aux = self.mlp(normed), {}
    else:
      y, aux = self.mlp(normed, mask, valid, experts)
    names = (axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
    return nn.with_logical_constraint(x + y, names), aux


def rematerialised(execution: config_lib.Execution):
  """`Block` under the rematerialisation policy of `execution`."""
  if execution.remat == "none":
    return Block
  policies = jax.checkpoint_policies
  policy = (
    policies.nothing_saveable
    if execution.remat == "full"
    else policies.save_only_these_names(*SAVED)
  )
  return nn.remat(Block, policy=policy, prevent_cse=execution.unroll_layers)


class Stack(nn.Module):
  """`length` blocks of one kind, scanned; parameters are [length, ...]."""

  config: dense_config.Config
  dense: bool
  length: int
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  @nn.compact
  def __call__(
    self,
    x,
    rotation,
    segment_ids=None,
    mask=None,
    valid=None,
    experts=None,
  ):
    """Maps x [B, L, D] to ([B, L, D], aux with a leading layer axis).

    `experts` are of every layer, [length, B, L, K].
    """
    scanned = nn.scan(
      rematerialised(self.execution),
      variable_axes={
        "params": 0,
        "router_bias": 0,
        fp8_probe.COLLECTION: 0,
        moe.CHOSEN: 0,
      },
      split_rngs={"params": True},
      # The last are the experts to replay, each layer's own.
      in_axes=(*(nn.broadcast,) * 4, 0),  # pyright: ignore
      length=self.length,
      unroll=self.length if self.execution.unroll_layers else 1,
      metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )
    block = scanned(self.config, self.dense, self.dtypes, self.execution)
    nn.share_scope(self, block)
    return block(x, rotation, segment_ids, mask, valid, experts)
