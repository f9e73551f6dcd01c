"""Qwen2, Qwen3 and Llama: one dense model, three configurations.

The students of DeepSeek-R1's distillation (report section 2.4). Everything is
named and stacked as in `deepseek.DeepSeek`, and `features` returns what that
model's does, so that the same losses, steps, checkpoints and conversions serve
both. With tied embeddings there is no `lm_head`.

Legend (parallel/axes.py): B batch, L length, D model, V vocabulary.
"""

import chex
from flax import linen as nn
import jax.numpy as jnp

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import dense_config
from dsx.models import head as head_lib
from dsx.models import layers
from dsx.models import transformer
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import rope
from dsx.parallel import sharding


class DenseModel(nn.Module):
  """A decoder with grouped-query attention and SwiGLU.

  Attributes:
    config: what the model is.
    dtypes: which numbers have which precision.
    execution: how it is run.
  """

  config: dense_config.DenseConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def setup(self):
    """Declares the parts under `deepseek.DeepSeek`'s names."""
    c = self.config
    self.embed_tokens = deepseek.Embedding(c, self.dtypes)
    self.dense_layers = transformer.Stack(
      c, True, c.num_hidden_layers, self.dtypes, self.execution
    )
    self.norm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)
    if not c.tie_word_embeddings:
      self.lm_head = deepseek.Head(c, self.dtypes)

  def __call__(self, tokens, positions=None, segment_ids=None):
    """Next-token logits.

    Args:
      tokens: int32 [B, L].
      positions: int32 [B, L]; default 0 to L-1.
      segment_ids: int32 [B, L]; tokens attend within their segment alone.

    Returns:
      (logits float32 [B, L, V], aux of `features`, with `mtp_logits`, ()).
    """
    aux = self.features(tokens, positions, segment_ids)
    aux["mtp_logits"] = ()
    if not self.config.tie_word_embeddings:
      return self.lm_head(aux["hidden"]), aux
    params = sharding.unbox(self.embed_tokens.variables["params"])
    kernel = head_lib.kernel({"embed_tokens": params}, self.dtypes)
    return head_lib.logits(aux["hidden"], kernel, self.dtypes), aux

  def features(
    self,
    tokens,
    positions=None,
    segment_ids=None,
    *,
    valid=None,
    experts=None,
    mtp: str = "none",
  ):
    """Everything below the output head.

    Args:
      tokens: int32 [B, L].
      positions: int32 [B, L]; default 0 to L-1.
      segment_ids: optional int32 [B, L].
      valid: no matter to a model without experts.
      experts: likewise; None.
      mtp: likewise.

    Returns:
      See `deepseek.DeepSeek.features`; without experts and MTP modules there
      is nothing in `mtp_hidden` and `load`, and zero in the others.

    Raises:
      ValueError: there are experts to replay.
    """
    del valid, mtp
    if experts is not None:
      raise ValueError(
        f"experts of shape {experts.shape}: expected None, because a dense "
        "model has none; leave them out"
      )
    chex.assert_rank(tokens, 2)
    if positions is None:
      positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
      positions = jnp.broadcast_to(positions[None, :], tokens.shape)
    x = self.embed_tokens(tokens)
    x, _ = self.dense_layers(x, rotation(self.config, positions), segment_ids)
    return {
      "hidden": self.norm(x),
      "mtp_hidden": (),
      "load": jnp.zeros((0, 1), jnp.float32),
      "balance_loss": jnp.zeros(tokens.shape[:1], jnp.float32),
      "dropped": jnp.zeros((), jnp.float32),
    }


def rotation(config: dense_config.DenseConfig, positions):
  """(cos, sin), each float32 [B, L, K/2], of positions [B, L]."""
  c, scaling = config, config.rope_scaling
  if isinstance(scaling, dense_config.Llama3Scaling):
    inverse = rope.llama3_frequencies(c.head_dim, c.rope_theta, scaling)
    return rope.turned(positions, inverse)
  return rope.cos_sin(positions, c.head_dim, c.rope_theta, scaling)
