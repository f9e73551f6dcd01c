"""What a run refuses, and what makes it another run."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import arithmetic
from dsx.inference import sampling
from dsx.rl import exercises
from dsx.rl import objective
from dsx.rl import rewards
from tests.rl import tiny_reinforcement

_GENERAL = exercises.Exercises(generated=(arithmetic.Generated(),))


class ReinforcementTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"steps": 0}, "steps=0: expected at least 1"),
    ({"group_size": 1}, "group_size=1: expected at least 2"),
    ({"learning_rate": 0.0}, "learning_rate=0.0: expected more than 0"),
    ({"reference_every": 4}, "reference_every=4: expected a multiple of"),
    ({"general_steps": 3}, "general_steps=3: expected some with problems"),
    ({"general": _GENERAL}, "general_steps=0: expected some with problems"),
    ({"general": _GENERAL, "general_steps": 9}, "expected at most steps=7"),
    (
      {"general": _GENERAL, "general_steps": 2, "general_share": 0.0},
      "general_share=0.0: expected more than 0",
    ),
    ({"lengthen": ((5, 20), (2, 30))}, "expected .* with growing steps"),
    ({"lengthen": ((5, 64),)}, "max_new_tokens=64: expected less than"),
    ({"overlong_margin": 13}, "margin=13: expected 1 to longest=12"),
    (
      {"sampling": sampling.Sampling(max_new_tokens=4, temperature=0.0)},
      "temperature=0: expected more than 0",
    ),
    ({"keep_checkpoints": 0}, "keep_checkpoints=0: expected at least 1"),
  )
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      tiny_reinforcement.run(**changes)

  def test_learning_rate_warms_up(self):
    run = tiny_reinforcement.run(learning_rate=0.3, warmup_steps=2)
    rates = [run.rate(step) for step in range(4)]
    for found, expected in zip(rates, (0.1, 0.2, 0.3, 0.3), strict=True):
      self.assertAlmostEqual(found, expected)

  def test_answers_grow(self):
    run = tiny_reinforcement.run(lengthen=[(2, 20), (5, 30)])
    longest = [run.longest(step) for step in (0, 1, 2, 4, 5, 6)]
    self.assertEqual(longest, [12, 12, 20, 20, 30, 30])

  @parameterized.parameters(
    {"steps": 9},
    {"keep_checkpoints": 1},
    {"log_every": 5},
    {
      "rewards": rewards.Rewards(
        repetition=1.0, repetition_words=1, unended="graded", processes=7
      )
    },
  )
  def test_is_the_same_run(self, **changes):
    run = tiny_reinforcement.run()
    other = tiny_reinforcement.run(**changes)
    self.assertEqual(run.identity(), other.identity())

  @parameterized.parameters(
    {"seed": 1},
    {"group_size": 8},
    {"learning_rate": 0.1},
    {"rewards": rewards.Rewards()},
    {"dynamic_sampling": 1},
  )
  def test_is_another_run(self, **changes):
    run = tiny_reinforcement.run()
    other = tiny_reinforcement.run(**changes)
    self.assertNotEqual(run.identity(), other.identity())

  def test_another_objective_is_another_run(self):
    run = tiny_reinforcement.run()
    update = dataclasses.replace(
      run.update, objective=objective.Objective(clip_high=0.28)
    )
    other = dataclasses.replace(run, update=update)
    self.assertNotEqual(run.identity(), other.identity())
    # Micro-batches change no sum.
    update = dataclasses.replace(run.update, micro_batch_tokens=64)
    other = dataclasses.replace(run, update=update)
    self.assertEqual(run.identity(), other.identity())

  def test_identity_is_one_that_models_are_read_by(self):
    identity = tiny_reinforcement.run().identity()
    self.assertEqual(identity["kind"], "reinforcement")
    self.assertIsNone(identity["ema_decay"])
    self.assertEqual(identity["data"]["vocabulary"], "byte")
    self.assertEqual(identity["data"]["sequence_length"], 64)


if __name__ == "__main__":
  absltest.main()
