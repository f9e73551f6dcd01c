"""Flags win over gin, and every continuation has its own seed."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.inference import decoding as decoding_lib
from dsx.inference import generation
from dsx.inference import sampling


class GenerationTest(parameterized.TestCase):
  def test_given_values_go_where_they_belong(self):
    how = generation.Generation(
      sampling=sampling.Sampling(top_k=3),
      decoding=decoding_lib.Decoding(steps=5),
    )
    found = how.replace(
      temperature=0.0, slots=2, samples=4, seed=7, context=None, stop=("a",)
    )
    self.assertEqual(
      found,
      generation.Generation(
        seed=7,
        samples=4,
        sampling=sampling.Sampling(temperature=0.0, top_k=3, stop=("a",)),
        decoding=decoding_lib.Decoding(slots=2, steps=5),
      ),
    )
    self.assertEqual(how.replace(seed=None), how)

  def test_requests(self):
    how = generation.Generation(samples=2, seed=5).replace(temperature=0.1)
    requests = how.requests([[1, 2], [3]])
    prompts = [request.prompt for request in requests]
    self.assertEqual(prompts, [(1, 2), (1, 2), (3,), (3,)])
    seeds = [request.sampling.seed for request in requests]
    self.assertEqual(
      seeds,
      [
        5,
        generation.folded(5, 0, 1),
        generation.folded(5, 1, 0),
        generation.folded(5, 1, 1),
      ],
    )
    self.assertLen(set(seeds), 4)
    self.assertEqual({r.sampling.temperature for r in requests}, {0.1})

  def test_seeds_do_not_depend_on_what_else_there_is(self):
    few = generation.Generation(samples=2).requests([[1], [2]])
    many = generation.Generation(samples=3).requests([[4], [5], [6]])
    self.assertEqual(few[2].sampling.seed, many[3].sampling.seed)

  def test_seeds_are_64_bits_and_seldom_alike(self):
    seeds = {
      generation.folded(seed, i, j)
      for seed in (0, 1, 10, 2**64 - 1)
      for i in range(30)
      for j in range(30)
    }
    self.assertLen(seeds, 3600)
    self.assertBetween(min(seeds), 0, 2**58)
    self.assertBetween(max(seeds), 2**63, 2**64 - 1)

  @parameterized.parameters(
    ({"samples": 0}, "samples=0: expected at least 1; raise it"),
    ({"seed": -1}, "seed=-1: expected 0 to 2**64 - 1; give another"),
    ({"max_new_tokens": 0}, "max_new_tokens=0: expected at least 1; raise it"),
    ({"slots": 0}, "slots=0: expected at least 1; raise it"),
    (
      {"temperature": float("nan")},
      "temperature=nan: expected a finite number of at least 0; 1 draws as the "
      "model predicts, 0 takes the best token",
    ),
    ({"top_p": 0.0}, "top_p=0.0: expected above 0 and at most 1; 1 keeps all"),
  )
  def test_bad_values(self, given, message):
    with self.assertRaises(ValueError) as caught:
      generation.Generation().replace(**given)
    self.assertEqual(str(caught.exception), message)

  def test_a_seed_at_the_wrong_place(self):
    with self.assertRaisesRegex(ValueError, r"sampling.seed=3: expected none"):
      generation.Generation(sampling=sampling.Sampling(seed=3))


if __name__ == "__main__":
  absltest.main()
