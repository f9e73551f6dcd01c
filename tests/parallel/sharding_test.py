"""Logical axes to mesh axes: every parameter, every strategy, every refusal."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

from dsx.models import deepseek
from dsx.parallel import axes
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding
from tests.models import shipped
from tests.models import tiny

_STRATEGIES = ("replicated", "zero1", "fully_sharded")
_SPREAD = ("node", "local")
# Models of published sizes; the others are for one machine.
_PUBLISHED = ("v2", "v2_lite", "v3", "v3_1")


@functools.cache
def _boxed(config):
  tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  model = deepseek.DeepSeek(config)
  return jax.eval_shape(model.init, jax.random.key(0), tokens)


def _abstract_mesh(**sizes) -> AbstractMesh:
  """A mesh of any size without devices."""
  return AbstractMesh(
    tuple(sizes.get(name, 1) for name in axes.MESH_AXES),
    axes.MESH_AXES,
    axis_types=(AxisType.Auto,) * len(axes.MESH_AXES),
  )


def _specs(boxed, rules, mesh) -> dict[str, P]:
  placed = sharding.shardings(boxed, rules, mesh)
  return {
    "/".join(key.key for key in path): leaf.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
  }


class ShippedConfigsTest(parameterized.TestCase):
  def test_there_are_some(self):
    self.assertContainsSubset(
      [*_PUBLISHED, "r1_tiny", "v3_small", "v3_tiny"], shipped.NAMES
    )

  @parameterized.product(model=shipped.NAMES, strategy=_STRATEGIES)
  def test_every_parameter_resolves_and_divides(self, model, strategy):
    """On 2 x 2 x 2 for the small, 8 machines for the published ones."""
    small = model not in _PUBLISHED
    # V2's 160 experts divide over 32 devices.
    published = {"node": 8, "local": 4 if model == "v2" else 8}
    sizes = {"node": 2, "local": 2} if small else published
    mesh = _abstract_mesh(tensor=2, **sizes)
    chosen = sharding.Sharding(strategy=strategy)
    boxed = _boxed(shipped.config(model))
    for rules in (chosen.parameters, chosen.optimizer):
      specs = _specs(boxed, rules, mesh)
      for path, spec in specs.items():
        parts = [p for p in spec if p is not None]
        flat = [a for p in parts for a in ([p] if isinstance(p, str) else p)]
        self.assertLen(set(flat), len(flat), f"{path} {spec}")
      # Every matrix but the router's is divided by tensor.
      undivided = {p for p, s in specs.items() if "tensor" not in s}
      for path in undivided:
        self.assertRegex(path, r"scale$|gate/|_a_proj|e_score_correction_bias")

  @parameterized.product(model=shipped.NAMES, spread=(True, False))
  def test_fully_sharded_spreads_every_matrix(self, model, spread):
    strategy = "fully_sharded" if spread else "replicated"
    rules = sharding.Sharding(strategy=strategy).parameters
    specs = _specs(_boxed(shipped.config(model)), rules, _abstract_mesh())
    for path, spec in specs.items():
      matrix = not path.endswith(("scale", "e_score_correction_bias"))
      self.assertEqual(_SPREAD in spec, spread and matrix, f"{path} {spec}")

  def test_zero1_spreads_experts_and_optimizer_state(self):
    chosen = sharding.Sharding(strategy="zero1")
    replicated = dict(sharding.Sharding(strategy="replicated").parameters)
    full = sharding.Sharding(strategy="fully_sharded")
    self.assertEqual(dict(chosen.parameters), replicated | {"experts": _SPREAD})
    self.assertEqual(chosen.optimizer, full.optimizer)


class SpecTest(parameterized.TestCase):
  @parameterized.parameters(
    ("params/embed_tokens/embedding", P("tensor", _SPREAD)),
    ("params/lm_head/kernel", P(_SPREAD, "tensor")),
    ("params/norm/scale", P(None)),
    ("params/dense_layers/self_attn/o_proj/kernel", P(None, "tensor", _SPREAD)),
    (
      "params/moe_layers/mlp/experts/down_proj",
      P(None, _SPREAD, "tensor", "data"),
    ),
    ("params/moe_layers/mlp/gate/kernel", P(None, _SPREAD, None)),
    ("params/mtp_0/eh_proj/kernel", P(_SPREAD, "tensor")),
    ("params/mtp_0/block/self_attn/q_b_proj/kernel", P(_SPREAD, "tensor")),
    ("router_bias/moe_layers/mlp/gate/e_score_correction_bias", P()),
  )
  def test_literal(self, path, expected):
    rules = sharding.Sharding(strategy="fully_sharded").parameters
    specs = _specs(_boxed(tiny.config()), rules, _abstract_mesh())
    self.assertEqual(specs[path], expected)

  def test_conflict(self):
    """Two dimensions of one array cannot lie on one mesh axis."""
    chosen = sharding.Sharding(overrides=(("expert_mlp", "local"),))
    with self.assertRaisesWithLiteralMatch(
      ValueError,
      "logical axes 'experts' and 'expert_mlp' of one array ('layers', "
      "'experts', 'expert_mlp', 'expert_embed') both lie on mesh axis 'local'; "
      "give one of them another axis in sharding.Sharding.overrides",
    ):
      _specs(_boxed(tiny.config()), chosen.parameters, _abstract_mesh())

  def test_name_without_a_rule(self):
    with self.assertRaisesRegex(
      ValueError, r"logical axis 'colour' has no rule; known: \['embed', "
    ):
      sharding.spec(("colour",), sharding.Sharding().parameters)

  def test_unnamed_dimensions_are_whole(self):
    spec = sharding.spec((None, "embed"), sharding.Sharding().parameters)
    self.assertEqual(spec, P(None, _SPREAD))

  def test_does_not_divide(self):
    rules = sharding.Sharding().parameters
    with self.assertRaisesWithLiteralMatch(
      ValueError,
      "['params']['dense_layers']['mlp']['down_proj']['kernel'] has shape "
      "(1, 20, 12): its dimension 12 does not divide over mesh axes ('node', "
      "'local') of 8 devices; change the mesh or sharding.Sharding",
    ):
      _specs(_boxed(tiny.config()), rules, _abstract_mesh(local=8))


class ShardingTest(parameterized.TestCase):
  def test_overrides_replace_rules(self):
    chosen = sharding.Sharding(
      strategy="fully_sharded",
      overrides=(("embed", None), ("experts", ("node", "local"))),
    )
    for rules in (chosen.parameters, chosen.optimizer):
      names = [name for name, _ in rules]
      self.assertLen(set(names), len(names))
      spec = sharding.spec(("experts", "embed", "expert_mlp"), rules)
      self.assertEqual(spec, P(_SPREAD, None, "tensor"))

  @parameterized.parameters(
    (
      {"strategy": "zero3"},
      "strategy='zero3': expected replicated, zero1 or fully_sharded; fix "
      "sharding.Sharding.strategy",
    ),
    (
      {"overrides": (("expert", "local"),)},
      "overrides: logical axis 'expert' is unknown: expected one of heads, "
      "mlp, expert_mlp, vocab, layers, embed, latent, latent_in, experts, "
      "expert_embed, router, norm; fix sharding.Sharding.overrides",
    ),
    (
      {"overrides": (("experts", ("node", "lokal")),)},
      "overrides: mesh axis 'lokal' is unknown: expected one of pipe, data, "
      "node, local, context, tensor; fix sharding.Sharding.overrides",
    ),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesWithLiteralMatch(ValueError, message):
      sharding.Sharding(**fields)


class PlacementTest(parameterized.TestCase):
  """On eight real (CPU) devices."""

  def setUp(self):
    super().setUp()
    self.config = tiny.config()
    self.mesh = mesh_lib.make(mesh_lib.MeshShape(node=2, local=2, tensor=2))

  def test_parameters_are_divided(self):
    config = tiny.config(vocab_size=28, q_lora_rank=8)  # both divide
    rules = sharding.Sharding(strategy="fully_sharded").parameters
    placement = sharding.shardings(_boxed(config), rules, self.mesh)
    table = placement["params"]["embed_tokens"]["embedding"]
    placed = jax.device_put(np.zeros((28, 12), np.float32), table)
    self.assertEqual(placed.addressable_shards[0].data.shape, (14, 3))
    whole = sharding.replicated(self.mesh)
    placed = jax.device_put(np.zeros((28, 12), np.float32), whole)
    self.assertEqual(placed.addressable_shards[0].data.shape, (28, 12))

  @parameterized.parameters(0, 1)
  def test_batches_are_divided(self, leading):
    spread = sharding.batch_sharding(self.mesh, leading)
    shape = (3,) * leading + (8, 5)
    placed = jax.device_put(np.zeros(shape), spread)
    self.assertEqual(
      placed.addressable_shards[0].data.shape, (3,) * leading + (2, 5)
    )

  def test_constraints_reach_the_compiler(self):
    """Linen drops them silently under a mesh that JAX does not know of."""
    model = deepseek.DeepSeek(self.config)
    variables, tokens = tiny.variables(self.config), tiny.tokens(8, 4)

    def text():
      lowered = jax.jit(lambda v, t: model.apply(v, t)).lower(variables, tokens)
      return lowered.as_text()

    with sharding.use(self.mesh, sharding.Sharding()):
      constrained = text()
    heads = '[{"data", "node", "local"}, {"context"}, {"tensor"}, {}]'
    hidden = '[{"data", "node", "local"}, {"context"}, {}]'
    for expected in (heads, hidden):
      self.assertRegex(
        constrained,
        r"sdy.sharding_constraint .*" + _pattern(expected),
      )
    self.assertNotIn("sharding_constraint", text())

  def test_unbox(self):
    names = (axes.EMBED, axes.MLP)
    boxed = {"a": nn.LogicallyPartitioned(jnp.ones((2, 3)), names), "b": 1}
    out = sharding.unbox(boxed)
    self.assertEqual(out["b"], 1)
    self.assertEqual(out["a"].shape, (2, 3))
    # Also of shapes, and under a mesh, where Linen's own would constrain.
    with sharding.use(self.mesh, sharding.Sharding()):
      shapes = sharding.unbox(_boxed(self.config))
    leaf = shapes["params"]["norm"]["scale"]
    self.assertEqual(leaf.shape, (12,))


def _pattern(text: str) -> str:
  return "".join("\\" + c if c in "[]{}" else c for c in text)


if __name__ == "__main__":
  absltest.main()
