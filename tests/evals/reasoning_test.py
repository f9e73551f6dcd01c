"""Scores of held-out problems, on answers by hand."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.evals import reasoning


def _answers(text: str):
  """`a` to `z` are answers of which `r` is right; `-` is none, `!` an error."""
  return [
    reasoning.Answered(
      right=c == "r",
      answer=None if c in "-!" else c,
      length=4,
      truncated=c == "-",
      error="broken" if c == "!" else "",
    )
    for c in text
  ]


class ReasoningTest(parameterized.TestCase):
  def test_scores(self):
    evaluation = reasoning.Evaluation(samples=4, k=(2, 4))
    score = reasoning.score(
      [_answers("rrra"), _answers("aarb"), _answers("a-!b")], evaluation
    )
    self.assertAlmostEqual(score.accuracy.mean, (3 / 4 + 1 / 4 + 0) / 3)
    self.assertAlmostEqual(score.pass_at[2].mean, (1 + 1 / 2 + 0) / 3)
    self.assertAlmostEqual(score.pass_at[4].mean, 2 / 3)
    self.assertAlmostEqual(score.consensus_at[4].mean, 1 / 3)
    self.assertLessEqual(score.accuracy.low, score.accuracy.mean)
    self.assertGreaterEqual(score.accuracy.high, score.accuracy.mean)
    self.assertEqual(score.length, 4)
    self.assertAlmostEqual(score.truncated, 1 / 12)
    self.assertAlmostEqual(score.errors, 1 / 12)
    self.assertEqual(score.by_group, {})

  def test_record_takes_the_largest_k(self):
    evaluation = reasoning.Evaluation(samples=4, k=(2, 4))
    record = reasoning.score([_answers("rarr")], evaluation).record()
    self.assertEqual((record["k"], record["pass_1"]), (4, 0.75))
    self.assertEqual((record["pass_k"], record["cons_k"]), (1.0, 1.0))
    self.assertEqual(record["pass_1_low"], 0.75)

  def test_groups(self):
    evaluation = reasoning.Evaluation(samples=2, k=())
    score = reasoning.score(
      [_answers("rr"), _answers("ra"), _answers("aa")], evaluation, "xyy"
    )
    self.assertEqual(score.by_group["x"].mean, 1.0)
    self.assertEqual(score.by_group["y"].mean, 0.25)
    self.assertEqual(score.record()["accuracy_y"], 0.25)
    self.assertIn("  y ", score.table())
    self.assertEqual(score.record()["k"], 1)

  def test_table_says_it_all(self):
    evaluation = reasoning.Evaluation(samples=4, k=(4,))
    table = reasoning.score([_answers("rrr-")], evaluation).table()
    for words in ("pass@1", "0.750", "pass@4", "cons@4", "25.0% truncated"):
      self.assertIn(words, table)

  def test_report_s_numbers_are_the_default(self):
    sampling = reasoning.Evaluation().sampling(50)
    self.assertEqual((sampling.temperature, sampling.top_p), (0.6, 0.95))
    self.assertEqual(sampling.max_new_tokens, 50)
    longer = reasoning.Evaluation(max_new_tokens=70)
    self.assertEqual(longer.sampling(50).max_new_tokens, 70)

  @parameterized.parameters(
    ({"samples": 0}, "samples=0: expected at least 1"),
    ({"samples": 4, "k": (8,)}, "k=8: expected 1 to samples=4"),
    ({"problems": -1}, "problems=-1: expected at least 0"),
    ({"level": 1.0}, "level=1.0: expected a number between 0 and 1"),
    ({"top_p": 0.0}, "top_p=0.0: expected above 0"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      reasoning.Evaluation(**fields)

  def test_wrong_number_of_answers(self):
    evaluation = reasoning.Evaluation(samples=2, k=())
    with self.assertRaisesRegex(ValueError, r"answered\[1\] has 1 answers"):
      reasoning.score([_answers("rr"), _answers("r")], evaluation)
    with self.assertRaisesRegex(ValueError, "at least one problem"):
      reasoning.score([], evaluation)


if __name__ == "__main__":
  absltest.main()
