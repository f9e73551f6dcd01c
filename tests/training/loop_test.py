"""A whole run, and runs that are disturbed in every way and come out the same.

The reference is one undisturbed run on 8 devices, with a growing batch,
accumulation, MTP and the average of parameters. It keeps every checkpoint, so
that other tests can go on from the middle of it.
"""

import contextlib
import dataclasses
import io
import json
import math
import random
import re
import shlex
import shutil
import signal
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx import cost
from dsx.data import store
from dsx.ops import dtypes
from dsx.ops import fp8_recipe
from dsx.training import checkpoint
from dsx.training import fp8_health
from dsx.training import loop
from dsx.training import manifest
from dsx.training import metrics
from dsx.training import observer
from dsx.training import report
from dsx.training import schedules
from dsx.training import workdir as workdir_lib
from tests.training import tiny_run

_STEPS = 33
_CLOCK = {"tokens_per_second", "mfu", "data_wait"}
_SUMMARY = {
  "steps",
  "tokens",
  "train_loss",
  "validation_bits_per_byte",
  "bigram_bits_per_byte",
  "tokens_per_second",
  "mfu",
  "parameters",
  "max_violation",
  "wall_seconds",
  "state_digest",
  "resume_command",
}
_kept = contextlib.ExitStack()


def setUpModule():
  global _folder, _data, _reference, _summary, _printed
  _folder = _kept.enter_context(tiny_run.folder())
  _data = tiny_run.prepare(_folder / "data")
  _reference = _folder / "reference"
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    _summary = loop.train(_run(), _reference, resume_command="the command")
  _printed = printed.getvalue()


def tearDownModule():
  _kept.close()


def _run(**changes):
  fields = {"keep_checkpoints": 100, "evaluate_every": 20} | changes
  return tiny_run.build(_data, **fields)


def _train(workdir, run=None, **more) -> tuple[dict, str]:
  """Summary and standard output of a run without report and sample."""
  run = run or _run()
  run = dataclasses.replace(run, sample_tokens=0)
  printed = io.StringIO()
  with (
    contextlib.redirect_stdout(printed),
    mock.patch.object(report, "write"),
    # The measurement takes a second and every core.
    mock.patch.object(cost, "measure_peak_flops", return_value=1e11),
  ):
    return loop.train(run, workdir, **more), printed.getvalue()


def _records(workdir) -> list[str]:
  """Everything recorded but the clock, in order, each thing once."""
  lines = [
    json.dumps({k: v for k, v in record.items() if k not in _CLOCK})
    for record in metrics.read(workdir)
  ]
  return list(dict.fromkeys(lines))


def _leaves(workdir):
  """Shape, dtype and checksum of all that the last checkpoint holds."""
  steps = checkpoint.Checkpointer(workdir / "checkpoints").steps()
  return manifest.read(workdir / "checkpoints" / str(steps[-1])).leaves


def _from_step(step: int, name: str):
  """A copy of the reference as it was when it had saved `step`."""
  workdir = _folder / name
  shutil.copytree(_reference, workdir)
  for path in (workdir / "checkpoints").iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  return workdir


@contextlib.contextmanager
def _at_step(step: int, action):
  """Calls `action(phase)` when the loop asks for that step's numbers."""
  phase = schedules.Schedule.phase

  def asked(self, asked_step):
    found = phase(self, asked_step)
    return (action(found) or found) if asked_step >= step else found

  with mock.patch.object(schedules.Schedule, "phase", asked):
    yield


class WholeRunTest(parameterized.TestCase):
  def test_summary_has_every_documented_number(self):
    self.assertEqual(set(_summary), _SUMMARY)
    written = json.loads((_reference / "summary.json").read_text())
    self.assertEqual(written, _summary)
    run = _run()
    self.assertEqual(_summary["steps"], _STEPS)
    sequences = sum(p.batch_size for p in run.schedule.plan())
    self.assertEqual(_summary["tokens"], sequences * tiny_run.LENGTH)
    self.assertBetween(_summary["train_loss"], 0.5, 3.5)
    bits = _summary["train_loss"] / math.log(2)  # a byte is a token here
    self.assertAlmostEqual(
      _summary["validation_bits_per_byte"], bits, delta=0.5
    )
    self.assertEqual(_summary["bigram_bits_per_byte"], 2.5)
    self.assertGreater(_summary["tokens_per_second"], 0)
    self.assertBetween(_summary["mfu"], 1e-9, 1)
    parameters = cost.parameters(run.config) + cost.mtp_parameters(run.config)
    self.assertEqual(_summary["parameters"], parameters)
    self.assertBetween(_summary["max_violation"], 0, 7)
    self.assertGreater(_summary["wall_seconds"], 0)
    self.assertRegex(_summary["state_digest"], "^[0-9a-f]{64}$")
    self.assertEqual(_summary["resume_command"], "the command")

  def test_batch_ramp_accumulates(self):
    records = [r for r in metrics.read(_reference) if r["kind"] == "train"]
    self.assertEqual([r["step"] for r in records], list(range(1, _STEPS + 1)))
    sizes = [record["batch_size"] for record in records]
    self.assertEqual(sorted(set(sizes)), [8, 16, 24])
    self.assertEqual(sizes, sorted(sizes))
    self.assertEqual(records[-1]["skipped"], 0)

  def test_it_learns(self):
    losses = [
      r["loss"] for r in metrics.read(_reference) if r["kind"] == "train"
    ]
    self.assertAlmostEqual(losses[0], math.log(320), delta=0.5)
    self.assertLess(losses[-1], losses[0] - 2)

  def test_validates_on_the_way_and_at_the_end(self):
    found = [r for r in metrics.read(_reference) if r["kind"] == "validation"]
    self.assertEqual([r["step"] for r in found], [20, _STEPS])
    self.assertLess(found[1]["bits_per_byte"], found[0]["bits_per_byte"])
    self.assertIn("ema_bits_per_byte", found[1])
    self.assertNotEqual(
      found[1]["ema_bits_per_byte"], found[1]["bits_per_byte"]
    )

  def test_leaves_report_and_sample(self):
    pictures = [path.name for path in (_reference / "report").glob("*.png")]
    self.assertNotEmpty(pictures)
    sample = (_reference / "sample.txt").read_text()
    self.assertStartsWith(sample, "def ")
    self.assertIn(sample, _printed)
    self.assertIn("to resume: the command", _printed)

  def test_few_lines_before_the_first_step(self):
    before = _printed[: _printed.index("step  1/33")]
    self.assertLess(before.count("\n"), 40)


class DisturbedRunTestCase(parameterized.TestCase):
  """Compares a run with the reference, bit for bit."""

  def assert_as_undisturbed(self, workdir, summary):
    """The same state, average, keys and record of every step."""
    self.assertEqual(summary["state_digest"], _summary["state_digest"])
    self.assertEqual(_leaves(workdir), _leaves(_reference))
    self.assertEqual(_records(workdir), _records(_reference))


class DisturbedRunTest(DisturbedRunTestCase):
  def test_stops_on_sigterm_and_goes_on(self):
    workdir = _folder / "terminated"

    def terminate(unused_phase):
      signal.raise_signal(signal.SIGTERM)

    with _at_step(6, terminate):
      summary, printed = _train(workdir, resume_command="say it again")
    self.assertEqual(summary["steps"], 7)
    self.assertIsNone(summary["state_digest"])
    self.assertIn("stopped by SIGTERM after step 7", printed)
    self.assertIn("to resume: say it again", printed)
    checkpoints = checkpoint.Checkpointer(workdir / "checkpoints")
    self.assertEqual(checkpoints.steps(), [4, 7])
    summary, printed = _train(workdir)
    self.assertIn("resumed at step 7", printed)
    self.assert_as_undisturbed(workdir, summary)

  def test_a_finished_run_keeps_its_numbers(self):
    workdir = _from_step(_STEPS, "finished")
    summary, _ = _train(workdir)
    for name in ("train_loss", "max_violation"):
      self.assertAlmostEqual(summary[name], _summary[name], places=6)
    self.assertGreater(summary["tokens_per_second"], 0)
    self.assert_as_undisturbed(workdir, summary)

  def test_damaged_checkpoint_is_passed_over_and_said(self):
    workdir = _from_step(_STEPS, "damaged")
    newest = workdir / "checkpoints" / str(_STEPS)
    largest = max(
      (path for path in newest.rglob("*") if path.is_file()),
      key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    summary, printed = _train(workdir)
    self.assertIn(f"resumed at step 32; step {_STEPS} is passed over", printed)
    self.assert_as_undisturbed(workdir, summary)

  def test_resumes_from_the_middle(self):
    """Also where `checkpoint_every` divides the steps: one save at the end."""
    workdir = _from_step(16, "middle")
    summary, printed = _train(workdir, _run(checkpoint_every=11))
    self.assertIn("resumed at step 16", printed)
    self.assert_as_undisturbed(workdir, summary)
    checkpoints = checkpoint.Checkpointer(workdir / "checkpoints")
    self.assertEqual(checkpoints.steps()[-3:], [16, 22, _STEPS])
    self.assertGreater(summary["wall_seconds"], 0)

  def test_updates_that_are_not_finite_end_the_run(self):
    workdir = _from_step(8, "overflow")

    def overflow(phase):
      return phase._replace(learning_rate=1e30)

    run = _run(max_skipped_in_a_row=3)
    with (
      _at_step(9, overflow),
      self.assertRaisesRegex(
        observer.TrainingError,
        r"^3 updates in a row up to step 13 were not finite and were refused;"
        r" [^\n]*lower schedule.learning_rate[^\n]*$",
      ),
    ):
      _train(workdir, run)
    # What was saved meanwhile is whole, and what came before as it was.
    checkpoints = checkpoint.Checkpointer(workdir / "checkpoints")
    self.assertEqual(checkpoints.steps()[:2], [4, 8])
    for path in (workdir / "checkpoints").iterdir():
      if int(path.name) > 8:
        shutil.rmtree(path)
    summary, printed = _train(workdir)
    self.assertIn("resumed at step 8", printed)
    self.assert_as_undisturbed(workdir, summary)


class SignalledProcessTest(DisturbedRunTestCase):
  """The real command, which runs into a signal and is typed again."""

  def _run_until(self, name: str, moment: str, workdir):
    arguments = tiny_run.arguments(
      _data, workdir, "--gin.Pretraining.evaluate_every=20"
    )
    process = tiny_run.start(
      arguments,
      module="tests.training.signalled_trainer",
      SIGNAL=name,
      MOMENT=moment,
    )
    return tiny_run.outcome(process)

  def test_killed_twice_then_terminated(self):
    workdir = _folder / "signalled"
    step = random.Random(0).randrange(5, 12)
    code, _, errors = self._run_until("SIGKILL", str(step), workdir)
    self.assertEqual(code, -signal.SIGKILL, errors)

    code, output, errors = self._run_until("SIGKILL", "commit 2", workdir)
    self.assertEqual(code, -signal.SIGKILL, errors)
    self.assertRegex(output, "from scratch|resumed at step [48]")
    # It died between Orbax's commit and the manifest.
    checkpoints = workdir / "checkpoints"
    complete = checkpoint.Checkpointer(checkpoints).steps()
    present = [int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()]
    self.assertEqual(max(present), max(complete) + 4)

    code, output, errors = self._run_until("SIGTERM", "22", workdir)
    self.assertEqual(code, 0, errors)
    self.assertIn(f"step {max(present)} is passed over", output)
    self.assertIn("stopped by SIGTERM after step 23", output)
    command = re.search(r"^to resume: (.*)$", output, re.MULTILINE)[1]
    summary = json.loads((workdir / "summary.json").read_text())
    self.assertEqual(summary["resume_command"], command)
    words = shlex.split(command)
    self.assertEqual(words[:3], ["python", "-m", "experiments.pretrain"])
    self.assertIn(f"--workdir={workdir}", words)

    summary, printed = _train(workdir)
    self.assertIn("resumed at step 23", printed)
    self.assert_as_undisturbed(workdir, summary)


class Fp8Test(parameterized.TestCase):
  def test_what_fp8_loses_is_recorded_once_a_step_and_said(self):
    workdir = _folder / "fp8"
    recipe = fp8_recipe.Recipe(rules=(("*/o_proj", "float8"),))
    run = _run(
      dtypes=dtypes.Dtypes(fp8=recipe),
      config=dataclasses.replace(
        _run().config, num_hidden_layers=1, num_nextn_predict_layers=0
      ),
      fp8_health_every=8,
      evaluate_every=0,
    )

    def terminate(unused_phase):
      signal.raise_signal(signal.SIGTERM)

    # A threshold that everything exceeds.
    with mock.patch.object(fp8_health, "MUCH_UNDERFLOW", -1.0):
      with _at_step(9, terminate):
        _, printed = _train(workdir, run)
      # What was measured after the checkpoint is measured again.
      shutil.rmtree(workdir / "checkpoints" / "10")
      _train(workdir, run)
    for step in (1, 8):
      self.assertIn(f"\nwarning: FP8 at step {step}: ", printed)
    found = [r for r in metrics.read(workdir) if r["kind"] == "fp8"]
    self.assertEqual([r["step"] for r in found], [1, 8, 16, 24, 32, _STEPS])
    for record in found:
      self.assertEqual(record["layers"], ["0/self_attn/o_proj"])
      self.assertEqual(record["gradient_not_finite"], [0])
      self.assertTrue(math.isfinite(record["gradient_scale_min"][0]))
    saturated = [record["activation_saturated"] for record in found]
    self.assertNotEqual(saturated[0], saturated[-1])

  def test_a_run_without_has_no_record_of_it(self):
    kinds = {record["kind"] for record in metrics.read(_reference)}
    self.assertEqual(kinds, {"train", "load", "validation"})
    self.assertFalse((_reference / "report" / "fp8.png").exists())


class RefusalTest(parameterized.TestCase):
  def test_corrupt_record(self):
    data = _folder / "corrupt"
    shutil.copytree(_data, data)
    shard = data / "train-00000.array_record"
    content = bytearray(shard.read_bytes())
    for i in range(len(content) // 16, len(content) // 8):
      content[i] ^= content[i] and 1
    shard.write_bytes(content)
    run = tiny_run.build(data)
    with self.assertRaises(store.CorruptionError) as caught:
      _train(_folder / "of_corrupt", run)
    line = str(caught.exception)
    self.assertNotIn("\n", line)
    self.assertRegex(line, rf"record \d+ of shard '{re.escape(str(shard))}'")

  def test_vocabulary_larger_than_the_model(self):
    run = _run(config__vocab_size=256)
    with self.assertRaisesRegex(
      observer.TrainingError, r"config.vocab_size=256: expected at least 320"
    ):
      _train(_folder / "small_vocabulary", run)

  def test_workdir_of_another_model(self):
    run = _run(config__hidden_size=48)
    workdir = _from_step(4, "another")
    with self.assertRaisesRegex(
      workdir_lib.WorkdirError,
      r"holds a run with config.hidden_size=32, this one has 48: give another",
    ):
      _train(workdir, run)

  def test_workdir_of_other_text(self):
    workdir = _from_step(4, "other_text")
    metadata = store.read_metadata(_data)
    metadata["splits"]["train"]["digest"] = "grown"
    with (
      mock.patch.object(store, "read_metadata", return_value=metadata),
      self.assertRaisesRegex(
        observer.TrainingError,
        r"was trained on data with digest \w{12}, .* name grown now: bring",
      ),
    ):
      _train(workdir)

  def test_mesh_and_batch(self):
    with self.assertRaisesRegex(ValueError, "does not match 8 devices"):
      _train(_folder / "mesh", _run(mesh__data=3))
    with self.assertRaisesRegex(
      ValueError, "micro_batch_size=4: expected a multiple of the 8 parts"
    ):
      _train(_folder / "batch", _run(micro_batch_size=4))


if __name__ == "__main__":
  absltest.main()
