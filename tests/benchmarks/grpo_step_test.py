"""The comparison with trl, as far as it goes without trl."""

import io
import json
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from benchmarks import grpo_step
from benchmarks import grpo_step_sides as sides
from dsx.data import vocab
from dsx.rl import exercises
from tests.rl import tiny_reinforcement


def _step(seconds, **changes):
  parts = dict.fromkeys(sides.PHASES, seconds / 8)
  facts = {"seconds": seconds, "tokens": 100, "reward": 0.5}
  return parts | facts | changes


def _setting(**changes):
  fields: dict[str, Any] = {"weights": "policy", "prompts": 4, "group": 2}
  return sides.Setting(**(fields | {"longest": 9, "kl": 0.01} | changes))


class _Side:
  """Tells of steps that always take as long."""

  def __init__(self, name, seconds, log):
    self.name, self._seconds, self._log = name, seconds, log

  def take(self, steps):
    self._log.append((self.name, steps))
    return [_step(self._seconds)] * steps


class TurnsTest(absltest.TestCase):
  def test_steps_are_told_when_all_are_taken(self):
    answers = io.StringIO()
    turns = sides.Turns(io.StringIO("2\n1\n"), answers)
    self.assertTrue(turns.wait())
    self.assertTrue(turns.took({"seconds": 1}))
    self.assertEqual(answers.getvalue(), "")
    self.assertTrue(turns.took({"seconds": 2}))
    self.assertFalse(turns.took({"seconds": 3}))
    told = [json.loads(line) for line in answers.getvalue().splitlines()]
    self.assertEqual(told, [[{"seconds": 1}, {"seconds": 2}], [{"seconds": 3}]])


class SidesTest(absltest.TestCase):
  def test_dsx_takes_steps_of_a_run(self):
    run = tiny_reinforcement.run(updates_per_rollout=1, reference_every=100)
    setting, answers = _setting(), io.StringIO()
    with (
      tiny_reinforcement.one_device(),
      mock.patch.object(sides.Setting, "run", run),
    ):
      sides.dsx(setting, sides.Turns(io.StringIO("2\n"), answers))
    (line,) = answers.getvalue().splitlines()
    for taken in json.loads(line):
      self.assertCountEqual(
        taken, [*sides.PHASES, "seconds", "tokens", "reward"]
      )
      self.assertLessEqual(
        sum(taken[name] for name in sides.PHASES), taken["seconds"]
      )
      self.assertBetween(taken["tokens"], 1, 2 * 4 * 12)

  def test_tokens_are_those_of_dsx_and_the_setting_is_the_run_s(self):
    setting = _setting()
    run, vocabulary = setting.run, vocab.ByteVocabulary()
    self.assertEqual(run.init.path, "policy")
    self.assertEqual(run.prompts_per_step, 4)
    self.assertEqual(run.group_size, 2)
    self.assertEqual(run.sampling.max_new_tokens, 9)
    self.assertEqual(run.update.objective.kl_coefficient, 0.01)
    self.assertIsInstance(run.problems, exercises.Exercises)
    tokenizer = sides._tokenizer(vocabulary)
    self.assertEqual(
      tokenizer("12+34=\n")["input_ids"],
      run.template.tokens(vocabulary, "12+34="),
    )
    self.assertEqual(tokenizer.eos_token_id, vocabulary.special["eos"])
    self.assertEqual(tokenizer.pad_token_id, vocabulary.special["pad"])

  def test_an_answer_is_graded_as_dsx_grades_it(self):
    vocabulary = vocab.ByteVocabulary()
    ids = [*vocabulary.encode("81"), vocabulary.special["eos"]]
    self.assertEqual(
      sides._response("problem", ids, vocabulary), ("problem", "81", 3, False)
    )
    self.assertTrue(sides._response("problem", ids[:-1], vocabulary).truncated)


class CompareTest(parameterized.TestCase):
  def test_sides_take_turns_and_neither_is_always_first(self):
    log = []
    ours: Any = _Side("dsx", 0.5, log)
    theirs: Any = _Side("trl", 4.0, log)
    found = grpo_step.alternate(ours, theirs, rounds=2, steps=3)
    order = [("dsx", 2), ("trl", 2)]
    order += [("dsx", 3), ("trl", 3), ("trl", 3), ("dsx", 3)]
    self.assertEqual(log, order)
    found[1]["trl"] = [_step(2.0)]
    text = grpo_step.tables(found)
    self.assertIn(
      "| median | 0.50         | 3.00         | 6.00 (4.00 to 8.00)", text
    )
    self.assertRegex(text, r"\| dsx +\| 2\.000 +\| 0\.06 .*\| 1,600 +\| 0\.50")

  def test_a_side_that_ends_is_told_of(self):
    with mock.patch.object(sides, "__file__", "no_such_file.py"):
      side = grpo_step.Side("dsx", _setting())
    try:
      with self.assertRaisesRegex(ValueError, "^dsx ended with 2: expected 3"):
        side.take(3)
    finally:
      side.close()

  def test_without_trl_one_line_says_so(self):
    with (
      mock.patch.object(grpo_step, "parse", return_value=None),
      mock.patch.object(grpo_step.importlib.util, "find_spec", lambda _: None),
      self.assertRaisesRegex(SystemExit, "^trl is not installed.*pip install"),
    ):
      grpo_step.main()

  def test_page_has_a_section_for_it(self):
    page = grpo_step.report.RESULTS.read_text(encoding="utf-8")
    self.assertEqual(page.count(f"<!-- {grpo_step.SECTION}: "), 1)
    self.assertEqual(page.count(f"<!-- /{grpo_step.SECTION} -->"), 1)


if __name__ == "__main__":
  absltest.main()
