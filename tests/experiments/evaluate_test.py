"""`python -m experiments.evaluate` as a person calls it."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from dsx.training import expert_loads
from dsx.training import imported
from tests.evals import workdirs
from tests.experiments import trained_run
from tests.training import huggingface_folders


class EvaluateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = trained_run.make()

  def call(self, *arguments):
    return trained_run.call("evaluate", *arguments)

  def test_table_and_file_on_another_corpus(self):
    texts = {"train": "y" * 99, "validation": "yes and no. " * 40}
    data = workdirs.data(self.workdir.parent / "other", texts)
    done = self.call(
      f"--workdir={self.workdir}",
      f"--gin_bindings=Data.prepared = {data.prepared!r}",
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("step 4, trained on 512 tokens", done.stdout)
    written = json.loads((self.workdir / "evaluation.json").read_text())
    self.assertEqual(written["data"]["prepared"], data.prepared)
    self.assertEqual(set(written["scores"]), {"raw", "average"})
    loads = expert_loads.read(self.workdir / "expert_loads.jsonl")
    self.assertEqual(loads.layers, ["0", "mtp_0"])
    for score in written["scores"].values():
      self.assertIn(f"{score['bits_per_byte']:.4f}", done.stdout)
      # An untrained model of 320 tokens, one of them a byte each.
      self.assertAlmostEqual(score["bits_per_byte"], 8.32, delta=0.3)

  @parameterized.parameters("bfloat16", "fp8")
  def test_an_imported_workdir(self, dtype):
    root = pathlib.Path(self.create_tempdir().full_path)
    config = workdirs.model_config()
    source = huggingface_folders.write(
      root / "hf", config, huggingface_folders.tensors(config, dtype)
    )
    imported.write(source, root / "run")
    data = workdirs.data(root / "data")
    done = self.call(
      f"--workdir={root / 'run'}",
      f"--gin_bindings=Data.prepared = {data.prepared!r}",
      "--gin_bindings=Data.vocabulary = 'byte'",
      "--gin_bindings=Data.sequence_length = 16",
      "--gin_bindings=Schedule.sequence_length = 16",
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("step 0, trained on 0 tokens", done.stdout)
    written = json.loads((root / "run" / "evaluation.json").read_text())
    self.assertEqual(set(written["scores"]), {"raw"})

  def test_dry_run_and_print_config(self):
    before = sorted(self.workdir.rglob("*"))
    done = self.call(
      f"--workdir={self.workdir}",
      "--dry_run",
      "--print_config",
      "--gin_bindings=Pretraining.final_evaluation_records = 3",
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("final_evaluation_records = 3", done.stdout)
    self.assertIn(f"step 4 of {self.workdir}", done.stdout)
    self.assertIn("validation: 3 sequences of 16 tokens", done.stdout)
    self.assertEqual(sorted(self.workdir.rglob("*")), before)

  @parameterized.parameters(
    ((), 2, "expected --workdir=DIR, that of a run"),
    (("--workdir=/tmp/dsx_no_such",), 2, "no config.gin in it; expected the"),
    (("--workdir={}", "--step=3"), 1, "no good step 3"),
    (("--workdir={}", "--gin_bindings=Data.task = 3"), 2, "Data.task = 3: exp"),
  )
  def test_errors_in_one_line(self, arguments, code, message):
    done = self.call(*(a.format(self.workdir) for a in arguments))
    self.assertEqual(done.returncode, code)
    self.assertEqual(done.stdout, "")
    self.assertLen(done.stderr.splitlines(), 1, done.stderr)
    self.assertIn(message, done.stderr)


if __name__ == "__main__":
  absltest.main()
