"""Each rule speaks once, when it should and not before."""

import json

from absl.testing import absltest
from absl.testing import parameterized

from dsx.rl import alarms

_FINE = {
  "entropy": 1.0,
  "length": 20.0,
  "reward": 0.5,
  "truncated": 0.0,
  "repetition": 0.0,
  "zero_std": 0.1,
  "mismatch_mean": 1e-6,
}


def _watch(**changes) -> alarms.Watch:
  return alarms.Watch(alarms.Alarms(**{"window": 3, **changes}))


def _train(watch, *changes, first: int = 1) -> list[alarms.Alarm]:
  found = []
  for i, change in enumerate(changes):
    found += watch.trained({"step": first + i, **_FINE, **change})
  return found


def _examine(watch, *scores) -> list[alarms.Alarm]:
  found = []
  for i, (accuracy, at_k) in enumerate(scores):
    record = {"step": 10 * i, "k": 8, "pass_1": accuracy, "pass_k": at_k}
    found += watch.evaluated(record)
  return found


class AlarmsTest(parameterized.TestCase):
  def test_a_good_run_is_quiet(self):
    watch = _watch()
    self.assertEmpty(_train(watch, *[{}] * 20))
    self.assertEmpty(_examine(watch, (0.1, 0.5), (0.3, 0.6), (0.5, 0.8)))

  @parameterized.parameters(
    ("truncation", {"truncated": 0.3}),
    ("repetition", {"repetition": 0.31}),
    ("zero_std", {"zero_std": 0.95}),
    ("mismatch", {"mismatch_mean": 0.06}),
  )
  def test_a_mean_over_its_limit_is_said_once(self, rule, change):
    watch = _watch()
    found = _train(watch, *[change] * 9)
    self.assertEqual([(a.rule, a.step) for a in found], [(rule, 3)])
    self.assertEqual(watch.raised, {rule: 3})

  def test_one_bad_step_is_no_alarm(self):
    watch = _watch()
    bad = {"truncated": 0.6, "zero_std": 1.0, "entropy": 0.0}
    self.assertEmpty(_train(watch, {}, {}, {}, bad, {}, {}, {}))

  def test_entropy_is_compared_with_the_beginning(self):
    watch = _watch(entropy_share=0.1)
    falling = [{"entropy": e} for e in (1, 1, 1, 0.5, 0.2, 0.11, 0.09)]
    self.assertEmpty(_train(watch, *falling))
    (found,) = _train(watch, {"entropy": 0.05}, first=8)
    self.assertEqual(found.rule, "entropy")
    self.assertIn("fell from 1 to", found.words)

  def test_length_without_reward(self):
    longer = [{}] * 3 + [{"length": 40.0}] * 3
    (found,) = _train(_watch(), *longer)
    self.assertEqual((found.rule, found.step), ("length", 6))

  def test_length_that_pays_is_fine(self):
    longer = [{}] * 3 + [{"length": 40.0, "reward": 0.6}] * 3
    self.assertEmpty(_train(_watch(), *longer))

  def test_pass_at_k_has_to_fall_twice_running(self):
    scores = [(0.3, 0.8), (0.3, 0.69), (0.3, 0.75), (0.3, 0.7), (0.3, 0.69)]
    (found,) = _examine(_watch(), *scores)
    self.assertEqual((found.rule, found.step), ("pass_at_k", 40))
    self.assertIn("pass@8 fell from 0.800 to 0.690", found.words)

  def test_reward_up_and_accuracy_down(self):
    watch = _watch()
    _train(watch, *[{"reward": 0.5}] * 3)
    self.assertEmpty(_examine(watch, (0.6, 0.8)))
    _train(watch, *[{"reward": 0.9}] * 3, first=4)
    (found,) = _examine(watch, (0.4, 0.8), (0.4, 0.8))
    self.assertEqual(found.rule, "hacking")

  def test_both_down_is_no_hacking(self):
    watch = _watch()
    _train(watch, *[{"reward": 0.5}] * 3)
    self.assertEmpty(_examine(watch, (0.6, 0.8)))
    _train(watch, *[{"reward": 0.3}] * 3, first=4)
    self.assertEmpty(_examine(watch, (0.4, 0.8), (0.4, 0.8)))

  def test_what_it_has_seen_survives(self):
    steps = [{"entropy": 1.0}] * 4 + [{"entropy": 0.05}] * 6
    steps += [{"truncated": 0.9}] * 4
    whole = _watch()
    expected = _train(whole, *steps)
    self.assertLen(expected, 2)
    for cut in range(len(steps)):
      first = _watch()
      found = _train(first, *steps[:cut])
      state = json.loads(json.dumps(first.state()))
      second = alarms.Watch(alarms.Alarms(window=3), state)
      found += _train(second, *steps[cut:], first=cut + 1)
      self.assertEqual(found, expected, cut)
      self.assertEqual(second.state(), whole.state())

  def test_stops_on_the_rules_that_it_should(self):
    watch = _watch(stop_on=("zero_std",))
    found = _train(watch, *[{"truncated": 0.9, "zero_std": 1.0}] * 3)
    self.assertLen(found, 2)
    self.assertEqual(watch.stopping(found).rule, "zero_std")
    self.assertIsNone(_watch().stopping(found))

  @parameterized.parameters(
    ({"window": 0}, "window=0: expected at least 1"),
    ({"truncated": 0.0}, "truncated=0.0: expected more than 0"),
    ({"length_growth": 1.0}, "length_growth=1.0: expected a factor above 1"),
    ({"stop_on": ("entropie",)}, "stop_on='entropie': expected rules of"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      alarms.Alarms(**fields)

  def test_every_rule_is_documented(self):
    for rule in alarms.RULES:
      self.assertRegex(alarms.__doc__ or "", rf"(?m)^  {rule}  ")


if __name__ == "__main__":
  absltest.main()
