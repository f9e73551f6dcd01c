"""Routing by hand, its properties, and the balance that hangs on it."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import routing


@dataclasses.dataclass(frozen=True)
class _Config:
  n_group: int = 1
  topk_group: int = 1
  num_experts_per_tok: int = 2
  topk_method: str = "noaux_tc"
  norm_topk_prob: bool = True
  routed_scaling_factor: float = 1.0


_GROUPED = _Config(n_group=2, topk_group=1)
_V3 = _Config(
  n_group=8, topk_group=4, num_experts_per_tok=8, routed_scaling_factor=2.5
)


def _scores(n_tokens=64, n_experts=32, seed=0):
  key = jax.random.key(seed)
  return jax.nn.sigmoid(jax.random.normal(key, (n_tokens, n_experts)))


def _row(*values):
  return jnp.array([values], jnp.float32)


def _bias(*values):
  return jnp.array(values, jnp.float32)


def _index(routed):
  return np.sort(np.asarray(routed.index), axis=-1).tolist()


class AffinitiesTest(parameterized.TestCase):
  def test_sigmoid(self):
    out = routing.affinities(_row(0.0, jnp.log(3.0)), "sigmoid")
    chex.assert_trees_all_close(out, _row(0.5, 0.75))

  def test_softmax(self):
    out = routing.affinities(_row(0.0, jnp.log(3.0)), "softmax")
    chex.assert_trees_all_close(out, _row(0.25, 0.75))


class RouteTest(parameterized.TestCase):
  def test_literal(self):
    """Two groups of two; group 0 has the best sum, group 1 the best expert."""
    scores = _row(0.6, 0.6, 0.9, 0.1)
    routed = routing.route(scores, None, _GROUPED)
    self.assertEqual(_index(routed), [[0, 1]])
    chex.assert_trees_all_close(routed.weight, _row(0.5, 0.5))
    chex.assert_trees_all_equal(routed.load, _bias(1, 1, 0, 0))

  def test_v2_ranks_groups_by_their_best_expert(self):
    scores = _row(0.6, 0.6, 0.9, 0.1)
    config = dataclasses.replace(
      _GROUPED, topk_method="group_limited_greedy", norm_topk_prob=False
    )
    routed = routing.route(scores, None, config)
    self.assertEqual(_index(routed), [[2, 3]])
    chex.assert_trees_all_close(routed.weight, _row(0.9, 0.1))

  def test_greedy_knows_no_groups(self):
    scores = _row(0.6, 0.5, 0.9, 0.1)
    config = dataclasses.replace(_GROUPED, topk_method="greedy")
    self.assertEqual(_index(routing.route(scores, None, config)), [[0, 2]])

  def test_groups_of_more_than_two_count_their_best_two(self):
    """Sums of all three would prefer group 0 (1.5 to 1.4)."""
    scores = _row(0.5, 0.5, 0.5, 0.9, 0.4, 0.1)
    self.assertEqual(_index(routing.route(scores, None, _GROUPED)), [[3, 4]])

  def test_bias_steers_selection_and_not_weights(self):
    scores = _row(0.8, 0.4, 0.2, 0.1)
    routed = routing.route(scores, _bias(-1.0, 0.0, 0.0, 0.2), _Config())
    self.assertEqual(_index(routed), [[1, 3]])
    order = np.argsort(np.asarray(routed.index)[0])
    chex.assert_trees_all_close(routed.weight[0][order], _bias(0.8, 0.2))

  def test_bias_steers_groups_too(self):
    scores = _row(0.6, 0.6, 0.5, 0.5)
    routed = routing.route(scores, _bias(0, 0, 0.2, 0.2), _GROUPED)
    self.assertEqual(_index(routed), [[2, 3]])

  def test_negative_biases_do_not_leave_the_group(self):
    """Masking other groups with 0, as early releases did, would leave it."""
    scores = _row(0.3, 0.2, 0.1, 0.1)
    routed = routing.route(scores, jnp.full((4,), -0.9), _GROUPED)
    self.assertEqual(_index(routed), [[0, 1]])

  @parameterized.parameters(
    # norm_topk_prob, factor, weights of affinities 0.6 and 0.2
    (True, 1.0, (0.75, 0.25)),
    (True, 2.5, (1.875, 0.625)),
    (False, 1.0, (0.6, 0.2)),
    (False, 16.0, (9.6, 3.2)),
  )
  def test_weights(self, normalise, factor, expected):
    config = _Config(norm_topk_prob=normalise, routed_scaling_factor=factor)
    routed = routing.route(_row(0.2, 0.6, 0.1), None, config)
    chex.assert_trees_all_close(
      jnp.sort(routed.weight, axis=-1, descending=True), _row(*expected)
    )

  @parameterized.parameters("noaux_tc", "group_limited_greedy")
  def test_never_more_groups_than_allowed(self, method):
    config = dataclasses.replace(_V3, topk_method=method)
    bias = 0.3 * jax.random.normal(jax.random.key(1), (32,))
    routed = routing.route(_scores(), bias, config)
    groups = np.asarray(routed.index) // 4
    self.assertLessEqual(max(len(set(row)) for row in groups), 4)
    # Without the limit, tokens would reach more.
    free = dataclasses.replace(config, topk_group=8)
    groups = np.asarray(routing.route(_scores(), bias, free).index) // 4
    self.assertGreater(max(len(set(row)) for row in groups), 4)

  def test_load_sums_to_tokens_times_experts(self):
    routed = routing.route(_scores(), None, _V3)
    self.assertEqual(float(routed.load.sum()), 64 * 8)
    counts = np.bincount(np.asarray(routed.index).reshape(-1), minlength=32)
    chex.assert_trees_all_equal(routed.load, counts.astype(np.float32))
    for row in np.asarray(routed.index):
      self.assertLen(set(row.tolist()), 8)

  def test_masked_tokens_are_routed_but_not_counted(self):
    mask = jnp.arange(64) < 10
    routed = routing.route(_scores(), None, _V3, mask=mask)
    whole = routing.route(_scores(), None, _V3)
    chex.assert_trees_all_equal(routed[:2], whole[:2])
    part = routing.route(_scores()[:10], None, _V3)
    chex.assert_trees_all_equal(routed.load, part.load)

  def test_one_bias_for_all_changes_nothing(self):
    routed = routing.route(_scores(), None, _V3)
    same = routing.route(_scores(), jnp.full((32,), 0.125), _V3)
    self.assertEqual(_index(routed), _index(same))
    chex.assert_trees_all_equal(routed.load, same.load)

  def test_gradient_reaches_affinities_through_weights_alone(self):
    scores, bias = _row(0.6, 0.2, 0.1), jnp.zeros((3,))

    def best(scores, bias):
      routed = routing.route(scores, bias, _Config())
      return routed.weight[0, 0] + 0.0 * routed.load.sum()

    grads = jax.grad(best, argnums=(0, 1))(scores, bias)
    # d(a / (a + b)) for a = 0.6, b = 0.2; the third was not chosen.
    chex.assert_trees_all_close(grads[0], _row(0.3125, -0.9375, 0.0), rtol=1e-5)
    chex.assert_trees_all_equal(grads[1], jnp.zeros((3,)))

  def test_affinities_must_be_float32(self):
    with self.assertRaises(AssertionError):
      routing.route(_scores().astype(jnp.bfloat16), None, _V3)


class BalanceLossTest(parameterized.TestCase):
  def test_literal(self):
    """Eq. 17 to 20 by hand: E = 2, K = 1, T = 2."""
    scores = jnp.array([[[0.6, 0.2], [0.3, 0.9]], [[0.6, 0.2], [0.8, 0.0]]])
    # First sequence: f = (1, 1), P = ((0.75 + 0.25) / 2, 0.5), loss 1.
    # Second: f = (2, 0), P_1 = (0.75 + 1) / 2, loss 1.75.
    loss = routing.balance_loss(scores, 1)
    chex.assert_trees_all_close(loss, jnp.array([1.0, 1.75]), rtol=1e-6)

  def test_counts_affinities_without_bias_and_groups(self):
    """The function sees neither: only the best K of each token count."""
    scores = _scores(6, 4).reshape(1, 6, 4)
    f, p = np.zeros(4), np.zeros(4)
    for row in np.asarray(scores[0], np.float64):
      f[np.argsort(row)[-2:]] += 4 / (2 * 6)
      p += row / row.sum() / 6
    loss = routing.balance_loss(scores, 2)
    chex.assert_trees_all_close(loss, jnp.array([f @ p]), rtol=1e-5)

  def test_range(self):
    """1 if every expert is chosen equally, E/K if K experts take it all."""
    even = jnp.eye(4)[None]
    chex.assert_trees_all_close(routing.balance_loss(even, 1), jnp.ones((1,)))
    collapsed = jnp.tile(jnp.array([1.0, 0, 0, 0]), (1, 4, 1))
    loss = routing.balance_loss(collapsed, 1)
    chex.assert_trees_all_close(loss, jnp.array([4.0]))

  def test_mask(self):
    scores = _scores(10, 4).reshape(1, 10, 4)
    mask = (jnp.arange(10) < 6)[None, :]
    loss = routing.balance_loss(scores, 2, mask=mask)
    expected = routing.balance_loss(scores[:, :6], 2)
    chex.assert_trees_all_close(loss, expected, rtol=1e-6)
    none = routing.balance_loss(scores, 2, mask=jnp.zeros((1, 10), bool))
    chex.assert_trees_all_equal(none, jnp.zeros((1,)))

  def test_gradient_flows_through_the_mean_affinity(self):
    """f is a count; P's gradient is checked against finite differences."""
    scores = _scores(5, 4).reshape(1, 5, 4)
    chex.assert_numerical_grads(
      lambda s: routing.balance_loss(s, 2).sum(),
      (scores,),
      order=1,
      atol=1e-2,
      rtol=1e-2,
    )
    grads = jax.grad(lambda s: routing.balance_loss(s, 2).sum())(scores)
    self.assertGreater(float(jnp.abs(grads).min()), 0.0)


class BiasTest(parameterized.TestCase):
  def test_literal_step(self):
    bias = routing.bias_step(
      jnp.array([0.1, 0.1, 0.1]), jnp.array([9.0, 6.0, 3.0]), 0.001
    )
    chex.assert_trees_all_close(bias, jnp.array([0.099, 0.1, 0.101]))

  def test_layers_have_means_of_their_own(self):
    load = jnp.array([[1.0, 3.0], [100.0, 50.0]])
    bias = routing.bias_step(jnp.zeros((2, 2)), load, 0.5)
    expected = jnp.array([[0.5, -0.5], [-0.5, 0.5]])
    chex.assert_trees_all_equal(bias, expected)

  @parameterized.parameters(("bfloat16", 383, 0.5), ("float32", 1000, 1.0))
  def test_bfloat16_biases_stall_at_one_half(self, dtype, moves, end):
    """Why biases are float32: half-way steps of 0.001 are rounded away."""
    load, speed = jnp.array([1.0, 2.0]), jnp.asarray(0.001, dtype)

    def step(bias, _):
      new = routing.bias_step(bias, load.astype(dtype), speed)
      return new, new[0] != bias[0]

    bias, moved = jax.lax.scan(step, jnp.zeros((2,), dtype), length=1000)
    self.assertEqual(int(moved.sum()), moves)
    self.assertAlmostEqual(float(bias[0]), end, places=4)

  def test_balances_a_skewed_router(self):
    """Following the bias step alone, the worst overload disappears."""
    scores = jax.nn.sigmoid(
      jax.random.normal(jax.random.key(3), (512, 8)) + jnp.arange(8)[None] / 4
    )
    config = _Config()

    def step(bias, _):
      load = routing.route(scores, bias, config).load
      return routing.bias_step(bias, load, 0.005), routing.max_violation(load)

    _, violations = jax.lax.scan(step, jnp.zeros((8,)), length=200)
    self.assertGreater(float(violations[0]), 1.0)
    self.assertLess(float(violations[-1]), 0.15)

  def test_max_violation(self):
    load = jnp.array([[4.0, 4.0], [6.0, 2.0], [0.0, 0.0]])
    chex.assert_trees_all_close(
      routing.max_violation(load), jnp.array([0.0, 0.5, -1.0])
    )


if __name__ == "__main__":
  absltest.main()
