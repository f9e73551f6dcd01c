"""The model, one layer after the other, over a cache.

The same blocks as `deepseek.DeepSeek`, with the same parameters in the layout
`layers` (`models/layout.py`). `prefill` reads whole prompts with keys and
values expanded; `decode` reads a few tokens of each sequence with the
projections absorbed (`mla.MLA.decode`); `draft` is an MTP module's guess
(DeepSeek-V3 section 2.2: "repurpose these MTP modules for speculative
decoding").

Legend (parallel/axes.py): B batch, L length, D model, V vocabulary; N layers
of the cache (MTP modules last), W width of its entries; M expert layers, K
experts per token.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from dsx.models import cache
from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import layers as layers_lib
from dsx.models import layout
from dsx.models import mla
from dsx.models import moe
from dsx.models import mtp
from dsx.models import transformer
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import fp8_recipe
from dsx.ops import rope


class Decoder(nn.Module):
  """A DeepSeek model that remembers.

  Attributes:
    config: what the model is.
    dtypes: which numbers have which precision.
    execution: how it is run; `remat` means nothing here.
    n_mtp: how many of its MTP modules take part.
  """

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()
  n_mtp: int = 0

  def setup(self):
    """Declares the parts under the names of the layout `layers`."""
    c, parts = self.config, (self.dtypes, self.execution)
    dense = c.first_k_dense_replace
    self.embed_tokens = deepseek.Embedding(c, self.dtypes)
    self.layers = [
      transformer.Block(
        c, number < dense, self._dtypes_of(number), self.execution
      )
      for number in range(c.num_hidden_layers)
    ]
    self.norm = layers_lib.RMSNorm(c.rms_norm_eps, self.dtypes)
    self.lm_head = deepseek.Head(c, self.dtypes)
    self.mtp = [mtp.MTP(c, *parts) for _ in range(self.n_mtp)]

  def _dtypes_of(self, number: int) -> dtypes_lib.Dtypes:
    """Of a layer: rules of a recipe speak of the layout `stacked`."""
    stack = layout.stack_of(self.config, number)
    recipe = fp8_recipe.in_stack(self.dtypes.fp8, stack)
    return dataclasses.replace(self.dtypes, fp8=recipe)

  def _rotation(self, positions):
    c = self.config
    return rope.cos_sin(
      positions, c.qk_rope_head_dim, c.rope_theta, c.rope_scaling
    )

  def _passed_on(self, x, normed):
    """The hidden state that the next MTP module joins."""
    return normed if self.config.mtp_hidden == "post_norm" else x

  def prefill(self, tokens, following, valid):
    """Reads prompts from their beginning.

    Args:
      tokens: int32 [B, L].
      following: int32 [B, L], the token after each.
      valid: bool [B, L]; the rest is padding at the end.

    Returns:
      (hidden [B, L, D], input of `logits`; a tuple of N arrays [B, L, W] to
      remember).
    """
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    rotation = self._rotation(jnp.broadcast_to(positions[None], tokens.shape))
    x, remembered = self.embed_tokens(tokens), []
    for layer in self.layers:
      x, entries = layer.prefill(x, rotation, valid)
      remembered.append(entries)
    hidden = self.norm(x)
    x = self._passed_on(x, hidden)
    for module in self.mtp:
      before, normed, entries = module.prefill(
        x, self.embed_tokens(following), rotation, valid
      )
      remembered.append(entries)
      x = self._passed_on(before, normed)
      # Deeper modules look further ahead than the last token of a prompt;
      # what they make of it can spoil a draft and nothing else.
      following = jnp.roll(following, -1, axis=1)
    return hidden, tuple(remembered)

  def decode(self, tokens, positions, memory: cache.Memory, active):
    """Reads the tokens at hand of each sequence.

    Args:
      tokens: int32 [B, L].
      positions: int32 [B, L].
      memory: what came before.
      active: bool [B], sequences that matter.

    Returns:
      (hidden [B, L, D], input of `logits`; passed_on [B, L, D], input of
      `draft`; the memory with these tokens in it).
    """
    rotation = self._rotation(positions)
    valid = jnp.broadcast_to(active[:, None], tokens.shape)
    x = self.embed_tokens(tokens)
    for number, layer in enumerate(self.layers):
      x, remembered = layer.decode(x, rotation, memory.layer(number), valid)
      memory = memory.updated(number, remembered)
    hidden = self.norm(x)
    return hidden, self._passed_on(x, hidden), memory

  def draft(self, number: int, passed_on, tokens, positions, memory, active):
    """Lets one MTP module read the tokens at hand.

    Args:
      number: of the module, from 0.
      passed_on: [B, L, D], of `decode` or of the module before.
      tokens: int32 [B, L], the token `number` + 1 places after each position.
      positions: int32 [B, L].
      memory: as `decode` left it, or the module before.
      active: bool [B].

    Returns:
      (hidden, passed_on, memory), as `decode`.
    """
    place = self.config.num_hidden_layers + number
    valid = jnp.broadcast_to(active[:, None], tokens.shape)
    x, hidden, remembered = self.mtp[number].decode(
      passed_on,
      self.embed_tokens(tokens),
      self._rotation(positions),
      memory.layer(place),
      valid,
    )
    memory = memory.updated(place, remembered)
    return hidden, self._passed_on(x, hidden), memory

  def logits(self, hidden):
    """float32 [B, L, V] of hidden [B, L, D]."""
    return self.lm_head(hidden)


def absorbed(model: Decoder, variables) -> dict:
  """`variables` with the collection that `mla.absorb` makes, once for all.

  Args:
    model: the model.
    variables: in the layout `layers`.

  Returns:
    The variables and, in `absorbed`, copies of each layer's `kv_b_proj` in
    the order that decoding reads it.
  """

  def of(tree):
    kernel = tree["self_attn"]["kv_b_proj"]["kernel"]
    key, value = _absorb(kernel, model.config, str(model.dtypes.compute))
    return {"self_attn": {"key_up": key, "value_up": value}}

  params = variables["params"]
  names = [f"layers_{i}" for i in range(model.config.num_hidden_layers)]
  collection = {name: of(params[name]) for name in names}
  for number in range(model.n_mtp):
    name = f"mtp_{number}"
    collection[name] = {"block": of(params[name]["block"])}
  return {**variables, mla.ABSORBED: collection}


_absorb = jax.jit(mla.absorb, static_argnums=(1, 2))


def apply(model: Decoder, variables, *args, method: str, records: bool) -> Any:
  """`Decoder.apply`, and the experts that the main layers chose.

  Args:
    model: the model.
    variables: in the layout `layers`.
    *args: of the method.
    method: `prefill` or `decode`.
    records: whether to keep what was chosen.

  Returns:
    (what the method returns, `index_type` [B, L, M, K] or None).
  """
  if not records:
    return model.apply(variables, *args, method=method), None
  found, kept = model.apply(
    variables, *args, method=method, mutable=[moe.CHOSEN]
  )
  kept: Any = kept
  c = model.config
  chosen = [
    kept[moe.CHOSEN][f"layers_{number}"]["mlp"]["index"]
    for number in range(c.first_k_dense_replace, c.num_hidden_layers)
  ]
  return found, jnp.stack(chosen, axis=2).astype(index_type(c))


def index_type(config: config_lib.DeepSeekConfig) -> str:
  """The smallest type that holds an expert's number."""
  return "uint8" if config.n_routed_experts <= 2**8 else "uint16"
