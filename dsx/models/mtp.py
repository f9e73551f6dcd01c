"""Multi-token prediction: one more token per module, the causal chain kept.

DeepSeek-V3 section 2.2, eq. 21 to 23. Module k joins the hidden state of
position i with the embedding of token i+k and predicts token i+k+1 through
the embedding and the output head of the main model.

NOTE(paper): eq. 21 prints the hidden state first. The released weights
(`eh_proj`) expect the embedding first, and so do we.

Legend (parallel/axes.py): B batch, L length, D model.
"""

from flax import linen as nn
import jax.numpy as jnp

from dsx.models import cache
from dsx.models import config as config_lib
from dsx.models import layers
from dsx.models import transformer
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import axes


class MTP(nn.Module):
  """One MTP module: joins, projects, applies one block."""

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def setup(self):
    """Declares the parts of figure 3."""
    c = self.config
    self.enorm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)
    self.hnorm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)
    self.eh_proj = layers.Dense(
      c.hidden_size, (axes.EMBED, axes.MLP), c.initializer_range, self.dtypes
    )
    self.block = transformer.rematerialised(self.execution)(
      c, False, self.dtypes, self.execution
    )
    self.norm = layers.RMSNorm(c.rms_norm_eps, self.dtypes)

  def __call__(
    self, hidden, embedding, rotation, segment_ids, mask, valid=None
  ):
    """Applies eq. 21 and 22.

    Args:
      hidden: [B, L, D], h^(k-1) of position i.
      embedding: [B, L, D], Emb(t_(i+k)).
      rotation: (cos, sin) of position i.
      segment_ids: optional int32 [B, L].
      mask: bool [B, L], positions that have a token i+k.
      valid: optional bool [B, L], of `moe.MoE`.

    Returns:
      (before [B, L, D], normed [B, L, D], aux): h^k before and after the
      module's own final norm (`shared_head.norm`), and the block's aux.
    """
    x = self._joined(hidden, embedding)
    x, aux = self.block(x, rotation, segment_ids, mask, valid)
    return x, self.norm(x), aux

  def prefill(self, hidden, embedding, rotation, valid):
    """As `__call__`; returns (before, normed, entries to remember)."""
    x = self._joined(hidden, embedding)
    x, entries = self.block.prefill(x, rotation, valid)
    return x, self.norm(x), entries

  def decode(
    self, hidden, embedding, rotation, memory: cache.LayerMemory, valid
  ):
    """Of the tokens at hand; returns (before, normed, memory)."""
    x = self._joined(hidden, embedding)
    x, memory = self.block.decode(x, rotation, memory, valid)
    return x, self.norm(x), memory

  def _joined(self, hidden, embedding):
    both = [self.enorm(embedding), self.hnorm(hidden)]
    x = self.eh_proj(jnp.concatenate(both, axis=-1))
    names = (axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
    return nn.with_logical_constraint(x, names)
