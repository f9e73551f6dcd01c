"""A step is the same however it is divided: devices, micro-batches, remat."""

import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

from absl.testing import parameterized
import chex
import jax
import numpy as np

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import optimizer as optimizer_lib
from dsx.training import state as state_lib
from dsx.training import step as step_lib
from tests.training import tiny

_OPTIMIZER = optimizer_lib.AdamW(moment_dtype="float32").transformation()
_STEPS = 3
# float32 sums in another order; Adam's first steps magnify the difference of
# gradients that are nearly zero, up to a fraction of the learning rate 1e-3.
_TOLERANCE = 1e-4
_HALVES = {"overlap": "two_batches"}
_FULL = {"remat": "full"}


def _dispatch(**fields):
  return {"dispatch": config_lib.Dispatch(**fields)}


@functools.cache
def _start():
  """The first state, made on one device."""
  model = deepseek.DeepSeek(tiny.model_config())
  mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
  boxed = state_lib.abstract(model, _OPTIMIZER)
  placement = state_lib.shardings(boxed, sharding_lib.Sharding(), mesh)
  return jax.device_get(
    state_lib.initialise(model, _OPTIMIZER, placement, seed=0)
  )


class Outcome(NamedTuple):
  """What a few steps on 16 sequences leave."""

  losses: list
  loads: list
  params: Any
  moments: Any  # of the gradients
  bias: Any


def _run(*, shape, strategy, micro_batches, **execution) -> Outcome:
  """Takes a few steps on as many devices as `shape` has."""
  model = deepseek.DeepSeek(
    tiny.model_config(), execution=config_lib.Execution(**execution)
  )
  devices = math.prod(max(1, n) for n in dataclasses.astuple(shape))
  mesh = mesh_lib.make(shape, jax.devices()[:devices])
  sharding = sharding_lib.Sharding(strategy=strategy)
  tokens = tiny.tokens(micro_batches, 16 // micro_batches, 17)
  scalars = tiny.scalars(micro_batches=np.int32(micro_batches))
  with sharding_lib.use(mesh, sharding):
    boxed = state_lib.abstract(model, _OPTIMIZER)
    placement = state_lib.shardings(boxed, sharding, mesh)
    state = jax.device_put(_start(), placement)
    take = step_lib.compiled(model, _OPTIMIZER, placement)
    batch = {"tokens": jax.device_put(tokens, _batch(mesh))}
    losses, loads = [], []
    for _ in range(_STEPS):
      state, metrics = take(state, batch, scalars)
      losses.append(float(metrics["loss"]))
      loads.append(np.asarray(metrics["load"]))
  left = (state.params, state.opt_state, state.router_bias)
  return Outcome(losses, loads, *jax.device_get(left))


def _batch(mesh):
  return sharding_lib.batch_sharding(mesh, leading=1)


class StepTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.reference = _run(
      shape=mesh_lib.MeshShape(data=1), strategy="replicated", micro_batches=1
    )

  @parameterized.named_parameters(
    ("one_device_accumulated", {}, "replicated", 4, {}),
    ("one_device_in_halves", {}, "replicated", 1, _HALVES),
    ("data_parallel", {"data": 8}, "replicated", 1, {}),
    (
      "data_parallel_accumulated",
      {"data": 8},
      "replicated",
      2,
      {"remat": "paper"},
    ),
    ("two_hop_2x4", {"node": 2, "local": 4}, "zero1", 2, {}),
    ("two_hop_4x2", {"node": 4, "local": 2}, "fully_sharded", 1, _FULL),
    ("two_hop_in_halves", {"node": 2, "local": 4}, "zero1", 1, _HALVES),
    (
      "two_hop_ragged_grouped",
      {"node": 4, "local": 2},
      "zero1",
      1,
      _dispatch(wire="ragged") | {"experts": "grouped"},
    ),
    (
      "two_hop_in_rounds",
      {"node": 4, "local": 2},
      "fully_sharded",
      1,
      _dispatch(capacity_factor=0.3) | {"remat": "paper"},
    ),
    (
      "flat",
      {"node": 2, "local": 4},
      "zero1",
      1,
      _dispatch(transport="flat"),
    ),
    (
      "dense_oracle",
      {"node": 2, "local": 4},
      "zero1",
      1,
      {"experts": "dense", "attention": "naive"},
    ),
    ("zero1", {"data": 2, "node": 2, "local": 2}, "zero1", 2, {}),
    (
      "fully_sharded",
      {"data": 2, "node": 2, "local": 2},
      "fully_sharded",
      1,
      {},
    ),
    (
      "tensor",
      {"data": 2, "local": 2, "tensor": 2},
      "fully_sharded",
      1,
      {},
    ),
    (
      "two_hop_tensor",
      {"node": 2, "local": 2, "tensor": 2},
      "zero1",
      1,
      {"experts": "grouped"},
    ),
    ("context", {"data": 4, "context": 2}, "replicated", 1, {}),
    (
      "two_hop_context",
      {"node": 2, "local": 2, "context": 2},
      "fully_sharded",
      1,
      {},
    ),
    (
      "local_tensor_context",
      {"local": 2, "tensor": 2, "context": 2},
      "zero1",
      2,
      {},
    ),
  )
  def test_equals_one_device(self, axes, strategy, micro, execution):
    found = _run(
      shape=mesh_lib.MeshShape(**{"data": 1} | axes),
      strategy=strategy,
      micro_batches=micro,
      **execution,
    )
    expected = self.reference
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    # Loads are counts and biases multiples of gamma: these are exact. A bias
    # stepped by each replica's or each micro-batch's own load would differ.
    chex.assert_trees_all_equal(found.loads, expected.loads)
    chex.assert_trees_all_equal(found.bias, expected.bias)
    chex.assert_trees_all_close(
      found.moments, expected.moments, rtol=1e-3, atol=1e-6
    )
    chex.assert_trees_all_close(found.params, expected.params, atol=_TOLERANCE)

  def test_first_state_is_the_same_on_a_mesh(self):
    model = deepseek.DeepSeek(tiny.model_config())
    sharding = sharding_lib.Sharding(strategy="fully_sharded")
    mesh = mesh_lib.make(mesh_lib.MeshShape(data=2, node=2, local=2))
    with sharding_lib.use(mesh, sharding):
      boxed = state_lib.abstract(model, _OPTIMIZER)
      placement = state_lib.shardings(boxed, sharding, mesh)
      state = state_lib.initialise(model, _OPTIMIZER, placement, seed=0)
    chex.assert_trees_all_equal(jax.device_get(state), _start())

  def test_bias_moved_by_the_global_load(self):
    """The reference is not trivially equal: own loads differ from global."""
    moved = self.reference.bias["moe_layers"]["mlp"]["gate"][
      "e_score_correction_bias"
    ][0]
    expected = np.zeros(8, np.float32)
    for load in self.reference.loads:
      expected += np.float32(0.001) * np.sign(load[0].mean() - load[0])
    np.testing.assert_allclose(moved, expected, atol=1e-7)
    self.assertGreater(np.abs(moved).max(), 0)
