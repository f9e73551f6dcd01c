"""What is measured of FP8 layers in training, and what is said of it."""

import dataclasses
import functools
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import layers
from dsx.ops import dtypes
from dsx.ops import fp8
from dsx.ops import fp8_probe
from dsx.ops import fp8_recipe
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import fp8_health
from tests.training import tiny

_CONFIG = tiny.model_config(num_hidden_layers=3)
# Without a dense layer, to compile less.
_SMALL = tiny.model_config(num_hidden_layers=2, first_k_dense_replace=0)
_FEW = fp8_recipe.Recipe(
  rules=(
    ("*/kv_a_proj_with_mqa", "float8"),
    ("*/experts", "float8"),
    ("*/eh_proj", "float8"),
  )
)
_KEY = jax.random.key(0)
_ATTENTION = (
  "self_attn/q_a_proj",
  "self_attn/q_b_proj",
  "self_attn/kv_a_proj_with_mqa",
  "self_attn/kv_b_proj",
  "self_attn/o_proj",
)
_MLP = ("gate_proj", "up_proj", "down_proj")


def _model(recipe) -> deepseek.DeepSeek:
  return deepseek.DeepSeek(_CONFIG, dtypes.Dtypes(fp8=recipe))


def _shapes(model):
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
  )


def _sums(x, tile=fp8.ROW_TILE):
  x = np.asarray(x, np.float32)
  sums = fp8_probe.statistics(jnp.asarray(x), fp8.quantise(x, tile))
  return np.asarray(sums)


class ProbesTest(parameterized.TestCase):
  def test_every_layer_of_the_recipe_has_one(self):
    recipe = fp8_recipe.Recipe(
      rules=(("mtp_*", "compute"), ("*/kv_b_proj", "compute"), ("*", "float8"))
    )
    model = _model(recipe)
    tree = fp8_health.probes(_shapes(model)["params"], recipe)
    self.assertEqual(set(tree), {"dense_layers", "moe_layers"})
    dense, moe = tree["dense_layers"], tree["moe_layers"]
    self.assertEqual(dense["mlp"]["up_proj"]["probe"].shape, (1, 3, 128))
    self.assertEqual(moe["self_attn"]["o_proj"]["probe"].shape, (2, 3, 128))
    self.assertEqual(moe["mlp"]["experts"]["probe"].shape, (2, 3, 3, 128))
    self.assertNotIn("kv_b_proj", moe["self_attn"])
    self.assertNotIn("gate", moe["mlp"])
    self.assertFalse(any(leaf.any() for leaf in jax.tree.leaves(tree)))

  def test_rows_are_named_and_in_the_order_of_the_layers(self):
    recipe = fp8_recipe.Recipe()
    model = _model(recipe)
    tree = fp8_health.probes(_shapes(model)["params"], recipe)
    tree = jax.tree.map(jnp.ones_like, tree)
    rows = fp8_health.by_layer(model.config, tree)
    experts = [f"mlp/experts/{name}" for name in _MLP]
    experts += [f"mlp/shared_experts/{name}" for name in _MLP]
    expected = [f"0/{name}" for name in _ATTENTION]
    expected += [f"0/mlp/{name}" for name in _MLP]
    for layer in ("1", "2", "mtp_0"):
      own = ["eh_proj"] if layer == "mtp_0" else []
      own += [*_ATTENTION, *experts]
      expected += [f"{layer}/{name}" for name in own]
    self.assertEqual(list(rows), expected)
    self.assertEqual(rows["mtp_0/eh_proj"].shape, (3, fp8_probe.WIDTH))

  def test_stacked_layers_and_matrices_keep_their_own_rows(self):
    model = _model(fp8_recipe.Recipe())
    probe = np.zeros((2, 3, 3, fp8_probe.WIDTH), np.float32)
    probe[1, 2, 0, 0] = 5.0
    tree = {"moe_layers": {"mlp": {"experts": {"probe": probe}}}}
    rows = fp8_health.by_layer(model.config, tree)
    self.assertEqual(list(rows), ["2/mlp/experts/down_proj"])
    self.assertEqual(rows["2/mlp/experts/down_proj"][0, 0], 5.0)


def _measured(*, shape=None, micro_batches=1, **execution):
  """The sums over the first of so many micro-batches of 8 sequences."""
  execution = config_lib.Execution(**execution)
  model = deepseek.DeepSeek(_SMALL, dtypes.Dtypes(fp8=_FEW), execution)
  shape = shape or mesh_lib.MeshShape()
  devices = math.prod(max(1, n) for n in dataclasses.astuple(shape))
  mesh = mesh_lib.make(shape, jax.devices()[:devices])
  rules = sharding_lib.Sharding(strategy="fully_sharded")
  tokens = tiny.tokens(micro_batches, 8, 17)
  measure = jax.jit(
    functools.partial(fp8_health.statistics, model),
    compiler_options={"xla_backend_optimization_level": 0},
  )
  with sharding_lib.use(mesh, rules):
    where = sharding_lib.shardings(_shapes(model), rules.parameters, mesh)
    variables = jax.device_put(_variables(), where)
    arrays = variables["params"], variables["router_bias"]
    batch_sharding = sharding_lib.batch_sharding(mesh, leading=1)
    batch = {"tokens": jax.device_put(tokens, batch_sharding)}
    scalars = tiny.scalars(micro_batches=np.int32(micro_batches))
    found = measure(*arrays, batch, scalars)
    return fp8_health.by_layer(_SMALL, found)


@functools.cache
def _variables():
  model = deepseek.DeepSeek(_SMALL)
  tokens = jnp.zeros((1, 8), jnp.int32)
  init = jax.jit(lambda: sharding_lib.unbox(model.init(_KEY, tokens)))
  return jax.device_get(init())


class MeasureTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.sums = _measured()

  def _assert_same(self, a, b):
    self.assertEqual(list(a), list(b))
    for name in a:
      # Another order of sums may move a value or two over an edge.
      np.testing.assert_allclose(a[name], b[name], atol=3, rtol=1e-3)

  def test_weights_are_those_of_their_own_row(self):
    params = _variables()["params"]
    blocks = {"mtp_0": params["mtp_0"]["block"]}
    for number in range(2):
      own = jax.tree.map(lambda x, i=number: x[i], params["moe_layers"])
      blocks[str(number)] = own
    for name, sums in self.sums.items():
      layer, *path = name.split("/")
      own = params["mtp_0"] if path == ["eh_proj"] else blocks[layer]
      for part in path:
        own = own[part]
      w = own["kernel"] if isinstance(own, dict) else own
      expected = _sums(w, fp8.BLOCK_TILE)
      np.testing.assert_array_equal(sums[1], expected, err_msg=name)

  def test_activations_are_what_enters_the_layer(self):
    params = _variables()["params"]
    tokens = tiny.tokens(1, 8, 17)[0, :, :-1]
    x = params["embed_tokens"]["embedding"][tokens]
    normed = layers.RMSNorm(1e-6).apply(
      {"params": {"scale": np.ones(32, np.float32)}}, x
    )
    expected = _sums(normed.reshape(-1, 32))
    found = self.sums["0/self_attn/kv_a_proj_with_mqa"]
    np.testing.assert_array_equal(found[0], expected)

  def test_every_layer_has_gradients_and_scales(self):
    for name, sums in self.sums.items():
      read = fp8_probe.read(sums)
      self.assertTrue(np.isfinite(read.scale_median).all(), name)
      np.testing.assert_array_equal(read.not_finite, [0, 0, 0], name)
      # Gradients are divided by 128 targets.
      self.assertLess(read.scale_median[2], read.scale_median[0], name)

  def test_devices_micro_batches_and_rematerialisation(self):
    shape = mesh_lib.MeshShape(node=2, local=4)
    found = _measured(shape=shape, micro_batches=2, remat="paper")
    self.assertEqual(list(found), list(self.sums))
    for name, sums in found.items():
      same = self.sums[name].copy()
      # Of the two micro-batches the first was measured; the whole batch has
      # twice the targets, so gradients are half as large.
      same[2, 4:-1] = same[2, 5:]
      # A token counts as often as it travels to experts.
      shares, expected = (a / a[:, :1] for a in (sums, same))
      np.testing.assert_allclose(
        shares[::2], expected[::2], atol=2e-3, err_msg=name
      )
      # Weights may be looked at by parts, whose blocks end with them.
      read, alone = fp8_probe.read(sums[1]), fp8_probe.read(same[1])
      self.assertAlmostEqual(read.underflow, alone.underflow, delta=2e-3)
      self.assertBetween(alone.scale_median - read.scale_median, 0, 1, name)
      if "/experts/" not in name:
        # Other orders of sums take a few values over an edge.
        np.testing.assert_allclose(
          sums[::2], same[::2], rtol=5e-3, atol=10, err_msg=name
        )


class RecordTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    lost = np.ones((1, 128))
    lost[0, :32] = 1e-9
    broken = np.ones((1, 128))
    broken[0, :2] = np.nan
    self.good, self.lost, self.broken = map(
      _sums, (np.full((1, 128), 448.0), lost, broken)
    )

  def test_literal(self):
    rows = {
      "0/self_attn/o_proj": np.stack([self.good, self.good, self.lost]),
      "mtp_0/eh_proj": np.stack([self.broken, self.good, 0 * self.good]),
    }
    record = fp8_health.record(7, rows)
    self.assertEqual((record["kind"], record["step"]), ("fp8", 7))
    self.assertEqual(record["layers"], list(rows))
    self.assertLen(record, 3 + 3 * 6)
    np.testing.assert_array_equal(record["gradient_underflow"], [0.25, np.nan])
    np.testing.assert_array_equal(record["activation_not_finite"], [0, 2 / 128])
    np.testing.assert_array_equal(record["weight_saturated"], [1, 1])
    np.testing.assert_array_equal(record["weight_scale_median"], [0, 0])
    np.testing.assert_array_equal(record["gradient_scale_max"], [-9, np.nan])

  def test_a_warning_names_the_worst_layer(self):
    good = np.stack([self.good] * 3)
    self.assertIsNone(fp8_health.warning(fp8_health.record(7, {"a": good})))
    lost = np.stack([self.good, self.good, self.lost])
    rows = {"a": good, "1/mlp/up_proj": lost, "b": lost}
    self.assertEqual(
      fp8_health.warning(fp8_health.record(7, rows)),
      "warning: FP8 at step 7: 25.00% of the gradient values of 1/mlp/up_proj "
      "are lost to underflow, and 1 more such layers",
    )
    rows["2/self_attn/o_proj"] = np.stack([self.good, self.broken, self.lost])
    self.assertEqual(
      fp8_health.warning(fp8_health.record(7, rows)),
      "warning: FP8 at step 7: 1.56% of the weight values of "
      "2/self_attn/o_proj are not finite",
    )

  def test_a_recipe_that_matches_nothing(self):
    record = fp8_health.record(7, {})
    self.assertEqual(record["layers"], [])
    self.assertIsNone(fp8_health.warning(record))


class DueTest(parameterized.TestCase):
  @parameterized.parameters(
    (fp8_recipe.Recipe(), 4, [1, 4, 8, 10]),
    (fp8_recipe.Recipe(), 0, []),
    (None, 4, []),
  )
  def test_steps(self, recipe, every, expected):
    health = fp8_health.Health(
      _model(recipe), mock.Mock(), every=every, total_steps=10
    )
    steps = [step for step in range(1, 11) if health.due(step)]
    self.assertEqual(steps, expected)

  def test_without_a_recipe_there_is_nothing_to_measure(self):
    with self.assertRaisesRegex(ValueError, r"^dtypes.fp8=None: expected a"):
      fp8_health.statistics(_model(None), {}, {}, {}, {})


if __name__ == "__main__":
  absltest.main()
