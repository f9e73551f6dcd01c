"""`experiments.sweep` as a person types it: plans, jobs, what is refused."""

import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from experiments.sweeping import trial as trial_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RUN = "--gin_file=gin_configs/runs/v3_small.gin"
_RATES = "--grid=Schedule.learning_rate = [1e-3, 2e-3]"
_SLURM = ("--to=slurm", "--output=jobs", "--workdir=/shared/rates")


class SweepTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def call(self, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
      [sys.executable, "-m", "experiments.sweep", *arguments],
      cwd=self.folder,
      env={"PYTHONPATH": str(_ROOT), "PATH": "/usr/bin:/bin"},
      capture_output=True,
      text=True,
      check=False,
    )

  @parameterized.named_parameters(
    (
      "no_workdir",
      [_RATES],
      "--workdir:1: expected --workdir=DIR for all the trials",
    ),
    (
      "misspelt_field",
      ["--workdir=w", "--grid=Schedule.learning_rat = [1]"],
      "--grid:1: schedules.Schedule has no field 'learning_rat'; did you mean"
      r" 'learning_rate'\?",
    ),
    (
      "drawn_of_the_wrong_type",
      ["--workdir=w", "--draw=Schedule.batch_size = uniform(64, 512)"],
      "--draw:1: schedules.Schedule.batch_size = .*: expected int; .*",
    ),
    (
      "base",
      ["--workdir=w", _RATES, "--gin.Schedule.batch_siz=3"],
      "--gin_bindings:1: schedules.Schedule has no field 'batch_siz'; did .*",
    ),
    (
      "draws_of_nothing",
      ["--workdir=w", _RATES, "--draws=3"],
      "--draws:1: there is no --draw; leave it out, or add one",
    ),
    (
      "parallel",
      ["--workdir=w", _RATES, "--parallel=0"],
      "--parallel:1: 0: expected 1 to 100000; change it",
    ),
    (
      "nodes_here",
      ["--workdir=w", _RATES, "--nodes=2"],
      "--nodes:1: a local trial is one process; leave it out",
    ),
    (
      "variable",
      ["--workdir=w", _RATES, "--env=A-B=1"],
      "--env:1: 'A-B': expected a name of letters, digits and '_'; write .*",
    ),
    (
      "no_output",
      [_SLURM[0], _SLURM[2], _RATES],
      "--output:1: expected --output=DIR for the jobs",
    ),
    (
      "partition",
      [*_SLURM, _RATES, "--partition=a b"],
      "--partition:1: 'a b': expected a name, .*",
    ),
  )
  def test_refused_before_anything_is_written(self, arguments, line):
    done = self.call(_RUN, *arguments)
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertRegex(done.stderr, f"^{line}\n$")
    self.assertEmpty(list(self.folder.iterdir()))

  def test_dry_run_shows_the_trials(self):
    arguments = [_RUN, _RATES, "--seeds=3", "--workdir=w", "--dry_run"]
    done = self.call(*arguments)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("trials: 6, left to run: 6", done.stdout)
    self.assertRegex(done.stdout, r"0\.002 +3 waiting")
    self.assertEmpty(list(self.folder.iterdir()))

  def test_every_trial_becomes_a_job_of_its_own(self):
    evil = "--grid=Pretraining.sample_prompt = ['$(touch broken)\\n', \"'\"]"
    done = self.call(_RUN, _RATES, evil, *_SLURM, "--nodes=2")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("to start all 4: bash jobs/submit.sh", done.stdout)
    jobs = self.folder / "jobs"
    scripts = sorted(jobs.glob("*.sbatch"))
    self.assertLen(scripts, 4)
    # submit.sh, with an sbatch and an srun that run and write down.
    programs = self.folder / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text('#!/bin/sh\nexec bash "$1"\n')
    (programs / "srun").write_text(
      f'#!/bin/bash\nprintf "%s\\0" "$@" >> {self.folder}/seen\n'
      f'printf "\\0" >> {self.folder}/seen\n'
    )
    for program in programs.iterdir():
      program.chmod(0o755)
    ran = subprocess.run(
      ["bash", str(jobs / "submit.sh")],
      env={"PATH": f"{programs}:/usr/bin:/bin"},
      cwd=self.folder,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(ran.returncode, 0, ran.stderr)
    calls = (self.folder / "seen").read_text().split("\0\0")[:-1]
    bindings = [
      {word for word in call.split("\0") if word.startswith("--gin_bindings=")}
      for call in calls
    ]
    self.assertCountEqual(
      bindings,
      [
        {
          f"--gin_bindings=Schedule.learning_rate = {rate}",
          f"--gin_bindings=Pretraining.sample_prompt = {prompt}",
        }
        for rate in ("0.001", "0.002")
        for prompt in (r"'$(touch broken)\n'", '"\'"')
      ],
    )
    self.assertEmpty(list(_ROOT.glob("broken")))
    self.assertEmpty(list(self.folder.rglob("broken")))
    workdirs = {
      word
      for call in calls
      for word in call.split("\0")
      if word.startswith("--workdir=/shared/rates/trials/")
    }
    self.assertLen(workdirs, 4)

  def test_finished_trials_get_no_job(self):
    workdir = self.folder / "w"
    place = [_RUN, _RATES, f"--workdir={workdir}", "--to=slurm"]
    first = self.call(*place, "--output=all")
    self.assertEqual(first.returncode, 0, first.stderr)
    script, other = sorted((self.folder / "all").glob("*.sbatch"))
    done = workdir / trial_lib.FOLDER / script.stem
    done.mkdir(parents=True)
    summary = '{"state_digest": "0", "validation_bits_per_byte": 2.5}'
    (done / "summary.json").write_text(summary)
    second = self.call(*place, "--output=left")
    self.assertEqual(second.returncode, 0, second.stderr)
    left = [path.name for path in (self.folder / "left").glob("*.sbatch")]
    self.assertEqual(left, [other.name])
    self.assertRegex(second.stdout, r"0\.001 +2\.5000 +finished")

  def test_a_folder_begun_with_other_bindings_is_refused(self):
    begun = self.call(_RUN, _RATES, *_SLURM)
    self.assertEqual(begun.returncode, 0, begun.stderr)
    name = min((self.folder / "jobs").glob("*.sbatch")).stem
    folder = self.folder / "w" / trial_lib.FOLDER / name
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text('{"bound": "of another"}')
    done = self.call(_RUN, _RATES, "--workdir=w")
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertRegex(
      done.stderr,
      rf"^--workdir:1: {folder} was begun with other gin files or bindings:"
      " expected the same; give another --workdir, or the old ones\n$",
    )
    self.assertEqual([p.name for p in folder.iterdir()], ["trial.json"])

  def test_one_trial_where_nothing_is_varied(self):
    done = self.call(_RUN, "--workdir=w", "--dry_run")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("trials: 1, left to run: 1", done.stdout)


if __name__ == "__main__":
  absltest.main()
