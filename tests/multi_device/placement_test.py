"""Decoding says the same wherever experts and their copies are."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import decoder
from dsx.models import deepseek
from dsx.models import layout
from dsx.models import placed
from dsx.ops import block_scaled
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import placement
from dsx.parallel import placement_file
from dsx.parallel import sharding as sharding_lib
from dsx.training import restore
from tests.models import tiny

_TOLERANCE = 2e-5
_LENGTH = 9


@functools.cache
def _config():
  return tiny.config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    q_lora_rank=16,
  )


def _placement(*, nodes, local, redundant, strategy, layers=("1", "2", "mtp_0")):
  rng = np.random.default_rng(3)
  shape = {
    "nodes": nodes,
    "local": local,
    "redundant": redundant,
    "groups": _config().n_group,
    "strategy": strategy,
  }
  experts = _config().n_routed_experts
  return placement_file.Placement(
    experts=experts,
    layers={
      name: placement.balance(rng.lognormal(size=experts), **shape)
      for name in layers
    },
    **shape,
  )


def _prefilled(variables, mesh=None, sharding=None):
  """Hidden states [B, L, D] of prompts, some shorter than others."""
  config = _config()
  model = decoder.Decoder(config, n_mtp=1)
  tokens = tiny.tokens(8, _LENGTH, seed=5)
  valid = jnp.arange(_LENGTH)[None, :] < jnp.arange(2, 10)[:, None]

  def run(variables):
    return model.apply(
      variables, tokens, jnp.roll(tokens, -1, 1), valid, method="prefill"
    )

  if mesh is None:
    hidden, remembered = jax.jit(run)(variables)
  else:
    with sharding_lib.use(mesh, sharding):
      hidden, remembered = jax.jit(run)(variables)
  keep = np.asarray(valid)
  return jax.tree.map(lambda x: np.asarray(x)[keep], (hidden, remembered))


def _plain():
  """Variables in the layout of decoding, in a tree of their own."""
  config = _config()
  copied = jax.tree.map(jnp.copy, tiny.variables(config))
  return layout.to_layers(config, copied)


class PlacementTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("permuted", {}, 1, 1, 0, "hierarchical"),
    ("on_one_device", {}, 1, 1, 0, "global"),
    ("one_hop", {"local": 4}, 1, 4, 4, "hierarchical"),
    ("two_hops", {"node": 2, "local": 2}, 2, 2, 4, "hierarchical"),
    ("anywhere", {"node": 2, "local": 2}, 2, 2, 4, "global"),
    ("many_copies", {"node": 4, "local": 2}, 4, 2, 8, "hierarchical"),
    ("global_4_nodes", {"node": 4, "local": 2}, 4, 2, 16, "global"),
    (
      "with_the_rest",
      {"data": 2, "local": 2, "tensor": 2},
      1,
      2,
      2,
      "hierarchical",
    ),
  )
  def test_results_stay(self, shape, nodes, local, redundant, strategy):
    found = _placement(
      nodes=nodes, local=local, redundant=redundant, strategy=strategy
    )
    expected = _prefilled(_plain())
    variables = _plain()
    mesh = sharding = None
    if shape:
      config = _config()
      mesh = mesh_lib.make(
        mesh_lib.MeshShape(**{"data": 1, **shape}),
        jax.devices()[: int(np.prod(list(shape.values())))],
      )
      sharding = sharding_lib.Sharding()
      target = restore.abstract(
        deepseek.DeepSeek(config), sharding.parameters, mesh
      )
      whole = jax.tree.map(
        lambda x, t: jax.device_put(x, t.sharding),
        tiny.variables(config),
        target,
      )
      variables = layout.to_layers(config, whole)
    found.check(_config(), mesh)
    variables = placed.placed(variables, found)
    gate = variables["params"]["layers_1"]["mlp"]["experts"]["gate_proj"]
    self.assertEqual(gate.shape[0], 8 + redundant)
    if shape:
      self.assertEqual(
        gate.sharding.shard_shape(gate.shape)[0],
        (8 + redundant) // (nodes * local),
      )
    chex.assert_trees_all_close(
      _prefilled(variables, mesh, sharding), expected, atol=_TOLERANCE
    )
