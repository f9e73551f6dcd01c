"""What a rollout is made of, with a sampler that says what it is told to."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.data import arithmetic
from dsx.data import vocab
from dsx.rl import exercises
from dsx.rl import explorer
from dsx.rl import rewards
from dsx.rl import sample as sample_lib
from tests.rl import tiny_reinforcement

_PROBLEMS = exercises.Exercises(
  generated=(arithmetic.Generated(digits=1, train=40, held_out=4),)
).train()
_BYTES = vocab.ByteVocabulary()


class _Sampler:
  """Right answers to some problems of a call, or to every other try."""

  def __init__(self, *mixed: tuple[bool, ...]):
    """Takes for each call which of its problems get mixed answers."""
    self._mixed = mixed
    self.calls = []

  def sample(self, prompts, *, group_size, sampling, run_seed, step):
    self.calls.append((len(prompts), sampling.max_new_tokens, run_seed, step))
    mixed = self._mixed[len(self.calls) - 1]
    samples = []
    for number, prompt in enumerate(prompts):
      a, b = _BYTES.decode(prompt).strip().rstrip("=").split("+")
      for i in range(group_size):
        right = i % 2 == 0 if mixed[number] else True
        text = (
          f"<think></think><answer>{int(a) + int(b) + (not right)}</answer>"
        )
        tokens = np.array(_BYTES.encode(text), np.int32)
        samples.append(
          sample_lib.Sample(
            prompt_number=number,
            number=i,
            prompt=np.array(prompt, np.int32),
            tokens=tokens,
            logprob=np.zeros(len(tokens), np.float32),
            sampled_logprob=np.zeros(len(tokens), np.float32),
            experts=None,
            version=np.zeros(len(tokens), np.int32),
            truncated=False,
          )
        )
    return samples


def _explore(sampler, step=0, place=None, **changes):
  fields = {
    "prompts_per_step": 4,
    "updates_per_rollout": 1,
    "group_size": 2,
    "rewards": rewards.Rewards(format=0.5),
    **changes,
  }
  run = tiny_reinforcement.run(**fields)
  with rewards.Grader(run.rewards) as grader:
    return explorer.Explorer(
      run, _BYTES, sampler, grader, _PROBLEMS, _PROBLEMS if run.general else ()
    ).explore(step, place or explorer.Place())


class ExplorerTest(parameterized.TestCase):
  def test_all_groups_are_kept_in_order(self):
    sampler = _Sampler((True, False, True, False))
    found = _explore(sampler, place=explorer.Place(3, 8))
    self.assertEqual(
      [(s.prompt_number, s.number) for s in found.samples],
      [(p, i) for p in range(4) for i in range(2)],
    )
    expected = [[1.5, 0.5], [1.5, 1.5], [1.5, 0.5], [1.5, 1.5]]
    np.testing.assert_allclose(found.rewards, expected)
    self.assertTrue(found.counted.all())
    self.assertEqual(found.place, explorer.Place(4, 12))
    self.assertEqual(sampler.calls, [(4, 12, 0, 3)])
    self.assertEqual(found.facts["zero_std"], 0.5)
    self.assertEqual(found.facts["pass_1"], 0.75)
    self.assertEqual(found.facts["epoch"], 12 / 40)
    tokens = sum(len(sample.tokens) for sample in found.samples)
    self.assertEqual(found.facts["answer_tokens"], tokens)

  def test_dynamic_sampling_draws_again_for_equal_groups(self):
    sampler = _Sampler(
      (True, False, False, True), (False, True), (False,), (False,)
    )
    found = _explore(sampler, dynamic_sampling=2)
    self.assertEqual([call[0] for call in sampler.calls], [4, 2, 1])
    self.assertEqual([call[3] for call in sampler.calls], [0, 1, 2])
    self.assertEqual(found.place, explorer.Place(3, 7))
    # Mixed ones in the order of their draws, then one that is left over.
    varied = found.rewards.std(1) > 0
    np.testing.assert_array_equal(varied, [True, True, True, False])
    self.assertEqual(
      [s.prompt_number for s in found.samples[::2]], [0, 1, 2, 3]
    )
    self.assertEqual(found.facts["answers"], 14)
    self.assertAlmostEqual(found.facts["zero_std"], 4 / 7)

  def test_dynamic_sampling_stops_when_there_are_enough(self):
    sampler = _Sampler((True,) * 4)
    _explore(sampler, dynamic_sampling=5)
    self.assertLen(sampler.calls, 1)

  @parameterized.parameters((5, 4, 0), (6, 2, 2), (7, 2, 2))
  def test_general_problems_come_last(self, step, problems, general):
    sampler = _Sampler((True,) * 4)
    found = _explore(
      sampler,
      step=step,
      steps=8,
      general=exercises.Exercises(generated=(arithmetic.Generated(),)),
      general_steps=2,
    )
    self.assertEqual(found.place.problems, problems)
    self.assertEqual(found.place.general, general)
    self.assertLen(found.samples, 8)

  def test_overlong_penalty_follows_the_longest_answer(self):
    sampler = _Sampler((False,) * 4)
    found = _explore(
      sampler, step=5, overlong_margin=10, lengthen=((2, 40), (5, 50))
    )
    self.assertEqual(sampler.calls[0][1], 50)
    lengths = np.array([len(s.tokens) for s in found.samples])
    expected = 1.5 - np.clip((lengths - 40) / 10, 0, 1)
    np.testing.assert_allclose(found.rewards.reshape(-1), expected, rtol=1e-6)
    self.assertLess(found.facts["reward_overlong"], 0.1)


if __name__ == "__main__":
  absltest.main()
