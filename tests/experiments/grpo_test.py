"""The commands of reinforcement learning and of examining what came of it.

They run in this process, as `python -m experiments.grpo` would in its own.
"""

import contextlib
import io
import json
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized

from dsx.rl import report
from experiments import cli
from experiments import evaluate_reasoning
from experiments import grpo
from tests.rl import tiny_reinforcement
from tests.training import tiny_run

_SMALL = {
  "DeepSeekConfig.hidden_size": 16,
  "DeepSeekConfig.intermediate_size": 16,
  "DeepSeekConfig.moe_intermediate_size": 8,
  "DeepSeekConfig.num_hidden_layers": 1,
  "DeepSeekConfig.first_k_dense_replace": 0,
  "DeepSeekConfig.num_nextn_predict_layers": 0,
  "DeepSeekConfig.num_attention_heads": 1,
  "arithmetic.Generated.train": 8,
  "arithmetic.Generated.held_out": 4,
  "decoding.Decoding.slots": 8,
  "reasoning.Evaluation.samples": 2,
  "reasoning.Evaluation.k": (2,),
}
_RUN = _SMALL | {
  "Reinforcement.init": None,
  "Reinforcement.steps": 2,
  "Reinforcement.group_size": 2,
  "Reinforcement.prompts_per_step": 2,
  "sampling.Sampling.max_new_tokens": 8,
}
_kept = contextlib.ExitStack()


def setUpModule():
  global _folder, _workdir, _first
  _folder = _kept.enter_context(tiny_run.folder())
  _kept.enter_context(tiny_reinforcement.one_device())
  _workdir = _folder / "run"
  _first = _grpo(_RUN, f"--workdir={_workdir}", "--seed=5")


def tearDownModule():
  _kept.close()


def _main(binary, *arguments: str) -> tuple[int, str, str]:
  """Exit code, standard output and standard error of a command line."""
  output, errors = io.StringIO(), io.StringIO()
  code = 0
  with (
    flagsaver.flagsaver(),
    mock.patch.object(sys, "argv", ["program", *arguments]),
    mock.patch.object(report, "write", return_value=[]),
    contextlib.redirect_stdout(output),
    contextlib.redirect_stderr(errors),
  ):
    try:
      cli.run(binary.main, target=binary.TARGET)
    except SystemExit as end:
      code = int(end.code or 0)
  return code, output.getvalue(), errors.getvalue()


def _bound(bindings) -> list[str]:
  return [f"--gin_bindings={name} = {v!r}" for name, v in bindings.items()]


def _grpo(bindings, *more: str):
  file = "--gin_file=gin_configs/rl/r1_zero_tiny.gin"
  return _main(grpo, file, *_bound(bindings), *more)


def _examine(bindings, *more: str):
  file = "--gin_file=gin_configs/rl/evaluate_tiny.gin"
  return _main(evaluate_reasoning, file, *_bound(bindings), *more)


class GrpoTest(parameterized.TestCase):
  def test_learns(self):
    code, output, errors = _first
    self.assertEqual(code, 0, errors)
    self.assertIn("8 to learn from, 4 held out", output)
    self.assertIn("to resume: python -m experiments.grpo", output)
    summary = json.loads((_workdir / "summary.json").read_text())
    self.assertEqual((summary["steps"], summary["finished"]), (2, True))
    self.assertIn('"jax"', (_workdir / "versions.json").read_text())
    identity = json.loads((_workdir / "run.json").read_text())
    self.assertEqual(identity["seed"], 5)

  def test_workdir_alone_goes_on(self):
    code, output, errors = _main(grpo, f"--workdir={_workdir}")
    self.assertEqual(code, 0, errors)
    self.assertRegex(output, r"resumed at step \d")

  def test_more_steps_go_on(self):
    more = {"Reinforcement.steps": 3}
    workdir = f"--workdir={_workdir}"
    code, output, errors = _grpo(_RUN | more, workdir, "--seed=5")
    self.assertEqual(code, 0, errors)
    self.assertIn("step 3/3", output)

  def test_dry_run_makes_nothing(self):
    folder = _folder / "dry"
    code, output, _ = _grpo(_RUN, f"--workdir={folder}", "--dry_run")
    self.assertEqual(code, 0)
    self.assertIn("2 problems x 2 answers = 4, of at most 8 tokens", output)
    self.assertFalse(folder.exists())

  @parameterized.named_parameters(
    (
      "unknown_field",
      {"Reinforcement.group_sise": 2},
      2,
      "no field 'group_sise'; did you mean 'group_size'",
    ),
    (
      "wrong_value",
      {"Reinforcement.group_size": 1},
      1,
      "group_size=1: expected at least 2",
    ),
    (
      "no_model",
      {"start.Start.path": "nowhere"},
      1,
      "init.path='nowhere': found no model",
    ),
    (
      "other_seed",
      {"Reinforcement.seed": 6},
      1,
      "holds a run with seed=5, this one has 6",
    ),
  )
  def test_refuses_in_one_line(self, bindings, code, message):
    chosen = dict(_RUN)
    workdir = _workdir
    if "start.Start.path" in bindings:
      del chosen["Reinforcement.init"]
      workdir = _folder / "nowhere"
    found = _grpo(chosen | bindings, f"--workdir={workdir}")
    self.assertEqual(found[0], code, found[2])
    self.assertIn(message, found[2])
    self.assertEqual(found[2].count("\n"), 1)


class EvaluateReasoningTest(parameterized.TestCase):
  def _bindings(self, **more):
    of_run = (
      "arithmetic.Generated",
      "decoding.Decoding",
      "reasoning.Evaluation",
    )
    kept = {k: v for k, v in _SMALL.items() if k.startswith(of_run)}
    bindings = {"start.Start.path": str(_workdir)}
    return kept | bindings | {"Assessment.max_new_tokens": 8} | more

  def test_examines_a_run(self):
    folder = _folder / "score"
    arguments = (self._bindings(), f"--workdir={folder}")
    code, output, errors = _examine(*arguments)
    self.assertEqual(code, 0, errors)
    self.assertIn("pass@1", output)
    self.assertIn("4 problems, 2 answers each", output)
    summary = json.loads((folder / "summary.json").read_text())
    self.assertEqual((summary["k"], summary["problems"]), (2, 4))
    self.assertIn("pass_1_low", summary)
    answers = (folder / "answers.jsonl").read_text().splitlines()
    self.assertLen(answers, 4)
    self.assertEqual(json.loads(answers[0])["tokens"], 8)
    before = json.loads((folder / "summary.json").read_text())
    _examine(*arguments)
    after = json.loads((folder / "summary.json").read_text())
    self.assertEqual(before, after)

  def test_dry_run(self):
    code, output, _ = _examine(self._bindings(), "--dry_run")
    self.assertEqual(code, 0)
    self.assertIn("4 held out, 2 answers to each at temperature 0.6", output)

  def test_seed_has_one_place(self):
    bindings = self._bindings(**{"reasoning.Evaluation.seed": 1})
    code, _, errors = _examine(bindings, f"--workdir={_folder / 'no'}")
    self.assertEqual(code, 1)
    self.assertIn("evaluation.seed=1: expected 0", errors)


if __name__ == "__main__":
  absltest.main()
