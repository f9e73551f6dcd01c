"""Placements: complete, never worse than none, near the best there is."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.parallel import placement


def _load(experts, seed, spread=1.0):
  return np.random.default_rng(seed).lognormal(0.0, spread, experts)


def _optimum(load, devices, places):
  """The least that the busiest device can have to do, by trying everything."""
  sets = itertools.combinations(range(load.size), places // devices)
  best = np.inf
  for chosen in itertools.combinations_with_replacement(list(sets), devices):
    expert = np.ravel(chosen)
    if len(set(expert)) == load.size:
      busiest = placement.device_loads(load, expert, devices).max()
      best = min(best, busiest)
  return best


class BalanceTest(parameterized.TestCase):
  def test_heavy_with_light(self):
    expert = placement.balance([8.0, 7.0, 1.0, 2.0], nodes=1, local=2)
    self.assertEqual(expert.tolist(), [0, 2, 1, 3])

  def test_the_heaviest_has_a_copy(self):
    expert = placement.balance(
      [9.0, 4.0, 1.0], nodes=1, local=2, redundant=1, groups=1
    )
    loads = placement.device_loads([9.0, 4.0, 1.0], expert, 2)
    self.assertEqual(sorted(expert.tolist()), [0, 0, 1, 2])
    self.assertEqual(sorted(loads.tolist()), [5.5, 8.5])

  @parameterized.product(
    shape=[
      (16, 4, 2, 4, 0),
      (16, 4, 2, 4, 8),
      (16, 4, 4, 2, 16),
      (16, 4, 4, 2, 0),
      (24, 2, 2, 3, 12),
      (16, 8, 2, 8, 16),
      (256, 8, 4, 8, 32),
    ],
    strategy=["hierarchical", "global"],
    spread=[0.0, 0.3, 2.0],
  )
  def test_complete_and_never_worse(self, shape, strategy, spread):
    experts, groups, nodes, local, redundant = shape
    devices = nodes * local
    for seed in range(3):
      load = _load(experts, seed, spread)
      if seed == 2:
        load[: experts // 2] = 0.0
      expert = placement.balance(
        load,
        nodes=nodes,
        local=local,
        redundant=redundant,
        groups=groups,
        strategy=strategy,
      )
      self.assertLen(expert, experts + redundant)
      self.assertEqual(set(expert.tolist()), set(range(experts)))
      before = placement.device_loads(load, np.arange(experts), devices)
      after = placement.device_loads(load, expert, devices)
      self.assertAlmostEqual(after.sum(), load.sum())
      self.assertLessEqual(after.max(), before.max() * (1 + 1e-12))
      if strategy == "hierarchical":
        by_node = [x.reshape(nodes, -1).sum(1).max() for x in (after, before)]
        self.assertLessEqual(by_node[0], by_node[1] * (1 + 1e-12))
        homes = expert.reshape(nodes, -1) // (experts // groups)
        self.assertEqual(sum(len(set(h.tolist())) for h in homes), groups)

  @parameterized.parameters(
    # experts, devices, copies, worst ratio to the optimum
    (4, 2, 0, 1.0),
    (6, 3, 0, 1.0),
    (8, 4, 0, 1.0),
    (8, 2, 0, 1.05),
    (5, 3, 1, 1.1),
    (8, 2, 2, 1.1),
    (4, 2, 2, 4 / 3),
    (6, 3, 3, 4 / 3),
    (4, 4, 4, 4 / 3),
  )
  def test_near_the_optimum(self, experts, devices, redundant, worst):
    for seed in range(10):
      load = _load(experts, seed)
      expert = placement.balance(
        load, nodes=1, local=devices, redundant=redundant
      )
      found = placement.device_loads(load, expert, devices).max()
      best = _optimum(load, devices, experts + redundant)
      self.assertLessEqual(found, best * worst * (1 + 1e-12))
      self.assertGreaterEqual(found, best * (1 - 1e-12))

  def test_groups_on_nodes_as_well_as_can_be(self):
    """Of all ways to give 4 nodes 2 of 8 groups each, by trying them."""
    worst = 1.0
    for seed in range(10):
      load = _load(64, seed)
      weight = load.reshape(8, 8).sum(1)
      expert = placement.balance(load, nodes=4, local=2, groups=8)
      found = placement.device_loads(load, expert, 4).max()
      best = min(
        max(weight[list(pair)].sum() for pair in pairs)
        for pairs in _pairings(tuple(range(8)))
      )
      worst = max(worst, found / best)
    self.assertLess(worst, 1.1)

  def test_at_the_size_of_v3(self):
    """32 copies on 4 x 8 devices, as for prefilling (section 3.4.1)."""
    for seed in range(3):
      load = _load(256, seed, 0.7)
      shape = {"nodes": 4, "local": 8, "redundant": 32, "groups": 8}
      expert = placement.balance(load, **shape, strategy="hierarchical")
      loads = placement.device_loads(load, expert, 32).reshape(4, 8)
      # Nothing but whole groups on nodes stands in the way of perfection.
      self.assertLess(loads.max() / loads.mean(1).max(), 1.005)
      anywhere = placement.balance(load, **shape, strategy="global")
      after = placement.device_loads(load, anywhere, 32)
      self.assertLess(placement.imbalance(after), 1.005)
      self.assertGreater(
        placement.imbalance(placement.device_loads(load, np.arange(256), 32)),
        1.4,
      )

  def test_more_devices_than_experts(self):
    """One place a device, 64 of 320 for copies (section 3.4.2)."""
    load = _load(256, 0, 0.7)
    expert = placement.balance(load, nodes=40, local=8, redundant=64, groups=8)
    self.assertEqual(set(expert.tolist()), set(range(256)))
    count = np.bincount(expert)
    # No copy could be given to another expert with gain.
    busiest = (load / count).max()
    self.assertGreaterEqual(
      (load / np.maximum(count - 1, 1))[count > 1].min(), busiest
    )

  def test_nothing_measured(self):
    expert = placement.balance(np.zeros(8), nodes=2, local=2, groups=2)
    self.assertEqual(set(expert.tolist()), set(range(8)))
    self.assertEqual(
      placement.imbalance(placement.device_loads(np.zeros(8), expert, 4)), 1.0
    )

  @parameterized.parameters(
    ({"redundant": 1}, "redundant=1: expected the 8 experts .* 0 or 4 would"),
    ({"redundant": 28}, "redundant=28: expected at most 24, with which every"),
    (
      {"redundant": 12, "groups": 2, "strategy": "hierarchical"},
      "redundant=12: expected at most 8, .* device of its node has",
    ),
    ({"groups": 3}, "groups=3: expected a divisor of the 8 experts"),
    ({"nodes": 0}, "nodes=0: expected at least 1; raise it"),
    ({"strategy": "best"}, "strategy='best': expected one of auto, hier"),
    (
      {"groups": 1, "strategy": "hierarchical"},
      "expected groups=1 to divide over nodes=2",
    ),
  )
  def test_numbers_that_do_not_fit(self, changes, message):
    shape = {"nodes": 2, "local": 2} | changes
    with self.assertRaisesRegex(ValueError, message):
      placement.balance(np.ones(8), **shape)

  @parameterized.parameters(
    ([[1.0] * 4],), ([1, 2, 3, float("nan")],), ([-1, 0],)
  )
  def test_loads_that_are_none(self, load):
    with self.assertRaisesRegex(ValueError, "load of shape .* numbers from 0"):
      placement.balance(load, nodes=1, local=2)


def _pairings(items):
  """All ways to divide items into pairs."""
  if not items:
    yield ()
    return
  first, *rest = items
  for other in rest:
    left = tuple(x for x in rest if x != other)
    for pairs in _pairings(left):
      yield ((first, other), *pairs)


if __name__ == "__main__":
  absltest.main()
