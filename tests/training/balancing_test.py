"""Balancing says what it is worth, on the loads it saw and on others."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.parallel import placement
from dsx.training import balancing
from dsx.training import placement_plot

_LAYERS = ["1", "2", "mtp_0"]


def _loads(records, seed=0, noise=0.1):
  """Loads that stay alike from record to record."""
  rng = np.random.default_rng(seed)
  base = rng.lognormal(0, 0.8, (1, len(_LAYERS), 16))
  return base * rng.lognormal(0, noise, (records, len(_LAYERS), 16))


class BalancingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def run_on(self, load, **how):
    lines = (
      {"kind": "load", "step": step, "layers": _LAYERS, "load": rows.tolist()}
      for step, rows in enumerate(load, 1)
    )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (self.folder / "metrics.jsonl").write_text(text)
    fields = {"nodes": 2, "local": 2, "redundant": 4, "groups": 4}
    return balancing.Balancing(**(fields | how)).run(self.folder)

  def test_by_hand(self):
    load = _loads(6)
    found = self.run_on(load, records=3, held_out=2)
    self.assertEqual(found.fitted_names, ["step 2", "step 3", "step 4"])
    self.assertEqual(found.later_names, ["step 5", "step 6"])
    self.assertEqual(list(found.placement.layers), _LAYERS)
    busiest = []
    for row, expert in enumerate(found.placement.layers.values()):
      total = load[1:4, row].sum(0)
      np.testing.assert_array_equal(
        expert,
        placement.balance(total, nodes=2, local=2, redundant=4, groups=4),
      )
      for compared, summed in (
        (found.fitted, total),
        (found.later, load[4:, row].sum(0)),
      ):
        devices = summed.reshape(4, 4).sum(1)
        share = summed / np.bincount(expert)
        placed = share[expert].reshape(4, 5).sum(1)
        nodes = [x.reshape(2, 2).sum(1) for x in (devices, placed)]
        expected = [x.max() / x.mean() for x in (devices, placed, *nodes)]
        np.testing.assert_allclose(compared.imbalances(row), expected)
        busiest.append((devices.max(), devices.mean()))
    first = np.array(busiest[::2]).sum(0)
    self.assertAlmostEqual(found.fitted.imbalances()[0], first[0] / first[1])

  def test_worth_it_on_loads_that_it_did_not_see(self):
    before, after, *_ = self.run_on(_loads(20)).later.imbalances()
    self.assertGreater(before, 1.3)
    self.assertLess(after, 1.12)

  @parameterized.parameters((1, 1, 0), (2, 1, 1), (7, 4, 3), (50, 10, 10))
  def test_no_more_than_half_is_held_out(self, records, fitted, later):
    found = self.run_on(_loads(records))
    self.assertLen(found.fitted_names, fitted)
    self.assertLen(found.later_names, later)
    self.assertEqual(found.later is None, later == 0)

  def test_table(self):
    found = self.run_on(_loads(4), held_out=1)
    lines = found.table().splitlines()
    self.assertEqual(
      lines[:3],
      [
        "3 layers of 16 experts in 4 groups on 2 x 2 devices, 4 places for"
        " copies, hierarchical",
        "placed by the loads of 3 records, step 1 to step 3",
        "held against those of step 4",
      ],
    )
    self.assertEqual([x.split()[0] for x in lines[-4:]], [*_LAYERS, "total"])
    for row, line in enumerate(lines[-4:]):
      layer = None if row == 3 else row
      numbers = [float(x) for x in line.split()[1:]]
      wanted = found.fitted.imbalances(layer) + found.later.imbalances(layer)
      np.testing.assert_allclose(numbers, wanted, atol=5e-4)

  def test_groups_of_the_run(self):
    with self.assertRaisesRegex(ValueError, "n_group in it; give Balancing.gr"):
      self.run_on(_loads(1), groups=None)
    config = {"n_routed_experts": 16, "n_group": 2, "topk_group": 1}
    (self.folder / "run.json").write_text(json.dumps({"config": config}))
    found = self.run_on(_loads(1), groups=None)
    self.assertEqual(found.placement.groups, 2)

  @parameterized.parameters(
    ({"redundant": 3}, "redundant=3: expected the 16 experts and their"),
    ({"groups": 3}, "groups=3: expected a divisor of the 16 experts"),
    ({"records": 0}, "records=0: expected at least 1"),
    ({"held_out": -1}, "held_out=-1: expected at least 0"),
  )
  def test_numbers_that_do_not_fit(self, how, message):
    with self.assertRaisesRegex(ValueError, message):
      self.run_on(_loads(2), **how)

  @parameterized.parameters(1, 20)
  def test_plot(self, records):
    found = self.run_on(_loads(records))
    first = placement_plot.write(found, self.folder / "a.png").read_bytes()
    again = placement_plot.write(found, self.folder / "b.png").read_bytes()
    self.assertEqual(first, again)
    self.assertStartsWith(first, b"\x89PNG")
    other = self.run_on(_loads(records, seed=1))
    differs = placement_plot.write(other, self.folder / "c.png").read_bytes()
    self.assertNotEqual(first, differs)


if __name__ == "__main__":
  absltest.main()
