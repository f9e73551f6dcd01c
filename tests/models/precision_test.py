import collections
import contextlib
import dataclasses
import functools
import io
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from dsx.models import config as config_lib
from dsx.models import decoder
from dsx.models import deepseek
from dsx.models import layers
from dsx.models import layout
from dsx.models import precision
from dsx.ops import dtypes
from dsx.ops import fp8_probe
from dsx.ops import fp8_recipe
from dsx.parallel import axes
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding
from dsx.training import losses
from tests.models import tiny

_FP8 = dtypes.Dtypes(fp8=fp8_recipe.Recipe())
# No token changes its experts when numbers are rounded: each has all of them.
_ALL = {"num_experts_per_tok": 8, "n_group": 1, "topk_group": 1}
_SMALL = {
  "hidden_size": 32,
  "intermediate_size": 48,
  "moe_intermediate_size": 24,
  "initializer_range": 0.1,
  "num_hidden_layers": 2,
}


@functools.cache
def _variables(config):
  init = jax.jit(deepseek.DeepSeek(config).init)
  return sharding.unbox(init(jax.random.key(0), tiny.tokens(1, 3)))


def _shapes(config):
  model = deepseek.DeepSeek(config)
  tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
  return sharding.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))


@functools.cache
def _gradient(config, dtypes_, **execution):
  """Loss and gradients of a tiny batch."""
  variables = _variables(config)
  model = deepseek.DeepSeek(config, dtypes_, config_lib.Execution(**execution))
  batch = {"tokens": tiny.tokens(2, 33)}

  @jax.jit
  @jax.value_and_grad
  def run(params):
    return losses.total(
      model,
      params,
      variables["router_bias"],
      batch,
      {"targets": 64.0, "sequences": 2.0},
      {"mtp_weight": 0.3, "balance_weight": 1e-3},
    )[0]

  return run(variables["params"])


def _cosine(a, b):
  a, b = (
    jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (a, b)
  )
  return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(*tiny.VARIANTS)
  def test_are_those_that_the_model_asks_for(self, variant):
    config, asked = tiny.config(**tiny.VARIANTS[variant]), set()
    rule = fp8_recipe.Recipe._rule

    def recorded(self, name):
      asked.add(name)
      return rule(self, name)

    with mock.patch.object(fp8_recipe.Recipe, "_rule", recorded):
      jax.eval_shape(
        deepseek.DeepSeek(config, _FP8).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 3), jnp.int32),
      )
    self.assertEqual(asked, set(precision.names(config)))

  def test_check(self):
    config = tiny.config(q_lora_rank=None)
    precision.check(config, dtypes.Dtypes())
    precision.check(config, _FP8)
    rules = (("*/q_a_proj", "compute"), ("*", "float8"))
    named = dtypes.Dtypes(fp8=fp8_recipe.Recipe(rules=rules))
    with self.assertRaisesRegex(ValueError, "q_a_proj.*decides for no layer"):
      precision.check(config, named)


class TrainingTest(parameterized.TestCase):
  def test_gradient_points_where_float32_s_does(self):
    config = tiny.config(**_ALL, **_SMALL)
    wide = _gradient(config, dtypes.Dtypes())
    narrow = _gradient(config, _FP8)
    chex.assert_tree_all_finite(narrow)
    self.assertLess(abs(float(wide[0] - narrow[0])), 0.02)
    self.assertGreater(_cosine(wide[1], narrow[1]), 0.98)
    self.assertLess(_cosine(wide[1], narrow[1]), 0.99999)

  @parameterized.parameters({"remat": "paper"}, {"unroll_layers": True})
  def test_remat_and_unrolling_change_nothing(self, **execution):
    config = tiny.config(**_ALL, **_SMALL)
    loss, gradient = _gradient(config, _FP8)
    other_loss, other = _gradient(config, _FP8, **execution)
    chex.assert_trees_all_close(loss, other_loss, rtol=1e-5)
    self.assertGreater(_cosine(gradient, other), 0.999)

  def test_rule_leaves_a_model_as_it_was(self):
    config = tiny.config(**_SMALL)
    rules = (("*", "compute"),)
    left = dtypes.Dtypes(fp8=fp8_recipe.Recipe(rules=rules))
    arguments = _variables(config), tiny.tokens(2, 7)
    chex.assert_trees_all_equal(
      tiny.apply(config, dtypes=left)(*arguments)[0],
      tiny.apply(config)(*arguments)[0],
    )

  def test_rule_leaves_a_layer_as_it_was(self):
    def fp8_values(rules):
      named = dtypes.Dtypes(fp8=fp8_recipe.Recipe(rules=rules))
      config = tiny.config(first_k_dense_replace=3, num_nextn_predict_layers=0)
      model = deepseek.DeepSeek(config, named)
      shapes = _shapes(config)
      return str(jax.make_jaxpr(model.apply)(shapes, tiny.tokens(1, 5))).count(
        "new_dtype=float8_e4m3fn"
      )

    everything = fp8_values((("*", "float8"),))
    without = fp8_values((("*/o_proj", "compute"), ("*", "float8")))
    only = fp8_values((("*/o_proj", "float8"),))
    self.assertGreater(only, 0)
    self.assertEqual(everything, without + only)

  @parameterized.parameters(
    "embed_tokens", "lm_head", "*/gate", "*norm", "*/attention_core"
  )
  def test_sensitive_parts_can_be_had(self, pattern):
    config = tiny.config(**_ALL, **_SMALL)
    recipe = fp8_recipe.Recipe(
      rules=((pattern, "float8"),), allow_sensitive=True
    )
    wide = _gradient(config, dtypes.Dtypes())
    narrow = _gradient(config, dtypes.Dtypes(fp8=recipe))
    self.assertNotEqual(float(wide[0]), float(narrow[0]))
    cosine = _cosine(wide[1], narrow[1])
    self.assertBetween(cosine, 0.95, 0.999999)

  def test_what_waits_is_fp8(self):
    layers_, tokens, width, out = 3, 4 * 64, 512, 2 * 5

    def kept(remat, **caches):
      recipe = fp8_recipe.Recipe(**caches)
      config = tiny.config(
        first_k_dense_replace=layers_,
        num_nextn_predict_layers=0,
        intermediate_size=width,
      )
      model = deepseek.DeepSeek(
        config,
        dtypes.Dtypes(compute="bfloat16", fp8=recipe),
        config_lib.Execution(remat=remat),
      )

      def loss(params, tokens):
        tree = {"params": params}
        features = model.apply(tree, tokens, method="features")
        return features["hidden"].astype(jnp.float32).sum()

      text = io.StringIO()
      with contextlib.redirect_stdout(text):
        jax.ad_checkpoint.print_saved_residuals(
          loss, _shapes(config)["params"], tiny.tokens(4, 64)
        )
      lines = text.getvalue().splitlines()
      return collections.Counter(line.split()[0] for line in lines)

    gate = f"[{layers_},{tokens},{width}]"
    attended = f"[{layers_},{tokens},{out}]"
    wide = (
      f"bf16[{layers_},4,64,{width}]",  # gate or up
      f"bf16[{layers_},{tokens},{width}]",  # their product
      f"bf16{attended}",
    )
    for remat in ("none", "paper"):
      found = kept(remat)
      self.assertEqual(found[f"f8_e4m3fn{gate}"], 2, remat)
      self.assertEqual(found[f"u8{attended}"], 1, remat)
      for name in wide:
        self.assertEqual(found[name], 0, (remat, name))
      found = kept(
        remat,
        cache_inputs="compute",
        cache_attention_output="compute",
        cache_swiglu_inputs="compute",
      )
      self.assertGreaterEqual(found[wide[0]], 2)
      self.assertGreaterEqual(found[wide[2]], 1)
      self.assertEqual(found[f"f8_e4m3fn{gate}"], 0)


class DecodingTest(absltest.TestCase):
  def test_reads_prompts_as_training_does(self):
    config = tiny.config(num_hidden_layers=2, first_k_dense_replace=1)
    rules = (("moe_layers/self_attn/*", "float8"),)
    named = dtypes.Dtypes(fp8=fp8_recipe.Recipe(rules=rules))
    variables, tokens = _variables(config), tiny.tokens(2, 7)
    trained, _ = tiny.apply(config, dtypes=named)(variables, tokens)
    model = decoder.Decoder(config, named)
    valid = jnp.ones(tokens.shape, bool)

    @jax.jit
    def logits(variables):
      hidden, _ = model.apply(
        variables, tokens, tokens, valid, method="prefill"
      )
      return model.apply(variables, hidden, method="logits")

    found = logits(layout.to_layers(config, variables))
    chex.assert_trees_all_close(found, trained, atol=1e-5)
    plain = tiny.apply(config)(variables, tokens)[0]
    self.assertGreater(float(jnp.abs(plain - trained).max()), 1e-5)


class ShardedTest(parameterized.TestCase):
  @parameterized.product(
    names=(
      (axes.EMBED, axes.HEADS),
      (axes.MLP, axes.EMBED),
      (axes.EMBED, axes.LATENT),
    ),
    shape=(
      {"local": 8},
      {"data": 2, "local": 2, "tensor": 2},
      {"node": 2, "context": 2, "tensor": 2},
    ),
  )
  def test_a_layer_on_eight_devices_is_that_of_one(self, names, shape):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w, dy = (
      jax.random.normal(key, s)
      for key, s in zip(
        keys, ((8, 256, 256), (256, 256), (8, 256, 256)), strict=True
      )
    )
    probe = jnp.zeros((3, fp8_probe.WIDTH))
    layer = layers.Dense(256, names, 0.1, _FP8)

    def run(x, w, probe, dy):
      def apply(x, w, probe):
        tree = {"params": {"kernel": w}, fp8_probe.COLLECTION: {"probe": probe}}
        return layer.apply(tree, x)

      y, pull = jax.vjp(apply, x, w, probe)
      return y, *pull(dy)

    with mock.patch.object(layers, "name", lambda *_: "mlp/down_proj"):
      one = jax.jit(lambda *a: run(*a))(x, w, probe, dy)
      mesh = mesh_lib.make(mesh_lib.MeshShape(**shape))
      with sharding.use(mesh, sharding.Sharding()):
        eight = jax.jit(lambda *a: run(*a))(x, w, probe, dy)
    one, eight = jax.device_get((one, eight))
    for a, b in zip(one[:3], eight[:3], strict=True):
      chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-4)
    # Values are counted once; scales of `dy` may be of a share of it.
    chex.assert_trees_all_close(one[3][:, 0], eight[3][:, 0])
    chex.assert_trees_all_close(one[3][0], eight[3][0])

  def test_a_model_on_eight_devices_is_near_that_of_one(self):
    # Tiles end where a device's own part does, so that these tiny ones differ:
    # by no more than FP8 differs from float32.
    config = tiny.config(**{**_ALL, **_SMALL, "hidden_size": 128})
    variables, tokens = _variables(config), tiny.tokens(8, 16)
    model = deepseek.DeepSeek(config, _FP8)
    one, plain = (
      tiny.apply(config, dtypes=d)(variables, tokens)[0]
      for d in (_FP8, dtypes.Dtypes())
    )
    shape = {"data": 2, "context": 2, "tensor": 2}
    mesh = mesh_lib.make(mesh_lib.MeshShape(**shape))
    with sharding.use(mesh, sharding.Sharding()):
      eight, _ = jax.jit(lambda v, t: model.apply(v, t))(variables, tokens)
    eight = jax.device_get(eight)
    self.assertLess(
      float(jnp.linalg.norm(eight - one)),
      1.5 * float(jnp.linalg.norm(plain - one)),
    )


class IdentityTest(absltest.TestCase):
  def test_dtypes_can_be_told_apart(self):
    other = dataclasses.replace(
      _FP8, fp8=fp8_recipe.Recipe(gradient_format="e5m2")
    )
    self.assertLen({hash(_FP8), hash(other), hash(dtypes.Dtypes())}, 3)


if __name__ == "__main__":
  absltest.main()
