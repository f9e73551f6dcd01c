"""A step is the same however it is divided: devices, micro-batches, remat."""

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

_STEPS = 3
# float32 sums in another order; Adam's first steps magnify the difference of
# gradients that are nearly zero, up to a fraction of the learning rate 1e-3.
_TOLERANCE = 1e-4


def _run(*, devices, shape, strategy, micro_batches, remat="none"):
  """Losses, parameters, biases and loads after a few steps on 16 sequences."""
  model = deepseek.DeepSeek(
    tiny.model_config(), execution=config_lib.Execution(remat=remat)
  )
  optimizer = optimizer_lib.AdamW(moment_dtype="float32").transformation()
  mesh = mesh_lib.make(shape, jax.devices()[:devices])
  sharding = sharding_lib.Sharding(strategy=strategy)
  tokens = tiny.tokens(micro_batches, 16 // micro_batches, 17)
  scalars = tiny.scalars(micro_batches=np.int32(micro_batches))
  with sharding_lib.use(mesh, sharding):
    boxed = state_lib.abstract(model, optimizer)
    placement = state_lib.shardings(boxed, sharding, mesh)
    state = state_lib.initialise(model, optimizer, placement, seed=0)
    take = step_lib.compiled(model, optimizer, placement)
    batch = {"tokens": jax.device_put(tokens, _batch(mesh))}
    losses, loads = [], []
    for _ in range(_STEPS):
      state, metrics = take(state, batch, scalars)
      losses.append(float(metrics["loss"]))
      loads.append(np.asarray(metrics["load"]))
  return losses, jax.device_get((state.params, state.router_bias)), loads


def _batch(mesh):
  return sharding_lib.batch_sharding(mesh, leading=1)


class StepTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.reference = _run(
      devices=1,
      shape=mesh_lib.MeshShape(),
      strategy="replicated",
      micro_batches=1,
    )

  @parameterized.named_parameters(
    ("one_device_accumulated", 1, {}, "replicated", 4, "none"),
    ("data_parallel", 8, {}, "replicated", 1, "none"),
    ("data_parallel_accumulated", 8, {}, "replicated", 2, "paper"),
    ("zero1", 8, {"data": 2, "node": 2, "local": 2}, "zero1", 2, "none"),
    (
      "fully_sharded",
      8,
      {"data": 1, "node": 4, "local": 2},
      "fully_sharded",
      1,
      "full",
    ),
    (
      "tensor",
      8,
      {"data": 2, "local": 2, "tensor": 2},
      "fully_sharded",
      1,
      "none",
    ),
  )
  def test_equals_one_device(self, devices, axes, strategy, micro, remat):
    losses, (params, bias), loads = _run(
      devices=devices,
      shape=mesh_lib.MeshShape(**axes),
      strategy=strategy,
      micro_batches=micro,
      remat=remat,
    )
    expected_losses, (expected_params, expected_bias), expected_loads = (
      self.reference
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    # Loads are counts and biases multiples of gamma: these are exact. A bias
    # stepped by each replica's or each micro-batch's own load would differ.
    chex.assert_trees_all_equal(loads, expected_loads)
    chex.assert_trees_all_equal(bias, expected_bias)
    chex.assert_trees_all_close(params, expected_params, atol=_TOLERANCE)

  def test_bias_moved_by_the_global_load(self):
    """The reference is not trivially equal: own loads differ from global."""
    _, (_, bias), loads = self.reference
    moved = bias["moe_layers"]["mlp"]["gate"]["e_score_correction_bias"][0]
    expected = np.zeros(8, np.float32)
    for load in loads:
      expected += np.float32(0.001) * np.sign(load[0].mean() - load[0])
    np.testing.assert_allclose(moved, expected, atol=1e-7)
    self.assertGreater(np.abs(moved).max(), 0)
