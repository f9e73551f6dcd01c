"""The table of sampler against trainer, on a policy of one layer."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from benchmarks import adding_policy
from benchmarks import mismatch
from tests.training import tiny


def _facts(most):
  return {f"mismatch_{n}": most for n in ("max", "mean", "kl", "large")}


class MeasureTest(absltest.TestCase):
  def test_a_policy_learns_to_add_and_float32_is_compared(self):
    config = tiny.model_config(
      vocab_size=320, num_hidden_layers=1, first_k_dense_replace=0
    )
    precisions = {"float32": mismatch.PRECISIONS["float32"]}
    pairs = (("float32", "float32"),)
    with (
      mock.patch.object(adding_policy, "build", lambda _: config),
      mock.patch.object(mismatch, "PRECISIONS", precisions),
      mock.patch.object(mismatch, "PAIRS", pairs),
    ):
      about, table = mismatch.measure("tiny", 30, prompts=2, group=2)
    # Of 320 tokens, alike likely at first: 5.8 nats.
    self.assertLess(float(about.split("(")[1].split()[0]), 5.0)
    rows = [
      [cell.strip() for cell in line.strip("|").split("|")]
      for line in table.splitlines()[2:]
    ]
    drafts_and_replay = [row[2:4] for row in rows]
    self.assertEqual(
      drafts_and_replay, [["0", "yes"], ["1", "yes"], ["0", "no"], ["1", "no"]]
    )
    for row in rows:
      self.assertBetween(float(row[4]), 0.0, mismatch.ROUNDING)
    self.assertEqual([row[-1] for row in rows[:2]], ["replayed"] * 2)
    self.assertEqual([row[-1] for row in rows[2:]], ["0.00%"] * 2)


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(0.01, float("nan"))
  def test_float32_with_replay_that_differs_is_refused(self, most):
    with self.assertRaisesRegex(ValueError, "^float32 with replay, drafts=1"):
      mismatch.check(("float32", "float32", 1, True), _facts(most))

  @parameterized.parameters(
    (("float32", "float32", 0, True), 1e-6),
    (("float32", "float32", 0, False), 0.5),
    (("bfloat16", "float32", 0, True), 0.5),
  )
  def test_what_else_there_is_passes(self, key, most):
    mismatch.check(key, _facts(most))

  def test_page_has_a_section_for_it(self):
    page = mismatch.report.RESULTS.read_text(encoding="utf-8")
    self.assertEqual(page.count(f"<!-- {mismatch.SECTION}: "), 1)
    self.assertEqual(page.count(f"<!-- /{mismatch.SECTION} -->"), 1)


if __name__ == "__main__":
  absltest.main()
