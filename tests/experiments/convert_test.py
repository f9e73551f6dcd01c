"""`python -m experiments.convert` as a person calls it."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from tests.convert import checkpoints
from tests.experiments import trained_run


class ConvertTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    made = tempfile.TemporaryDirectory()
    cls.addClassCleanup(made.cleanup)
    cls.root = pathlib.Path(made.name)
    cls.source = checkpoints.write(cls.root / "source")

  def call(self, *arguments):
    arguments = [a.format(root=self.root) for a in arguments]
    return trained_run.call("convert", *arguments)

  def _done(self, *arguments) -> str:
    done = self.call(*arguments)
    self.assertEqual(done.returncode, 0, done.stderr)
    return done.stdout

  def test_there_and_back(self):
    """Through FP8, through a workdir, and to where everything is already."""
    source, fp8 = "--source={root}/source", "--target={root}/fp8"
    said = self._done(source, fp8, "--target_format=hf_fp8", "--dry_run")
    self.assertRegex(said, r"source: 167 tensors, 1.5 MB \(BF16 .* 1 shard")
    self.assertFalse((self.root / "fp8").exists())
    done = self.call(source, fp8, "--target_format=hf_fp8")
    self.assertRegex(done.stdout, "/fp8: 1.5 MB written\n$")
    self.assertRegex(done.stderr, r"100%.*: checking .*\n.*100%.*: writing")
    said = self._done(source, fp8, "--target_format=hf_fp8")
    self.assertIn("complete already; nothing was done", said)
    for step in (
      ("--source={root}/fp8", "--target={root}/run", "--target_format=orbax"),
      ("--source={root}/run", "--target={root}/out", "--target_format=hf_fp8"),
    ):
      self._done(*step)
    self.assertEqual(
      checkpoints.content(self.root / "out"),
      checkpoints.content(self.root / "fp8"),
    )

  def test_options_by_gin_and_flags(self):
    said = self._done(
      "--source={root}/source",
      "--target={root}/x",
      "--dry_run",
      "--gin_bindings=Conversion.shard_bytes = 1000000",
      "--dtype=float32",
    )
    self.assertRegex(said, r"\(F32 5.6 MB\) in 6 shard")

  @parameterized.parameters(
    (("--target={root}/x",), 2, "flag --source="),
    (("--source={root}/source",), 2, "flag --target="),
    (
      ("--source={root}/none", "--target={root}/x"),
      1,
      "none: no such folder; give the folder that holds config.json and",
    ),
    (
      ("--source={root}/source", "--target={root}/source/x"),
      1,
      "the source or a folder in it; give another target",
    ),
    (
      ("--source={root}/source", "--target={root}/x", "--target_format=gguf"),
      2,
      "--target_format=gguf: value should be one of <hf|hf_fp8|orbax>",
    ),
    (
      ("--source={root}/source", "--target={root}/x", "--shard_bytes=0"),
      1,
      "shard_bytes=0: expected a positive number",
    ),
    (
      ("--source={root}/source", "--target={root}/x", "--scale_format=ue8m0"),
      1,
      "scale_format='ue8m0': only FP8 has scales; leave it out, or write FP8",
    ),
    (
      ("--source={root}/source", "--target={root}/x", "--step=3"),
      1,
      "source: not a workdir: expected neither --step nor --average",
    ),
    (
      (
        "--source={root}/source",
        "--target={root}/x",
        "--target_format=orbax",
        "--scale_format=ue8m0",
      ),
      1,
      "--scale_format=ue8m0: a workdir keeps the source's; leave it out",
    ),
    (
      ("--source={root}/source", "--target=/proc/x"),
      1,
      "/proc/x: ",
    ),
  )
  def test_errors_in_one_line(self, arguments, code, message):
    done = self.call(*arguments)
    self.assertEqual(done.returncode, code, done.stderr)
    self.assertEqual(done.stdout, "")
    errors = [
      line for line in done.stderr.splitlines() if ": checking" not in line
    ]
    self.assertLen(errors, 1, done.stderr)
    self.assertIn(message, errors[0])
    self.assertFalse((self.root / "x").exists())


if __name__ == "__main__":
  absltest.main()
