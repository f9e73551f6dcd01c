"""The whole model: equations, packing, counts, dtypes, what it returns.

Against transformers: `golden_test.py`.
"""

import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx import cost
from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.ops import dtypes
from dsx.parallel import sharding
from tests.models import oracle
from tests.models import shipped
from tests.models import tiny


def _shapes(config):
  """Boxed shapes of all variables; nothing is allocated."""
  tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  model = deepseek.DeepSeek(config)
  return jax.eval_shape(model.init, jax.random.key(0), tokens)


def _count(tree) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


class EquationsTest(parameterized.TestCase):
  """More of them, with MTP modules: `mtp_test.py`."""

  @parameterized.parameters("v3_yarn", "v3_dense", "v2", "v2_greedy")
  def test_equals_the_equations(self, variant):
    c = tiny.config(**tiny.VARIANTS[variant])
    variables = tiny.variables(c)
    tokens = tiny.tokens(2, 7)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [4, 4, 4, 4, 4, 4, 4]])
    logits, _ = tiny.apply(c)(variables, tokens, segment_ids=segments)
    self.assertEqual(logits.dtype, jnp.float32)
    for row in range(2):
      theirs, _ = oracle.model(
        c, variables, np.asarray(tokens[row]), segments[row]
      )
      self.assertGreater(theirs[0].std(), 0.3)
      chex.assert_trees_all_close(
        logits[row], theirs[0].astype(np.float32), atol=2e-4
      )

  def test_attention_implementations_agree(self):
    c = tiny.config()
    variables, tokens = tiny.variables(c), tiny.tokens(2, 20)
    ours, plain = (
      tiny.apply(c, execution=config_lib.Execution(attention=impl))
      for impl in ("chunked", "naive")
    )
    chex.assert_trees_all_close(
      ours(variables, tokens), plain(variables, tokens), atol=1e-4
    )


class PackingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.config = tiny.config(num_nextn_predict_layers=2)
    self.variables = tiny.variables(self.config)

  def _apply(self, tokens, positions=None, segment_ids=None):
    if positions is None:
      positions = np.arange(tokens.shape[1])[None, :]
    if segment_ids is None:
      segment_ids = np.zeros_like(tokens)
    positions = np.broadcast_to(positions, tokens.shape)
    return tiny.apply(self.config)(
      self.variables, tokens, positions, segment_ids
    )

  @parameterized.parameters(False, True)
  def test_packed_is_unpacked(self, restart):
    """Documents in one row give what they give alone, MTP included."""
    lengths = (5, 8, 3)
    tokens = tiny.tokens(3, 8)
    inside = np.arange(8) < np.array(lengths)[:, None]
    alone, alone_aux = self._apply(tokens, None, inside.astype(np.int32))
    rest = np.zeros((1, 8), np.int32)
    packed = np.concatenate([np.asarray(tokens)[inside][None, :], rest], 1)
    ids = np.concatenate([np.repeat([7, 3, 9], lengths)[None, :], rest], 1)
    positions = None
    if restart:
      starts = [np.arange(n) for n in (*lengths, 8)]
      positions = np.concatenate(starts)[None, :]
    logits, aux = self._apply(packed, positions, ids)
    for ours, theirs in (
      (logits, alone),
      (aux["mtp_logits"][0], alone_aux["mtp_logits"][0]),
      (aux["mtp_logits"][1], alone_aux["mtp_logits"][1]),
    ):
      theirs = np.asarray(theirs)[inside]
      chex.assert_trees_all_close(ours[0, :16], theirs, atol=2e-4)

  def test_packed_loads_are_unpacked_loads(self):
    """A module counts no position whose token i+k is another document's."""
    tokens = tiny.tokens(3, 8)
    _, alone = self._apply(tokens)
    ids = np.repeat([1, 2, 3], 8)[None, :]
    _, packed = self._apply(tokens.reshape(1, 24), None, ids)
    chex.assert_trees_all_equal(packed["load"], alone["load"])

  def test_without_segments_documents_see_each_other(self):
    """Pretraining packs without masks (section 4.1)."""
    tokens = tiny.tokens(3, 8)
    alone, _ = self._apply(tokens)
    logits, _ = self._apply(tokens.reshape(1, 24))
    chex.assert_trees_all_close(logits[0, :8], alone[0], atol=2e-4)
    moved = jnp.abs(logits[0, 8:16] - alone[1])
    self.assertGreater(float(moved.max()), 1e-2)

  def test_positions_and_segments_have_defaults(self):
    tokens = tiny.tokens(3, 8)
    ours = tiny.apply(self.config)(self.variables, tokens)
    chex.assert_trees_all_close(ours, self._apply(tokens), atol=1e-4)

  def test_rows_of_a_batch_are_independent(self):
    tokens = tiny.tokens(3, 8)
    logits, aux = self._apply(tokens)
    other, other_aux = self._apply(
      tokens.at[1].set((tokens[1] + 1) % tiny.VOCAB)
    )
    for ours, theirs in (
      (logits, other),
      (aux["balance_loss"], other_aux["balance_loss"]),
      (aux["mtp_logits"][1], other_aux["mtp_logits"][1]),
    ):
      chex.assert_trees_all_close(ours[0], theirs[0], atol=1e-5)
      chex.assert_trees_all_close(ours[2], theirs[2], atol=1e-5)
      self.assertGreater(float(jnp.abs(ours[1] - theirs[1]).max()), 1e-3)


class OutputsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("v3", {}, 2),
    ("two_modules", {"num_nextn_predict_layers": 2}, 2),
    ("all_moe", {"first_k_dense_replace": 0}, 3),
    ("dense", tiny.VARIANTS["v3_dense"], 0),
    ("dense_with_mtp", {"first_k_dense_replace": 3}, 0),
  )
  def test_documented_keys(self, changes, n_main):
    c = tiny.config(**changes)
    n_mtp = c.num_nextn_predict_layers
    logits, aux = jax.eval_shape(
      deepseek.DeepSeek(c).apply, tiny.variables(c), tiny.tokens(2, 6)
    )
    self.assertCountEqual(
      aux,
      [
        "hidden",
        "mtp_hidden",
        "mtp_logits",
        "load",
        "balance_loss",
        "dropped",
      ],
    )
    chex.assert_shape([logits, *aux["mtp_logits"]], (2, 6, tiny.VOCAB))
    chex.assert_shape([aux["hidden"], *aux["mtp_hidden"]], (2, 6, 12))
    self.assertLen(aux["mtp_logits"], n_mtp)
    chex.assert_shape(aux["load"], (n_main + n_mtp, 8))
    chex.assert_shape(aux["balance_loss"], (2,))

  def test_loads(self):
    """K experts for each token; module k has no token i+k at k positions."""
    c = tiny.config(num_nextn_predict_layers=2)
    _, aux = tiny.apply(c)(tiny.variables(c), tiny.tokens(3, 8))
    counts = jnp.array([24, 24, 21, 18], jnp.float32)
    chex.assert_trees_all_equal(aux["load"].sum(-1), 3 * counts)

  def test_bfloat16_is_close_and_returns_float32(self):
    # Every expert is chosen, so that rounding cannot change the choice.
    c = tiny.config(
      n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=4
    )
    variables, tokens = tiny.variables(c), tiny.tokens(2, 8)
    policy = dtypes.Dtypes(compute="bfloat16")
    ours, aux = tiny.apply(c, dtypes=policy)(variables, tokens)
    wide, _ = tiny.apply(c)(variables, tokens)
    self.assertEqual(ours.dtype, jnp.float32)
    self.assertEqual(aux["hidden"].dtype, jnp.bfloat16)
    error = np.sqrt(np.mean((ours - wide) ** 2)) / np.std(wide)
    self.assertBetween(error, 0.001, 0.1)

  def test_features_stop_before_the_head(self):
    c = tiny.config(num_nextn_predict_layers=2)
    model, variables = deepseek.DeepSeek(c), tiny.variables(c)
    tokens = tiny.tokens(3, 8)
    logits, aux = tiny.apply(c)(variables, tokens)
    features = jax.eval_shape(
      lambda v, t: model.apply(v, t, method="features"), variables, tokens
    )
    self.assertCountEqual(
      features, ["hidden", "mtp_hidden", "load", "balance_loss", "dropped"]
    )
    head = variables["params"]["lm_head"]["kernel"]
    hiddens = (aux["hidden"], *aux["mtp_hidden"])
    expected = tuple(hidden @ head for hidden in hiddens)
    chex.assert_trees_all_close(
      (logits, *aux["mtp_logits"]), expected, atol=1e-5
    )

  def test_tokens_must_be_a_batch(self):
    c = tiny.config()
    with self.assertRaises(AssertionError):
      deepseek.DeepSeek(c).apply(tiny.variables(c), tiny.tokens(6))


class PublishedTest(parameterized.TestCase):
  @parameterized.parameters(
    # main model with router biases, MTP modules, router biases of both
    ("v3", 671_026_419_200, 11_610_068_224, 59 * 256),
    ("v3_1", 671_026_419_200, 11_610_068_224, 59 * 256),
    ("v2", 235_741_434_880, 0, 0),
    ("v2_lite", 15_706_484_224, 0, 0),
  )
  def test_published_counts(self, name, main, mtp, biases):
    """Of the real module under `jax.eval_shape`."""
    shapes = _shapes(shipped.config(name))
    modules = {k: v.get("mtp_0", {}) for k, v in shapes.items()}
    self.assertEqual(_count(modules), mtp)
    self.assertEqual(_count(shapes) - mtp, main)
    self.assertEqual(_count(shapes.get("router_bias", {})), biases)

  @parameterized.parameters(*shipped.NAMES)
  def test_counts_are_those_of_cost(self, name):
    config = shipped.config(name)
    expected = cost.parameters(config) + cost.mtp_parameters(config)
    self.assertEqual(_count(_shapes(config)), expected)

  def test_every_parameter_is_named_and_initialised_as_published(self):
    """Standard deviation 0.006 (section 4.2), norms at one, biases at zero."""
    c = tiny.config(hidden_size=48, vocab_size=512, moe_intermediate_size=64)
    variables = jax.jit(deepseek.DeepSeek(c).init)(
      jax.random.key(0), tiny.tokens(1, 4)
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      sharding.unbox(variables)
    ):
      path = jax.tree_util.keystr(path)
      values = np.asarray(leaf)
      self.assertEqual(values.dtype, np.float32, path)
      if path.startswith("['router_bias']"):
        np.testing.assert_array_equal(values, 0.0)
      elif path.endswith("['scale']"):
        np.testing.assert_array_equal(values, 1.0)
      else:
        error = 6 * 0.006 / math.sqrt(2 * values.size)
        self.assertAlmostEqual(values.std(), 0.006, delta=error, msg=path)

  def test_tree_bears_deepseeks_names(self):
    paths = [
      "/".join(key.key for key in path)
      for path, _ in jax.tree_util.tree_leaves_with_path(
        sharding.unbox(_shapes(tiny.config()))
      )
    ]
    attention = (
      "input_layernorm/scale",
      "post_attention_layernorm/scale",
      "self_attn/q_a_proj/kernel",
      "self_attn/q_a_layernorm/scale",
      "self_attn/q_b_proj/kernel",
      "self_attn/kv_a_proj_with_mqa/kernel",
      "self_attn/kv_a_layernorm/scale",
      "self_attn/kv_b_proj/kernel",
      "self_attn/o_proj/kernel",
    )
    matrices = ("gate_proj", "up_proj", "down_proj")
    moe = (
      "mlp/gate/kernel",
      *(f"mlp/experts/{m}" for m in matrices),
      *(f"mlp/shared_experts/{m}/kernel" for m in matrices),
    )
    expected = [
      "params/embed_tokens/embedding",
      "params/norm/scale",
      "params/lm_head/kernel",
      *(f"params/dense_layers/{name}" for name in attention),
      *(f"params/dense_layers/mlp/{m}/kernel" for m in matrices),
      *(f"params/moe_layers/{name}" for name in (*attention, *moe)),
      *(f"params/mtp_0/block/{name}" for name in (*attention, *moe)),
      *(f"params/mtp_0/{n}/scale" for n in ("enorm", "hnorm", "norm")),
      "params/mtp_0/eh_proj/kernel",
      "router_bias/moe_layers/mlp/gate/e_score_correction_bias",
      "router_bias/mtp_0/block/mlp/gate/e_score_correction_bias",
    ]
    self.assertCountEqual(paths, expected)


if __name__ == "__main__":
  absltest.main()
