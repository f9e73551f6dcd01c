"""Tokens are dealt out to copies: evenly, and the same way every time."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import placement
from dsx.parallel import replicas
from dsx.parallel import sharding as sharding_lib
from dsx.parallel import ways


def _index(batch, length, experts, k, seed=0):
  """Distinct experts of each token, some tokens with none."""
  rng = np.random.default_rng(seed)
  order = rng.random((batch, length, experts)).argsort(-1)[..., :k]
  order[rng.random((batch, length)) < 0.2] = -1
  return order.astype(np.int32)


class ReplicasTest(parameterized.TestCase):
  def test_in_turn(self):
    table = replicas.of([2, 0, 1, 0], 3)
    index = jnp.array([[[0, 1], [0, 2], [-1, -1]], [[2, 0], [1, 0], [0, 1]]])
    self.assertEqual(
      replicas.choose(index, table).tolist(),
      [[[1, 2], [3, 0], [-1, -1]], [[0, 1], [2, 3], [1, 2]]],
    )

  @parameterized.parameters(((3, 40, 4),), ((64, 1, 4),), ((1, 7, 2),))
  def test_even_and_complete(self, shape):
    batch, length, k = shape
    load = np.random.default_rng(1).lognormal(0, 1, 16)
    found = placement.balance(load, nodes=1, local=4, redundant=8)
    table = replicas.of(found, 16)
    index = _index(batch, length, 16, k)
    place = np.asarray(jax.jit(replicas.choose)(index, table))
    np.testing.assert_array_equal(place < 0, index < 0)
    chosen = index >= 0
    np.testing.assert_array_equal(found[place[chosen]], index[chosen])
    received = np.bincount(place[chosen], minlength=24)
    for expert in range(16):
      own = received[found == expert]
      self.assertLessEqual(own.max() - own.min(), 1)

  def test_a_permutation(self):
    found = np.random.default_rng(0).permutation(8)
    index = _index(2, 5, 8, 3)
    place = np.asarray(replicas.choose(index, replicas.of(found, 8)))
    inverse = np.argsort(found)
    expected = np.where(index < 0, -1, inverse[np.maximum(index, 0)])
    np.testing.assert_array_equal(place, expected)

  def test_the_same_however_the_batch_is_spread(self):
    table = replicas.of([0, 1, 2, 3, 0, 0, 1, 3], 4)
    index = _index(16, 6, 4, 2)
    mesh = mesh_lib.make(mesh_lib.MeshShape(data=2, node=2, local=2))
    spread = jax.device_put(index, sharding_lib.batch_sharding(mesh))
    with jax.set_mesh(mesh):
      compiled = jax.jit(replicas.choose).lower(spread, table).compile()
    np.testing.assert_array_equal(
      compiled(spread, table), replicas.choose(index, table)
    )
    # Only sums of rows travel, 16 x 4 at most, and no token's choices.
    for line in compiled.as_text().splitlines():
      if " all-gather(" in line or " all-reduce(" in line:
        shape = line.split("[")[1].split("]")[0]
        size = int(np.prod([int(n) for n in shape.split(",") if n]))
        self.assertLessEqual(size, 16 * 4, line)

  @parameterized.parameters(([0, 1, 1],), ([0, 1, 3],), ([0, 1, 2, 5],))
  def test_experts_without_a_place(self, expert):
    with self.assertRaisesRegex(ValueError, "each of the experts 0 to 2 in at"):
      replicas.of(expert, 3)

  def test_nodes_of_a_token(self):
    """Whole groups on nodes: never more than topk_group; else any number."""
    config = config_lib.DeepSeekConfig()
    found = placement.balance(
      np.random.default_rng(0).lognormal(size=256),
      nodes=8,
      local=8,
      redundant=64,
      groups=8,
    )
    table = replicas.of(found, 256, nodes=8)
    rng = np.random.default_rng(1)
    groups = rng.random((64, 8)).argsort(-1)[:, :4]
    within = rng.random((64, 128)).argsort(-1)[:, :8]
    index = np.take_along_axis(groups, within // 32, 1) * 32 + within % 32
    place = np.asarray(replicas.choose(index[None].astype(np.int32), table))[0]
    crossed = [len(set(row // 40)) for row in place]
    self.assertEqual(max(crossed), 4)
    for nodes, whole, expected in (
      (8, 8, 4),
      (4, 8, 4),
      (8, 4, 8),
      (8, 1, 8),
      (2, 1, 2),
    ):
      mesh = jax.sharding.AbstractMesh((nodes,), ("node",))
      table = replicas.of(found, 256, nodes=whole)
      with jax.sharding.use_abstract_mesh(mesh):
        fields = replicas.routing_fields(config, table)
      self.assertEqual(fields.n_routed_experts, 320)
      self.assertEqual(ways.reachable(fields, nodes), expected)


if __name__ == "__main__":
  absltest.main()
