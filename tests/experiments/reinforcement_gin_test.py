"""Gin files of reinforcement learning: what they build, and what it says."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.rl import dry_run
from dsx.rl import rollout
from experiments import configuration
from experiments import evaluate_reasoning
from experiments import grpo

_PAPER = ("r1_zero", "r1_rl1", "r1_rl2")
_TINY = ("r1_zero_tiny", "countdown_tiny")


def _built(name: str, *bindings: str, target: str = grpo.TARGET):
  file = f"gin_configs/rl/{name}.gin"
  configuration.prepare(target, [file], bindings, seed=3)
  return configuration.build(target)


def _tiny(name: str, **more):
  return _built(name, "start.Start.path = 'runs/cold_start'", **more)


class PaperTest(parameterized.TestCase):
  """The report's numbers, as the second version of R1's report gives them."""

  @parameterized.parameters(*_PAPER)
  def test_of_all(self, name):
    run = _built(name)
    self.assertEqual(run.seed, 3)
    self.assertEqual((run.group_size, run.prompts_per_step), (16, 32))
    self.assertEqual(run.prompts_per_rollout * run.group_size, 8192)
    self.assertEqual(run.updates_per_rollout, 16)
    self.assertEqual(run.learning_rate, 3e-6)
    self.assertEqual(run.reference_every, 400)
    self.assertEqual(run.update.objective.kl_coefficient, 0.001)
    self.assertEqual(run.update.objective.kl, "k3")
    self.assertTrue(run.replays)
    self.assertEqual((run.rewards.accuracy, run.rewards.format), (1.0, 1.0))

  @parameterized.parameters(*_PAPER)
  def test_can_be_looked_at(self, name):
    run = _built(name)
    text = dry_run.describe(run)
    self.assertIn("= 8,192", text)
    self.assertIn("on each of 512 device(s)", text)
    self.assertIn("matches no file", text)

  def test_r1_zero(self):
    run = _built("r1_zero")
    self.assertEqual(run.steps, 10_400)
    self.assertEqual(run.template.kind, "r1_zero")
    self.assertEqual(run.sampling.temperature, 1.0)
    self.assertEqual([run.longest(8199), run.longest(8200)], [32768, 65536])
    self.assertEqual(run.rewards.language, 0)

  def test_first_reinforcement_learning(self):
    run = _built("r1_rl1")
    objective = run.update.objective
    self.assertEqual((objective.clip_low, objective.clip_high), (10.0, 10.0))
    self.assertEqual(run.longest(run.steps), 32768)
    self.assertEqual(run.rewards.language, 1.0)
    self.assertTrue(run.template.opens_thought)

  def test_second_reinforcement_learning(self):
    run = _built("r1_rl2")
    self.assertEqual(run.sampling.temperature, 0.7)
    self.assertEqual((run.steps, run.general_steps), (1_700, 400))
    self.assertEqual(run.general.files, ("problems/general/*.jsonl",))
    self.assertEqual(run.problems.files, ("problems/train/*.jsonl",))


class TinyTest(parameterized.TestCase):
  @parameterized.parameters(*_TINY)
  def test_has_problems_on_both_sides(self, name):
    run = _tiny(name)
    self.assertLen(run.problems.train(), 4096)
    self.assertLen(run.problems.held_out(), 256)
    self.assertIn("4,096 to learn from, 256 held out", dry_run.describe(run))

  def test_domains(self):
    kinds = [_tiny(name).problems.train()[0].domain for name in _TINY]
    self.assertEqual(kinds, ["addition", "countdown"])

  def test_start_has_to_be_named(self):
    with self.assertRaisesRegex(ValueError, "path"):
      _built("r1_zero_tiny")

  def test_examination_is_of_the_problems_that_were_not_learnt(self):
    found = _tiny("evaluate_tiny", target=evaluate_reasoning.TARGET)
    run = _tiny("r1_zero_tiny")
    self.assertEqual(found.problems.held_out(), run.problems.held_out())
    self.assertEqual(found.evaluation.temperature, 0.6)
    self.assertEqual(found.evaluation.top_p, 0.95)
    self.assertNotEqual(found.decoding, rollout.DECODING)
    self.assertEqual(found.seed, 3)


if __name__ == "__main__":
  absltest.main()
