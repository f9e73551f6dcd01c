"""Bad inputs, given to the real command: a line, an exit code, no traceback.

The whole table, full disks and damaged files included, is made by
`benchmarks/bad_inputs.py`; here are the cases that cost little. They run in
this process, as `python -m experiments.pretrain` would in its own.
"""

import contextlib
import io
import json
import pathlib
import re
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized

from dsx.training import loop
from experiments import cli
from experiments import pretrain
from tests.training import tiny_run


class PretrainTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    cls.data = tiny_run.prepare(cls.folder / "data")

  def _main(self, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line."""
    output, errors = io.StringIO(), io.StringIO()
    with (
      flagsaver.flagsaver(),
      mock.patch.object(sys, "argv", ["pretrain", *arguments]),
      contextlib.redirect_stdout(output),
      contextlib.redirect_stderr(errors),
      self.assertRaises(SystemExit) as end,
    ):
      cli.run(pretrain.main, target=pretrain.TARGET)
    return end.exception.code, output.getvalue(), errors.getvalue()

  def _train(self, *more: str, workdir=None) -> tuple[int, str, str]:
    bound = [f"--gin_bindings={word}" for word in more if word[0] != "-"]
    given = [word for word in more if word[0] == "-"]
    workdir = workdir or self.create_tempdir().full_path
    return self._main(*tiny_run.arguments(self.data, workdir, *bound, *given))

  def _assert_refused(self, result, code: int, line: str) -> None:
    found, output, errors = result
    self.assertEqual(found, code, errors)
    self.assertRegex(errors, f"^{line}\n$")
    self.assertNotIn("step ", output)

  @parameterized.named_parameters(
    (
      "misspelt_field",
      "pretraining.Pretraining.log_evry = 5",
      2,
      r"--gin_bindings:2: pretraining.Pretraining has no field 'log_evry'; did"
      r" you mean 'log_every'\?",
    ),
    (
      "wrong_type",
      "pretraining.Pretraining.seed = 'one'",
      2,
      r"--gin_bindings:2: pretraining.Pretraining.seed = 'one': expected int;"
      " give int",
    ),
    (
      "float_for_an_int",
      "schedules.Schedule.total_tokens = 1e9",
      2,
      r"--gin_bindings:2: .*total_tokens = 1000000000.0: expected int; write"
      " 1000000000",
    ),
    (
      "unknown_strategy",
      "sharding.Sharding.strategy = 'zero9'",
      2,
      r"--gin_bindings:2: .* expected one of 'replicated', .*",
    ),
    (
      "mesh",
      "mesh.MeshShape.data = 3",
      1,
      r"mesh pipe=1 x data=3 .* does not match 8 devices: .* to take what is"
      " left",
    ),
    (
      "batch_over_devices",
      "pretraining.Pretraining.micro_batch_size = 4",
      1,
      r"micro_batch_size=4: expected a multiple of the 8 parts into which the"
      r" mesh divides a batch; change it or mesh.MeshShape",
    ),
    (
      "batch_over_micro_batches",
      "pretraining.Pretraining.micro_batch_size = 5",
      1,
      r"--gin_bindings:2: micro_batch_size=5: expected a divisor of every batch"
      r" size of the schedule, 8 among them; change it .*",
    ),
    (
      "length",
      "SEQUENCE_LENGTH = 4096",
      1,
      r"gin_configs/runs/ci.gin:\d+: data.sequence_length=4096: expected at"
      r" most config.max_position_embeddings=64; shorten it",
    ),
    (
      "rates",
      "schedules.Schedule.final_learning_rate = 1.0",
      1,
      r"--gin_bindings:2: final_learning_rate=1.0: expected at most .*",
    ),
    (
      "vocabulary",
      "config.DeepSeekConfig.vocab_size = 256",
      1,
      r"config.vocab_size=256: expected at least 320, the size of vocabulary"
      r" 'byte'; raise config.DeepSeekConfig.vocab_size",
    ),
    (
      "no_such_data",
      "pipeline.Data.prepared = '/nowhere'",
      1,
      r"Data.prepared: there is no data set in '/nowhere'; expected .*",
    ),
    (
      "no_files",
      "pipeline.Data.prepared = ''",
      1,
      r"Data.files: got no glob, expected one or more, such as .*",
    ),
    (
      "no_such_vocabulary",
      "pipeline.Data.vocabulary = '/no/bpe.json'",
      1,
      r"vocabulary: cannot read '/no/bpe.json' \(No such file .*\), .*",
    ),
    (
      "one_of_three_process_flags",
      "--process_id=1",
      1,
      r"coordinator_address=None, num_processes=None, process_id=1: expected"
      " all three or none; give the others too, or --detect_processes",
    ),
    (
      "misspelt_flag",
      "--workdri=x",
      2,
      r"--workdri: unknown flag; did you mean --workdir\?",
    ),
  )
  def test_refused(self, words, code, line):
    self._assert_refused(self._train(words), code, line)

  def test_unknown_gin_file(self):
    result = self._main("--gin_file=gin_configs/runs/v3_tinny.gin")
    line = (
      r"--gin_file:1: 'gin_configs/runs/v3_tinny.gin' is no file; did you mean"
      r" 'gin_configs/runs/v3_tiny.gin'\?"
    )
    self._assert_refused(result, 2, line)

  def test_workdir_is_a_file(self):
    path = pathlib.Path(self.create_tempfile("taken").full_path)
    line = rf"workdir {path} cannot be written: File exists; give another .*"
    self._assert_refused(self._train(workdir=path), 1, line)

  def test_workdir_where_nothing_can_be_made(self):
    line = "workdir /proc/dsx cannot be written: .*; give another --workdir"
    self._assert_refused(self._train(workdir="/proc/dsx"), 1, line)

  def test_damaged_data(self):
    data = tiny_run.prepare(self.folder / "damaged")
    (data / "metadata.json").write_text("{}")
    workdir = self.create_tempdir().full_path
    result = self._main(*tiny_run.arguments(data, workdir))
    self._assert_refused(result, 1, r"'.*metadata.json' is damaged; delete .*")

  def test_truncated_shard(self):
    data = tiny_run.prepare(self.folder / "truncated")
    shard = data / "train-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:1000])
    workdir = self.create_tempdir().full_path
    result = self._main(*tiny_run.arguments(data, workdir))
    line = r"shard '.*' is truncated to 1000 bytes, expected \d+ bytes; .*"
    self._assert_refused(result, 1, line)

  def test_describes_the_run_before_it_trains(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    with mock.patch.object(loop, "train") as train:
      code, _, errors = self._train("--seed=7", workdir=workdir)
    self.assertEqual((code, errors), (0, ""))
    run = train.call_args.args[0]
    self.assertEqual((run.seed, run.config.hidden_size), (7, 32))
    config = (workdir / "config.gin").read_text()
    self.assertIn("Pretraining.seed = 7", config)
    versions = json.loads((workdir / "versions.json").read_text())
    self.assertContainsSubset({"jax", "python", "commit"}, versions)
    command = train.call_args.kwargs["resume_command"]
    self.assertStartsWith(command, "python -m experiments.pretrain --gin_file=")
    self.assertIn("--seed=7", command)

  def test_resume_command_names_a_workdir_that_was_not_given(self):
    home = self.create_tempdir().full_path
    with (
      mock.patch.object(loop, "train") as train,
      contextlib.chdir(home),
    ):
      code, _, errors = self._main(
        f"--gin_file={tiny_run.ROOT / tiny_run.GIN_FILE}",
        f"--gin_bindings={tiny_run.binding(self.data)}",
      )
    self.assertEqual(code, 0, errors)
    command = train.call_args.kwargs["resume_command"]
    self.assertRegex(command, r"--workdir=\S*/runs/ci$")

  def test_dry_run_of_the_published_run(self):
    code, output, errors = self._main(
      "--gin_file=gin_configs/runs/v3_pretrain.gin", "--dry_run"
    )
    self.assertEqual((code, errors), (0, ""))
    self.assertRegex(output, r"(?m)^parameters +671,026,419,200$")
    self.assertRegex(output, r"(?m)^FLOPs per token, 4096 causal +250.450 G$")
    self.assertLess(output.count("\n"), 90)

  def test_dry_run_and_print_config_leave_no_trace(self):
    workdir = pathlib.Path(self.create_tempdir().full_path) / "none"
    code, output, errors = self._train(
      "--dry_run", "--print_config", workdir=workdir
    )
    self.assertEqual((code, errors), (0, ""))
    self.assertIn("# In use:", output)
    self.assertTrue(re.search(r"(?m)^steps +33$", output))
    self.assertFalse(workdir.exists())


if __name__ == "__main__":
  absltest.main()
