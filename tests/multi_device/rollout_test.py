"""Rollouts say the same however the policy is spread over devices."""

from absl.testing import absltest
import chex
import jax
import numpy as np

from dsx.inference import decoding
from dsx.inference import sampling
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import rollout
from dsx.training import restore
from tests.models import tiny

_PROMPTS = ([5, 6, 7, 8, 9, 10], [11], [12, 13, 14])


class RolloutTest(absltest.TestCase):
  def test_on_a_mesh(self):
    config = tiny.config(
      vocab_size=32,
      hidden_size=16,
      intermediate_size=24,
      num_attention_heads=4,
    )
    mesh = mesh_lib.make(mesh_lib.MeshShape(data=2, local=2, tensor=2))
    sharding = sharding_lib.Sharding(strategy="fully_sharded")
    target = restore.abstract(
      deepseek.DeepSeek(config), sharding.parameters, mesh
    )
    plain = tiny.variables(config)
    placed = jax.tree.map(
      lambda x, t: jax.device_put(x, t.sharding), plain, target
    )

    def sampled(variables, **options):
      roller = rollout.Roller(
        config,
        decoding=decoding.Decoding(
          slots=8, page_size=4, steps=6, record_experts=True
        ),
        eos=3,
        **options,
      )
      roller.load(jax.tree.map(lambda x: 1.1 * x, variables), 0)
      how = sampling.Sampling(temperature=1.0, max_new_tokens=11)
      fields = {"group_size": 4, "sampling": how, "run_seed": 0, "step": 0}
      roller.sample(_PROMPTS, **fields)
      roller.load(variables, 1)
      return roller.sample(_PROMPTS, **fields)

    spread = sampled(placed, mesh=mesh, sharding=sharding)
    for ours, theirs in zip(spread, sampled(plain), strict=True):
      self.assertEqual(ours.tokens.tolist(), theirs.tokens.tolist())
      np.testing.assert_array_equal(
        np.sort(ours.experts), np.sort(theirs.experts)
      )
      self.assertEqual(ours.version.tolist(), [1] * len(ours.tokens))
      chex.assert_trees_all_close(ours.logprob, theirs.logprob, atol=1e-4)


if __name__ == "__main__":
  absltest.main()
