"""The dense model among dsx's own: parts, packing, training, checkpoints."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx import cost
from dsx.models import dense
from dsx.models import dense_config
from dsx.models import precision
from dsx.ops import rope
from dsx.parallel import sharding

_CONFIG = dense_config.DenseConfig(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  qk_norm=True,
  max_position_embeddings=64,
)


def _variables(config):
  init = jax.jit(dense.DenseModel(config).init)
  tokens = jnp.zeros((1, 8), jnp.int32)
  return sharding.unbox(init(jax.random.key(0), tokens))


def _apply(config):
  return jax.jit(dense.DenseModel(config).apply)


class DenseTest(parameterized.TestCase):
  @parameterized.parameters(
    {}, {"tie_word_embeddings": False}, {"attention_bias": False}
  )
  def test_parameters_are_as_many_as_they_cost(self, **changes):
    config = dataclasses.replace(_CONFIG, **changes)
    found = sum(x.size for x in jax.tree.leaves(_variables(config)))
    self.assertEqual(cost.parameters(config), found)
    self.assertEqual(cost.active_parameters(config), found)
    self.assertEqual(cost.mtp_parameters(config), 0)

  def test_cost_of_a_published_model(self):
    # Qwen2.5-Math-1.5B: "1.54B", of which 1.31B are not the embedding.
    config = dense_config.DenseConfig()
    self.assertEqual(cost.parameters(config), 1_543_714_304)
    without = cost.active_parameters(config, embedding=False)
    self.assertEqual(without, 1_310_340_608)
    self.assertEqual(cost.cache_bytes_per_token(config), 2 * 28 * 2 * 2 * 128)

  def test_segments_are_rows_of_their_own(self):
    apply, variables = _apply(_CONFIG), _variables(_CONFIG)
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 64)
    apart, _ = apply(variables, tokens)
    segments = jnp.repeat(jnp.array([[1, 2]]), 6, axis=1)
    positions = jnp.tile(jnp.arange(6), 2)[None]
    packed, aux = apply(variables, tokens.reshape(1, 12), positions, segments)
    chex.assert_trees_all_close(packed.reshape(2, 6, -1), apart, atol=1e-5)
    self.assertEqual(aux["mtp_logits"], ())

  def test_query_heads_share_keys_in_order(self):
    # With keys and values of a head for each query head, copied, it is the
    # same model: heads 0 and 1 have the first, 2 and 3 the second.
    variables = _variables(_CONFIG)
    whole = dataclasses.replace(_CONFIG, num_key_value_heads=4)

    def copied(path, x):
      if path[-2].key not in ("k_proj", "v_proj"):
        return x
      by_head = x.reshape(*x.shape[:-1], 2, 8)
      return jnp.repeat(by_head, 2, axis=-2).reshape(*x.shape[:-1], 32)

    tokens = jax.random.randint(jax.random.key(1), (1, 9), 0, 64)
    expected, _ = _apply(_CONFIG)(variables, tokens)
    found, _ = _apply(whole)(
      jax.tree_util.tree_map_with_path(copied, variables), tokens
    )
    chex.assert_trees_all_close(found, expected, atol=1e-5)

  def test_llama3_frequencies(self):
    scaling = dense_config.Llama3Scaling(original_max_position_embeddings=64)
    plain = rope.frequencies(16, 100.0)
    found = rope.llama3_frequencies(16, 100.0, scaling)
    turns = 64 * plain / (2 * np.pi)
    np.testing.assert_allclose(found[turns >= 4], plain[turns >= 4])
    np.testing.assert_allclose(found[turns <= 1], plain[turns <= 1] / 8)
    between = (turns > 1) & (turns < 4)
    self.assertTrue(between.any())
    share = (turns[between] - 1) / 3
    np.testing.assert_allclose(
      found[between], plain[between] * (share + (1 - share) / 8), rtol=1e-6
    )

  def test_halves_turn_as_neighbours_do(self):
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
    cos, sin = rope.cos_sin(jnp.arange(3)[None], 8, 100.0)
    neighbours = jnp.stack(jnp.split(x, 2, axis=-1), -1).reshape(x.shape)
    chex.assert_trees_all_close(
      rope.rotate_halves(x, cos, sin), rope.rotate(neighbours, cos, sin)
    )

  def test_names_for_recipes(self):
    names = precision.names(_CONFIG)
    self.assertIn("dense_layers/self_attn/k_proj", names)
    self.assertIn("dense_layers/self_attn/q_norm", names)
    self.assertNotIn("dense_layers/self_attn/kv_b_proj", names)

  def test_there_is_nothing_to_replay(self):
    model, variables = dense.DenseModel(_CONFIG), _variables(_CONFIG)
    tokens = jnp.zeros((1, 4), jnp.int32)
    with self.assertRaisesRegex(
      ValueError, "^experts of shape .*: expected No"
    ):
      model.apply(
        variables, tokens, experts=jnp.zeros((1, 4, 1, 1)), method="features"
      )

  @parameterized.parameters(
    ({"num_key_value_heads": 3}, "num_key_value_heads=3: expected a divisor"),
    ({"head_dim": 7}, "head_dim=7: expected an even number"),
    ({"hidden_size": 0}, "hidden_size=0: expected a positive number"),
  )
  def test_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(_CONFIG, **changes)

  @parameterized.parameters(
    ({"factor": 0.5}, "factor=0.5: expected at least 1"),
    ({"low_freq_factor": 4.0}, "low_freq_factor=4.0: expected more than 0 and"),
  )
  def test_scaling_refused(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      dense_config.Llama3Scaling(**fields)

  def test_decoding_is_refused(self):
    with self.assertRaisesRegex(
      ValueError, "^runs/x: found a dense model, expected a DeepSeek model: dsx"
    ):
      dense_config.only_deepseek(_CONFIG, "runs/x")


if __name__ == "__main__":
  absltest.main()
