"""The command that fine-tunes, and its gin files."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized

from dsx import cost
from dsx.data import arithmetic
from dsx.data import prepare
from dsx.training import dry_run
from dsx.training import epochs
from experiments import cli
from experiments import configuration
from experiments import pretrain
from experiments import sft

_FILES = ("sft", "sft_tiny", "distill_qwen_1_5b")


def _main(*arguments: str) -> tuple[int, str, str]:
  """Exit code, standard output and standard error of a command line."""
  output, errors = io.StringIO(), io.StringIO()
  code = 0
  with (
    flagsaver.flagsaver(),
    mock.patch.object(sys, "argv", ["sft", *arguments]),
    contextlib.redirect_stdout(output),
    contextlib.redirect_stderr(errors),
  ):
    try:
      cli.run(sft.main, target=pretrain.TARGET)
    except SystemExit as end:
      code = int(end.code or 0)
  return code, output.getvalue(), errors.getvalue()


class GinFilesTest(parameterized.TestCase):
  @parameterized.parameters(*_FILES)
  def test_builds(self, name):
    file = f"gin_configs/rl/{name}.gin"
    configuration.prepare(pretrain.TARGET, [file], seed=3)
    run = configuration.build(pretrain.TARGET)
    sft.check(run)
    self.assertEqual(run.seed, 3)
    self.assertIsInstance(run.schedule, epochs.Epochs)

  def test_the_report_s_numbers(self):
    configuration.prepare(pretrain.TARGET, ["gin_configs/rl/sft.gin"])
    run = configuration.build(pretrain.TARGET)
    schedule = run.schedule
    self.assertEqual(
      (schedule.count, schedule.learning_rate, schedule.final_learning_rate),
      (2, 5e-5, 5e-6),
    )
    self.assertEqual(
      (schedule.batch_size, schedule.sequence_length), (128, 32768)
    )
    self.assertEqual(cost.parameters(run.config), 671_026_419_200)
    self.assertIn("2 epochs of the prepared data", dry_run.describe(run))


class SftTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    samples = self.folder / "samples.jsonl"
    lines = [
      {"prompt": problem.prompt, "response": arithmetic.solution(problem)}
      for problem in arithmetic.addition(2, 400, 0)
    ]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    self.arguments = (
      "--gin_file=gin_configs/rl/sft_tiny.gin",
      f"--gin_bindings=pipeline.Data.files = ('{samples}',)",
      f"--gin_bindings=pipeline.Data.cache_dir = '{self.folder}'",
      f"--workdir={self.folder / 'run'}",
    )

  def test_learns_goes_on_and_tells_how(self):
    def here(data):
      return prepare.prepare(data, report=print)

    small = (
      "epochs.Epochs.batch_size = 8",
      "epochs.Epochs.warmup_steps = 2",
      "config.DeepSeekConfig.num_hidden_layers = 2",
      "config.DeepSeekConfig.num_nextn_predict_layers = 0",
      "config.Execution.unroll_layers = False",
      "pretraining.Pretraining.sample_tokens = 0",
      "pretraining.Pretraining.log_every = 1",
    )
    bound = [f"--gin_bindings={binding}" for binding in small]
    with (
      mock.patch.object(prepare, "ensure", here),
      mock.patch.object(cost, "measure_peak_flops", return_value=1e11),
    ):
      code, output, errors = _main(*self.arguments, *bound)
    self.assertEqual(code, 0, errors)
    self.assertIn("samples (0 truncated, 0 dropped", output)
    summary = json.loads((self.folder / "run" / "summary.json").read_text())
    self.assertIn("python -m experiments.sft ", summary["resume_command"])
    lines = (self.folder / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [r["loss"] for r in map(json.loads, lines) if r["kind"] == "train"]
    self.assertLen(losses, summary["steps"])
    # It begins with knowing nothing of 320 tokens, and learns the form first.
    self.assertGreater(losses[0], 5.5)
    self.assertLess(losses[-1], 2.5)

  @parameterized.parameters(
    (
      "pipeline.Data.task = 'jsonl'",
      "data.task='jsonl': expected 'sft', or a mixture of nothing else; bind "
      "pipeline.Data.task, or train with experiments.pretrain\n",
    ),
    (
      "pretraining.Pretraining.init = @start.Start()",
      "start.Start needs path, which",
    ),
  )
  def test_refused(self, binding, message):
    code, output, errors = _main(*self.arguments, f"--gin_bindings={binding}")
    self.assertNotEqual(code, 0)
    self.assertNotIn("step ", output)
    self.assertIn(message, errors)
    self.assertLen(errors.splitlines(), 1)


if __name__ == "__main__":
  absltest.main()
