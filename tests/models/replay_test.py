"""Experts chosen elsewhere, replayed: values, gradients, every way to run."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import moe
from dsx.ops import dtypes
from dsx.ops import fp8_recipe
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from tests.models import oracle
from tests.models import tiny

_B, _L = 8, 16
# Divides over meshes.
_CONFIG = tiny.config(vocab_size=32, hidden_size=16)


def _experts(*shape, seed=0):
  """Experts [..., K], none twice: those that no router would choose."""
  rng = np.random.default_rng(seed)
  chosen = rng.random((*shape, _CONFIG.n_routed_experts)).argsort(-1)
  return chosen[..., : _CONFIG.num_experts_per_tok].astype(np.int16)


def _layer():
  """Variables of one expert layer."""
  whole = tiny.variables(_CONFIG)
  return {
    part: tiny.layer(whole[part]["moe_layers"]["mlp"], 0)
    for part in ("params", "router_bias")
  }


def _tokens():
  return tiny.tokens(_B, _L)


@functools.cache
def _replayed(shape=None, **execution):
  """(hidden, load, gradients) with given experts, some of them negative."""
  model = deepseek.DeepSeek(
    _CONFIG, execution=config_lib.Execution(**execution)
  )
  variables = tiny.variables(_CONFIG)
  experts = _experts(_B, _L, _CONFIG.num_moe_layers)
  experts[:, ::3] = -1
  valid = np.ones((_B, _L), bool)
  valid[0, 10:] = False

  def run(params, tokens, experts, valid):
    aux = model.apply(
      {"params": params, "router_bias": variables["router_bias"]},
      tokens,
      experts=experts,
      valid=valid,
      method="features",
    )
    hidden = jnp.where(valid[:, :, None], aux["hidden"], 0.0)
    return jnp.square(hidden[..., :5]).sum(), (hidden, aux["load"])

  run = jax.jit(jax.grad(run, has_aux=True))
  arguments = variables["params"], _tokens(), experts, valid
  if shape is None:
    return run(*arguments)
  mesh = mesh_lib.make(mesh_lib.MeshShape(**{"data": 1} | dict(shape)))
  sharding = sharding_lib.Sharding(strategy="zero1")
  with sharding_lib.use(mesh, sharding):
    boxed = jax.eval_shape(model.init, jax.random.key(0), _tokens())
    place = sharding_lib.shardings(boxed["params"], sharding.parameters, mesh)
    params, *rest = jax.tree.map(np.asarray, arguments)
    rest = jax.device_put(rest, sharding_lib.batch_sharding(mesh))
    return jax.device_get(run(jax.device_put(params, place), *rest))


class LayerTest(parameterized.TestCase):
  @parameterized.parameters("v3", "v2")
  def test_equals_the_equations(self, variant):
    c = tiny.config(**tiny.VARIANTS[variant])
    whole = tiny.variables(c)
    variables = {"params": tiny.layer(whole["params"]["moe_layers"]["mlp"], 0)}
    bias = None
    if c.has_router_bias:
      biases = tiny.layer(whole["router_bias"]["moe_layers"]["mlp"], 0)
      variables["router_bias"] = biases
      bias = np.asarray(biases["gate"]["e_score_correction_bias"], np.float64)
    x = jax.random.normal(jax.random.key(0), (2, 13, 12))
    experts = _experts(2, 13)
    experts[0, 4, 1] = experts[1, 7:9] = -1  # these choose for themselves
    own = oracle.choose
    given = iter(experts.reshape(26, -1).tolist())

    def choose(*args):
      chosen = next(given)
      return own(*args) if min(chosen) < 0 else chosen

    with mock.patch.object(oracle, "choose", choose):
      theirs, load = oracle.moe(
        c,
        oracle.float64(variables["params"]),
        bias,
        np.asarray(x, np.float64).reshape(26, 12),
      )
    y, aux = moe.MoE(c).apply(variables, x, experts=experts)
    theirs = theirs.reshape(2, 13, 12).astype(np.float32)
    chex.assert_trees_all_close(y, theirs, atol=3e-5)
    chex.assert_trees_all_equal(aux["load"], load.astype(np.float32))
    free, _ = moe.MoE(c).apply(variables, x)
    self.assertGreater(float(jnp.abs(y - free).max()), 0.1)

  def test_router_learns_from_experts_it_did_not_choose(self):
    """The gradient of the gate weights is that of finite differences."""
    variables = _layer()
    x = jax.random.normal(jax.random.key(0), (1, 5, 16))
    experts = _experts(1, 5)

    @jax.jit
    def loss(kernel):
      params = {**variables["params"], "gate": {"kernel": kernel}}
      y, _ = moe.MoE(_CONFIG).apply(
        {**variables, "params": params}, x, experts=experts
      )
      return jnp.sin(y).sum()

    kernel = variables["params"]["gate"]["kernel"]
    direction = jax.random.normal(jax.random.key(1), kernel.shape)
    step = 1e-2 * direction
    found = float((jax.grad(loss)(kernel) * direction).sum())
    expected = float(loss(kernel + step) - loss(kernel - step)) / 2e-2
    self.assertGreater(abs(expected), 0.01)
    np.testing.assert_allclose(found, expected, rtol=2e-2)

  def test_in_fp8(self):
    """Experts are as given, however the layer rounds what they compute."""
    variables = _layer()
    x = jax.random.normal(jax.random.key(0), (2, 13, 16))
    experts = _experts(2, 13)
    recipe = dtypes.Dtypes(fp8=fp8_recipe.Recipe())
    wide, narrow = (
      jax.jit(moe.MoE(_CONFIG, d, name="mlp").apply)(
        variables, x, experts=experts
      )
      for d in (dtypes.Dtypes(), recipe)
    )
    load = np.bincount(experts.ravel(), minlength=8).astype(np.float32)
    chex.assert_trees_all_equal(narrow[1]["load"], load)
    gap = jnp.linalg.norm(narrow[0] - wide[0]) / jnp.linalg.norm(wide[0])
    self.assertBetween(float(gap), 1e-3, 0.1)


class ModelTest(parameterized.TestCase):
  def test_own_choice_changes_nothing(self):
    """Whatever was recorded of a forward pass gives it again, to the bit."""
    model = deepseek.DeepSeek(_CONFIG)
    variables, tokens = tiny.variables(_CONFIG), _tokens()

    @jax.jit
    def chosen(variables, tokens):
      return model.apply(
        variables, tokens, method="features", mutable=[moe.CHOSEN]
      )

    @jax.jit
    def replayed(variables, tokens, experts):
      return model.apply(variables, tokens, experts=experts, method="features")

    free, record = chosen(variables, tokens)
    index = record[moe.CHOSEN]["moe_layers"]["mlp"]["index"]
    index = np.moveaxis(np.asarray(index), 0, 2)  # [B, L, M, K]
    again = replayed(variables, tokens, index)
    chex.assert_trees_all_equal(again, free)
    # And where a perturbed router would choose otherwise, they still stand.
    noisy = jax.tree_util.tree_map_with_path(
      lambda path, x: -x if "gate" in str(path) else x, variables
    )
    moved = replayed(noisy, tokens, index)
    main = _CONFIG.num_moe_layers
    chex.assert_trees_all_equal(moved["load"][:main], free["load"][:main])
    drifted, _ = chosen(noisy, tokens)
    self.assertGreater(
      float(jnp.abs(drifted["load"] - free["load"])[:main].max()), 0
    )
    # Negative ones in one layer leave the other one's choice alone.
    half = index.copy()
    half[:, :, 1] = -1
    chex.assert_trees_all_equal(replayed(variables, tokens, half), free)

  @parameterized.named_parameters(
    ("remat", {"remat": "full"}),
    ("context", {"shape": (("local", 2), ("context", 4))}),
    (
      "two_hop_in_halves",
      {
        "shape": (("node", 2), ("local", 2), ("tensor", 2)),
        "overlap": "two_batches",
      },
    ),
  )
  def test_is_the_same_however_it_is_run(self, how):
    expected, found = _replayed(), _replayed(**how)
    chex.assert_trees_all_equal(found[1][1], expected[1][1])
    chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=2e-4)

  def test_padding_is_no_load(self):
    _, (_, load) = _replayed()
    main = load[: _CONFIG.num_moe_layers].sum(-1)
    tokens = (_B * _L - 6) * _CONFIG.num_experts_per_tok
    np.testing.assert_array_equal(main, [tokens] * len(main))

  def test_padding_does_not_matter(self):
    model = deepseek.DeepSeek(_CONFIG)
    variables, tokens = tiny.variables(_CONFIG), np.array(_tokens())
    valid = np.ones((_B, _L), bool)
    valid[:, 9:] = False
    run = jax.jit(
      lambda v, t: model.apply(v, t, valid=valid, method="features")
    )
    one = run(variables, tokens)
    tokens[:, 9:] = 1
    other = run(variables, tokens)
    for name in ("load", "balance_loss"):
      chex.assert_trees_all_equal(one[name], other[name])
    chex.assert_trees_all_equal(one["hidden"][:, :9], other["hidden"][:, :9])

  @parameterized.parameters("none", "detached")
  def test_mtp_modules_stay_out(self, mtp):
    model = deepseek.DeepSeek(_CONFIG)
    variables = tiny.variables(_CONFIG)

    def loss(params):
      aux = model.apply(
        {**variables, "params": params}, _tokens(), mtp=mtp, method="features"
      )
      return sum(jnp.square(h).sum() for h in aux["mtp_hidden"]) + 0.0, aux

    grads, aux = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    own = grads.pop("mtp_0")
    moved = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    self.assertEqual(moved, 0)
    taught = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(own))
    self.assertEqual(taught > 0, mtp == "detached")
    layers = _CONFIG.num_moe_layers + (mtp == "detached")
    self.assertEqual(aux["load"].shape, (layers, _CONFIG.n_routed_experts))

  @parameterized.parameters(
    ((_B, _L, 2, 2), r"\(8, 16, 2, 2\): expected \(8, 16, 2, 3\)"),
    ((_B, _L - 1, 2, 3), r"expected \(8, 16, 2, 3\), those of each token"),
  )
  def test_says_what_is_wrong(self, shape, message):
    with self.assertRaisesRegex(ValueError, message):
      deepseek.DeepSeek(_CONFIG).apply(
        tiny.variables(_CONFIG),
        _tokens(),
        experts=np.zeros(shape, np.int32),
        method="features",
      )


if __name__ == "__main__":
  absltest.main()
