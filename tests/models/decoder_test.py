"""Prefill and cached decoding against the forward pass over whole sequences."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from dsx.models import cache
from dsx.models import decoder
from dsx.models import layout
from tests.models import tiny

B, L, TAIL = 2, 11, 16
CHANGES = {
  **tiny.VARIANTS,
  "v3_pre_norm_mtp": {"mtp_hidden": "pre_norm"},
  "v3_two_mtp_modules": {"num_nextn_predict_layers": 2},
}


@functools.cache
def _model(config):
  """The decoder with all its MTP modules, compiled method by method."""
  model = decoder.Decoder(config, n_mtp=config.num_nextn_predict_layers)
  variables = layout.to_layers(config, tiny.variables(config))
  variables = decoder.absorbed(model, variables)

  @functools.partial(jax.jit, static_argnames=("method", "number"))
  def apply(*args, method, number=None):
    args = args if number is None else (number, *args)
    return model.apply(variables, *args, method=method)

  return model, apply


def _expected(config, tokens):
  """Logits and each MTP module's logits of whole sequences."""
  logits, aux = tiny.apply(config)(tiny.variables(config), tokens)
  return logits, aux["mtp_logits"]


def _memory(config, entries, prefix: int, n: int):
  """The first `prefix` entries as context, and room for `n` tokens at hand."""
  seen = jnp.arange(TAIL)[None, None, :]
  query = jnp.arange(n)[None, :, None]
  return cache.Memory(
    contexts=tuple(entries),
    context_seen=jnp.tile(
      jnp.arange(entries[0].shape[1])[None, :] < prefix, (B, 1)
    ),
    tails=tuple(jnp.full((B, TAIL, cache.width(config)), 7.0) for _ in entries),
    tail_seen=jnp.broadcast_to((seen >= 2) & (seen - 2 <= query), (B, n, TAIL)),
    offset=jnp.int32(2),
  )


class DecoderTest(parameterized.TestCase):
  @parameterized.named_parameters(CHANGES.items())
  def test_prefill_is_the_forward_pass(self, changes):
    config = tiny.config(**changes)
    _, apply = _model(config)
    tokens = tiny.tokens(B, L)
    following = jnp.roll(tokens, -1, axis=1)
    hidden, entries = apply(
      tokens, following, jnp.ones((B, L), bool), method="prefill"
    )
    expected, _ = _expected(config, tokens)
    chex.assert_trees_all_close(
      apply(hidden, method="logits"), expected, atol=1e-5
    )
    n = config.num_hidden_layers + config.num_nextn_predict_layers
    self.assertLen(entries, n)

  @parameterized.named_parameters(CHANGES.items())
  def test_decoding_is_the_forward_pass(self, changes):
    """Three tokens at hand over a context, and what MTP makes of them."""
    config = tiny.config(**changes)
    _, apply = _model(config)
    prefix, n = 6, 3
    tokens = tiny.tokens(B, L, seed=1)
    following = jnp.roll(tokens, -1, axis=1)
    # The context is longer than what is seen of it.
    _, entries = apply(
      tokens, following, jnp.ones((B, L), bool), method="prefill"
    )
    at_hand = slice(prefix, prefix + n)
    positions = jnp.tile(jnp.arange(prefix, prefix + n)[None, :], (B, 1))
    active = jnp.ones(B, bool)
    memory = _memory(config, entries, prefix, n)
    hidden, passed_on, memory = apply(
      tokens[:, at_hand], positions, memory, active, method="decode"
    )
    expected, mtp = _expected(config, tokens)
    found = apply(hidden, method="logits")
    chex.assert_trees_all_close(found, expected[:, at_hand], atol=1e-5)
    for number, logits in enumerate(mtp):
      ahead = tokens[:, prefix + number + 1 : prefix + number + 1 + n]
      hidden, passed_on, memory = apply(
        passed_on,
        ahead,
        positions,
        memory,
        active,
        method="draft",
        number=number,
      )
      found = apply(hidden, method="logits")
      chex.assert_trees_all_close(found, logits[:, at_hand], atol=1e-5)
    for tail, entry in zip(memory.tails, entries, strict=True):
      chex.assert_trees_all_close(
        tail[:, 2 : 2 + n], entry[:, at_hand], atol=1e-5
      )
      chex.assert_trees_all_equal(tail[:, :2], jnp.full_like(tail[:, :2], 7.0))

  def test_padding_changes_nothing(self):
    config = tiny.config()
    _, apply = _model(config)
    tokens = tiny.tokens(B, L, seed=2)
    following = jnp.roll(tokens, -1, axis=1)
    valid = jnp.ones((B, L), bool)
    hidden, _ = apply(tokens, following, valid, method="prefill")
    padded = jnp.pad(tokens, ((0, 0), (0, 5)), constant_values=3)
    valid = jnp.pad(valid, ((0, 0), (0, 5)))
    found, _ = apply(
      padded, jnp.pad(following, ((0, 0), (0, 5))), valid, method="prefill"
    )
    chex.assert_trees_all_close(found[:, :L], hidden, atol=1e-5)

  def test_absorbed_is_what_is_made_without_it(self):
    config = tiny.config()
    model, apply = _model(config)
    tokens = tiny.tokens(B, L, seed=3)
    _, entries = apply(tokens, tokens, jnp.ones((B, L), bool), method="prefill")
    memory = _memory(config, entries, 4, 1)
    args = (tokens[:, :1], jnp.full((B, 1), 4), memory, jnp.ones(B, bool))
    plain = layout.to_layers(config, tiny.variables(config))
    found, _, _ = model.apply(plain, *args, method="decode")
    expected, _, _ = apply(*args, method="decode")
    chex.assert_trees_all_close(found, expected, atol=1e-5)


if __name__ == "__main__":
  absltest.main()
