"""An update on eight devices is what it is on one."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import objective
from dsx.rl import update
from dsx.training import state as state_lib
from tests.rl import tiny_policy

_SETTINGS = update.Settings(
  objective=objective.Objective(kl_coefficient=0.3, entropy_coefficient=0.01),
  mtp_weight=0.3,
  bias_update_speed=0.01,
  micro_batch_tokens=256,
)
_ADVANTAGES = np.random.default_rng(1).normal(size=40).astype(np.float32)


@functools.cache
def _samples():
  return tiny_policy.samples(40)


@functools.cache
def _run(shape=None, strategy="replicated", **execution):
  """(old, reference, facts, gradient, biases) of both passes."""
  model = deepseek.DeepSeek(
    tiny_policy.model().config, execution=config_lib.Execution(**execution)
  )
  mesh = mesh_lib.make(
    mesh_lib.MeshShape(**{"data": 1} | dict(shape or ())),
    jax.devices() if shape else jax.devices()[:1],
  )
  sharding = sharding_lib.Sharding(strategy=strategy)
  samples = _samples()
  starts = [tiny_policy.start(seed) for seed in range(3)]
  with sharding_lib.use(mesh, sharding):
    boxed = state_lib.abstract(model, tiny_policy.PLAIN)
    placement = state_lib.shardings(boxed, sharding, mesh)
    updater = update.Updater(
      model,
      tiny_policy.PLAIN,
      _SETTINGS,
      sampling=tiny_policy.SAMPLING,
      placement=placement,
      mesh=mesh,
    )
    old, reference, now = (jax.device_put(s, placement) for s in starts)
    found = updater.recompute(old, samples, reference)
    state, facts = updater.update(
      now, samples, _ADVANTAGES, found.logprobs, learning_rate=1.0
    )
    grads = tiny_policy.gradient(starts[2], jax.device_get(state))
  facts |= found.facts
  facts = {k: v for k, v in facts.items() if "filled" not in k}
  bias = jax.device_get(state.router_bias)
  return found.logprobs, facts, grads, bias


class UpdateTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("data", {"data": 8}, "replicated", {}),
    (
      "two_hop_in_halves",
      {"node": 2, "local": 4},
      "zero1",
      {"overlap": "two_batches", "remat": "full"},
    ),
    (
      "everything",
      {"local": 2, "tensor": 2, "context": 2},
      "fully_sharded",
      {},
    ),
  )
  def test_equals_one_device(self, shape, strategy, execution):
    logprobs, facts, grads, bias = _run(
      tuple(shape.items()), strategy, **execution
    )
    one = _run()
    chex.assert_trees_all_close(logprobs, one[0], atol=3e-5)
    # What differs by rounding alone has no meaning in relative terms.
    for name in facts:
      close = 1e-4 if "mismatch" in name else 1e-6
      np.testing.assert_allclose(
        facts[name], one[1][name], rtol=1e-3, atol=close, err_msg=name
      )
    chex.assert_trees_all_close(grads, one[2], rtol=2e-3, atol=3e-6)
    chex.assert_trees_all_equal(bias, one[3])
    moved = [np.abs(b).max() for b in jax.tree.leaves(bias)]
    np.testing.assert_allclose(moved, 0.01, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
