"""The gin files of problems and of rejection sampling, and their binaries."""

import json
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import problems
from experiments import configuration

_ROOT = pathlib.Path(__file__).parents[2]
_FILES = "dsx.data.problem_files.ProblemFiles"
_SAMPLING = "dsx.rl.rejection_sampling.RejectionSampling"


class MakeProblemsTest(parameterized.TestCase):
  @parameterized.parameters("rejection", "rejection_tiny")
  def test_rejection_sampling(self, name):
    files = [f"gin_configs/rl/{name}.gin"]
    policy = "start.Start.path = 'somewhere'"
    configuration.prepare(_SAMPLING, files, [policy], seed=3)
    settings = configuration.build(_SAMPLING)
    self.assertEqual((settings.seed, settings.ratio), (3, 3.0))

  def test_problems(self):
    configuration.prepare(_FILES, ["gin_configs/rl/problems_tiny.gin"])
    files = configuration.build(_FILES)
    self.assertLen(files.solved[0].samples(), 1000)

  def test_the_binary(self):
    workdir = self.create_tempdir().full_path
    done = subprocess.run(
      [
        sys.executable,
        "-m",
        "experiments.make_problems",
        "--gin_file=gin_configs/rl/problems_tiny.gin",
        "--gin_bindings=arithmetic.Generated.train = 30",
        "--gin_bindings=Solved.count = 7",
        f"--workdir={workdir}",
      ],
      cwd=_ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    folder = pathlib.Path(workdir)
    summary = json.loads((folder / "summary.json").read_text())
    self.assertEqual((summary["train"], summary["samples"]), (30, 7))
    self.assertLen(problems.read(folder / "train.jsonl"), 30)
    self.assertIn("samples: 7", done.stdout)
    self.assertTrue((folder / "config.gin").is_file())


if __name__ == "__main__":
  absltest.main()
