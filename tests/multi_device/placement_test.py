"""Results stay wherever experts and their copies are."""

import functools

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsx.inference import decoding as decoding_lib
from dsx.inference import engine as engine_lib
from dsx.inference import request as request_lib
from dsx.inference import sampling
from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import layout
from dsx.models import moe
from dsx.models import placed
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import placement
from dsx.parallel import placement_file
from dsx.parallel import replicas
from dsx.parallel import sharding as sharding_lib
from dsx.training import restore
from tests.models import tiny

_ROWS, _LENGTH = 8, 9
_CONFIG = tiny.config(
  vocab_size=32,
  hidden_size=16,
  intermediate_size=24,
  num_attention_heads=4,
  q_lora_rank=16,
  num_hidden_layers=2,
)


def _mesh(**shape):
  mesh = mesh_lib.MeshShape(**{"data": 1, **shape})
  return mesh_lib.make(mesh, jax.devices()[: int(np.prod([*shape.values()]))])


def _placement(mesh, redundant, strategy, layers=("1",)):
  """Of loads that have little to do with those of the test."""
  shape = {
    "nodes": mesh.shape["node"],
    "local": mesh.shape["local"],
    "redundant": redundant,
    "groups": _CONFIG.n_group,
    "strategy": strategy,
  }
  rng = np.random.default_rng(3)
  found = placement_file.Placement(
    experts=_CONFIG.n_routed_experts,
    layers={
      name: placement.balance(rng.lognormal(size=8), **shape) for name in layers
    },
    **shape,
  )
  found.check(_CONFIG, mesh)
  return found


def _inputs():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(_ROWS, _LENGTH, _CONFIG.hidden_size))
  valid = np.arange(_LENGTH)[None, :] < np.arange(2, 2 + _ROWS)[:, None]
  return jnp.asarray(x, jnp.float32), jnp.asarray(valid)


def _layer():
  """Variables of one layer of experts, as if it were of a whole model."""
  whole = layout.to_layers(_CONFIG, tiny.variables(_CONFIG))
  return {name: {"layers_1": tree["layers_1"]} for name, tree in whole.items()}


def _applied(variables, dispatch=config_lib.Dispatch()):  # noqa: B008
  execution = config_lib.Execution(dispatch=dispatch)
  model = moe.MoE(_CONFIG, execution=execution)
  own = {name: tree["layers_1"]["mlp"] for name, tree in variables.items()}
  x, valid = _inputs()
  y, aux = jax.jit(model.apply)(own, x, None, valid)
  return np.asarray(y), np.asarray(aux["load"])


@functools.cache
def _expected():
  return _applied(_layer())


class LayerTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("one_hop", {"local": 4}, 4, "hierarchical", {}),
    ("two_hops", {"node": 2, "local": 2}, 4, "hierarchical", {}),
    ("anywhere", {"node": 2, "local": 2}, 4, "global", {}),
    ("four_nodes", {"node": 4, "local": 2}, 8, "hierarchical", {}),
    ("anywhere_on_four", {"node": 4, "local": 2}, 16, "global", {}),
    (
      "in_rounds",
      {"node": 4, "local": 2},
      8,
      "hierarchical",
      {"capacity_factor": 0.5},
    ),
    ("permuted", {"node": 2, "local": 4}, 0, "hierarchical", {}),
    ("tensor", {"data": 2, "local": 2, "tensor": 2}, 2, "hierarchical", {}),
  )
  def test_results_stay(self, shape, redundant, strategy, dispatch):
    mesh = _mesh(**shape)
    found = _placement(mesh, redundant, strategy)
    variables = _layer()
    experts = variables["params"]["layers_1"]["mlp"]["experts"]
    into = nn.LogicallyPartitioned
    for name, matrix in experts.items():
      names = ("experts", "expert_embed", "expert_mlp")
      names = names if name != "down_proj" else (names[0], *names[:0:-1])
      rules = sharding_lib.Sharding().parameters
      placement_of = sharding_lib.shardings(into(matrix, names), rules, mesh)
      experts[name] = jax.device_put(matrix, placement_of)
    variables = placed.placed(variables, found)
    for matrix in experts.values():
      self.assertEqual(matrix.shape[0], 8 + redundant)
      held = matrix.sharding.shard_shape(matrix.shape)[0]
      self.assertEqual(held * found.nodes * found.local, 8 + redundant)
    with sharding_lib.use(mesh, sharding_lib.Sharding()):
      y, load = _applied(variables, config_lib.Dispatch(**dispatch))
    valid = np.asarray(_inputs()[1])
    expected, expected_load = _expected()
    chex.assert_trees_all_close(y[valid], expected[valid], atol=1e-5)
    np.testing.assert_array_equal(load, expected_load)

  def test_a_placement_for_fewer_nodes_drops_nothing(self):
    """Groups on two nodes of four: more than topk_group for a token."""
    mesh = _mesh(node=4, local=2)
    found = _placement(_mesh(node=2, local=4), 8, "hierarchical")
    variables = placed.placed(_layer(), found)
    table = variables["placement"]["layers_1"]["mlp"]["experts"]["replicas"]
    self.assertEqual(table.nodes, 2)
    with sharding_lib.use(mesh, sharding_lib.Sharding()):
      fields = replicas.routing_fields(_CONFIG, table)
      y, _ = _applied(variables)
    self.assertEqual(fields.topk_method, "greedy")
    valid = np.asarray(_inputs()[1])
    chex.assert_trees_all_close(y[valid], _expected()[0][valid], atol=1e-5)


def _texts(variables, **where):
  engine = engine_lib.Engine(
    _CONFIG,
    variables,
    decoding=decoding_lib.Decoding(slots=4, page_size=4, steps=4),
    **where,
  )
  rng = np.random.default_rng(0)
  texts = {}
  for seed, n in enumerate((1, 5, 9, 20, 4)):
    how = sampling.Sampling(max_new_tokens=12, temperature=1.0, seed=seed)
    prompt = tuple(rng.integers(0, 32, n).tolist())
    texts[engine.submit(request_lib.Request(prompt=prompt, sampling=how))] = []
  while engine.busy:
    for update in engine.step():
      texts[update.request] += [drawn.token for drawn in update.drawn]
  return texts


class EngineTest(parameterized.TestCase):
  def test_texts_stay(self):
    mesh, sharding = _mesh(node=2, local=2), sharding_lib.Sharding()
    found = _placement(mesh, 4, "hierarchical")
    model = deepseek.DeepSeek(_CONFIG)
    target = restore.abstract(model, sharding.parameters, mesh)
    plain = tiny.variables(_CONFIG)
    variables = jax.tree.map(
      lambda x, t: jax.device_put(x, t.sharding), plain, target
    )
    variables = layout.to_layers(_CONFIG, variables)
    variables = placed.placed(variables, found)
    self.assertEqual(
      _texts(variables, mesh=mesh, sharding=sharding), _texts(plain)
    )
