"""`experiments.launch` as a person types it: what it writes and refuses."""

import contextlib
import io
import pathlib
import shlex
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import yaml

from experiments import cli
from experiments import launch
from experiments.launching import local
from experiments.launching import options

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RUN = "--gin_file=gin_configs/runs/v3_small.gin"
_SLURM = ("--to=slurm", "--workdir=/shared/runs/x")
_JOBSET = (
  "--to=jobset",
  "--workdir=/shared/runs/x",
  "--folder=/app",
  "--image=registry.io/dsx:1",
)
_TPU = ("--tpu_type=v5p-16", "--workdir=/shared/x", "--folder=/app")


class CommandTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.folder / "job"

  def call(self, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the command from a folder that is not the project's."""
    return subprocess.run(
      [sys.executable, "-m", "experiments.launch", *arguments],
      cwd=self.folder,
      env={"PYTHONPATH": str(_ROOT), "PATH": "/usr/bin:/bin"},
      capture_output=True,
      text=True,
      check=False,
    )

  @parameterized.named_parameters(
    (
      "relative_workdir",
      ["--to=slurm", "--workdir=runs/x"],
      r"--workdir:1: 'runs/x': expected an absolute path, the same on all"
      r" machines; write --workdir=/shared/...",
    ),
    (
      "no_workdir",
      ["--to=slurm"],
      r"--workdir:1: '': expected an absolute path.*",
    ),
    (
      "misspelt_binding",
      [*_SLURM, "--gin.Schedule.learning_rat=1"],
      r"--gin_bindings:1: schedules.Schedule has no field 'learning_rat'; did"
      r" you mean 'learning_rate'\?",
    ),
    (
      "name",
      [*_SLURM, "--name=My_Run"],
      r"--name:1: 'My_Run': expected at most 39 of a to z, 0 to 9 and '-',"
      r" .*DNS-1123.*",
    ),
    (
      "name_of_two_lines",
      [*_SLURM, "--name=a\nb"],
      r"--name:1: 'a\\nb': expected at most 39 .*",
    ),
    (
      "partition",
      [*_SLURM, "--partition=gpu;id"],
      r"--partition:1: 'gpu;id': expected a name, as 'sinfo' .*",
    ),
    (
      "time",
      [*_SLURM, "--time_limit=soon"],
      r"--time_limit:1: 'soon': expected days-hours:minutes:seconds",
    ),
    (
      "nodes",
      [*_SLURM, "--nodes=0"],
      r"--nodes:1: 0: expected 1 to 100000; change it",
    ),
    (
      "flag_of_another_place",
      [*_SLURM, "--image=a"],
      r"--image:1: not for --to=slurm; leave it out",
    ),
    (
      "flag_of_any_other_place",
      ["--python=python3"],
      r"--python:1: not for --to=local; leave it out, or change --to",
    ),
    (
      "missing_flag",
      ["--to=jobset", "--workdir=/s", "--folder=/app"],
      r"--image:1: --to=jobset needs it; expected container image",
    ),
    (
      "no_folder",
      [*_JOBSET[:2], _JOBSET[3]],
      r"--folder:1: '': expected an absolute path, .*",
    ),
    (
      "image",
      [*_JOBSET[:3], "--image=a b"],
      r"--image:1: 'a b': expected an image such as registry/dsx:1.0",
    ),
    (
      "topology_of_no_slice",
      [*_JOBSET, "--topology=2x2"],
      r"--topology:1: '2x2', and --accelerator=None: expected both .*",
    ),
    (
      "claim",
      [*_JOBSET, "--volume_claim=runs"],
      r"--volume_claim:1: '': expected an absolute path, .*",
    ),
    (
      "variable_without_a_value",
      [*_SLURM, "--env=A"],
      r"--env:1: 'A': expected NAME=VALUE; write both",
    ),
    (
      "variable_that_is_shell",
      ["--env=A;id=1"],
      r"--env:1: 'A;id': expected a name of letters, digits and '_'; write"
      r" --env=NAME=VALUE",
    ),
    (
      "variable_that_is_taken",
      [*_JOBSET, "--env=DSX_PROCESS=1"],
      r"--env:1: DSX_PROCESS: holds a pod's index; name it otherwise",
    ),
    (
      "negative_restarts",
      ["--max_restarts=-1"],
      r"--max_restarts:1: -1: expected 0 to 100000; change it",
    ),
    (
      "no_processes",
      ["--nodes=0"],
      r"--nodes:1: 0: expected 1 to 100000; change it",
    ),
    (
      "place",
      ["--to=mars"],
      r"flag --to=mars: value should be one of <local\|slurm\|jobset\|.*",
    ),
    (
      "zone",
      ["--to=tpu_vm", *_TPU, "--zone=$(id)", "--runtime_version=v2"],
      r"--zone:1: '\$\(id\)': expected a name such as us-east5-a",
    ),
  )
  def test_refused_before_anything_is_written(self, arguments, line):
    output = [] if "--to" not in " ".join(arguments) else ["--output=job"]
    done = self.call(_RUN, *arguments, *output)
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertRegex(done.stderr, f"^{line}\n$")
    self.assertEmpty(done.stdout)
    self.assertEmpty(list(self.folder.iterdir()))

  def test_bytes_that_are_no_text(self):
    arguments = [sys.executable, "-m", "experiments.launch", *_SLURM, _RUN]
    done = subprocess.run(
      [*arguments, b"--env=A=\xff", "--output=job"],
      cwd=self.folder,
      env={"PYTHONPATH": str(_ROOT), "LC_ALL": "C.UTF-8"},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertRegex(done.stderr, r"^--env:1: .*: expected UTF-8; write it .*")
    self.assertFalse(self.output.exists())

  def test_slurm(self):
    done = self.call(
      *_SLURM, _RUN, "--nodes=4", "--seed=7", "--output=job", "--partition=gpu"
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(done.stdout, "to start: sbatch job\n")
    lines = self.output.read_text().splitlines()
    self.assertContainsSubset(
      [
        "#SBATCH --job-name=x",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --partition=gpu",
        f"cd -- {_ROOT} || exit 1",
        f"  {sys.executable}",
        "  --gin_file=gin_configs/runs/v3_small.gin",
        "  --seed=7",
        "  --workdir=/shared/runs/x",
      ],
      lines,
    )

  def test_gin_files_outside_the_checkout_keep_their_path(self):
    own = self.folder / "own.gin"
    own.write_text("include 'gin_configs/runs/v3_small.gin'\n")
    done = self.call(*_SLURM, "--gin_file=own.gin")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn(f"  --gin_file={own.resolve()}\n", done.stdout)

  def test_what_is_rendered_is_what_pretrain_accepts(self):
    """The arguments go through the check of a run once more."""
    bindings = ["--gin_bindings=Pretraining.sample_prompt = '$(id) \\n é'"]
    done = self.call(*_JOBSET, _RUN, *bindings, "--nodes=2")
    self.assertEqual(done.returncode, 0, done.stderr)
    spec = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"][0]["template"]
    (container,) = spec["spec"]["template"]["spec"]["containers"]
    self.assertEqual(container["command"][:3], ["python", "-m", launch.MODULE])
    words = [word.replace("$$", "$") for word in container["command"][3:]]
    self.assertContainsSubset(bindings, words)
    own = ("--coordinator", "--num_proc", "--process_id")
    words = [word for word in words if not word.startswith(own)]
    again = self.call("--to=slurm", *words)
    self.assertEqual(again.returncode, 0, again.stderr)

  @parameterized.parameters(1, 2)
  def test_one_pod_needs_no_coordinator(self, nodes):
    done = self.call(*_JOBSET, _RUN, f"--nodes={nodes}")
    self.assertEqual("--coordinator_address" in done.stdout, nodes > 1)

  def test_tpu_slices_find_each_other(self):
    tpu = ["--accelerator=tpu-v5p-slice", "--topology=2x2x4", "--nodes=4"]
    done = self.call(*_JOBSET, _RUN, *tpu, "--devices_per_node=4")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('- "--detect_processes"', done.stdout)
    self.assertIn("google.com/tpu: 4", done.stdout)
    self.assertNotIn("--coordinator_address", done.stdout)

  @parameterized.named_parameters(
    ("xpk", ["--to=xpk", *_TPU, "--cluster=c", "--image=a"], "bash job"),
    (
      "tpu_vm",
      ["--to=tpu_vm", *_TPU, "--zone=us-east5-a", "--runtime_version=v2"],
      "bash job create|run|delete",
    ),
  )
  def test_scripts(self, arguments, submission):
    done = self.call(_RUN, *arguments, "--output=job")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(done.stdout, f"to start: {submission}\n")
    syntax = subprocess.run(["bash", "-n", str(self.output)], check=False)
    self.assertEqual(syntax.returncode, 0)

  def test_dry_run_writes_nothing(self):
    done = self.call(*_SLURM, _RUN, "--output=job", "--dry_run")
    self.assertStartsWith(done.stdout, "#!/bin/bash\n")
    self.assertFalse(self.output.exists())

  def test_dry_run_of_processes_here(self):
    done = self.call(_RUN, "--nodes=4", "--devices_per_node=2", "--dry_run")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("4 processes, devices of each: 2 on the CPU", done.stdout)
    self.assertIn("-m experiments.pretrain --gin_file=", done.stdout)


class LocalTest(parameterized.TestCase):
  def test_processes_are_started_as_asked(self):
    words = [
      "launch",
      _RUN,
      "--nodes=4",
      "--devices_per_node=2",
      "--max_restarts=5",
      "--env=DSX_DATA_DIR=/data",
      "--workdir=/tmp/x",
    ]
    with (
      flagsaver.flagsaver(),
      mock.patch.object(sys, "argv", words),
      mock.patch.object(local, "run", return_value=75) as run,
      contextlib.redirect_stderr(io.StringIO()),
      self.assertRaises(SystemExit) as end,
    ):
      cli.run(launch.main, target=launch.TARGET)
    self.assertEqual(end.exception.code, 75)
    ((command,), given) = run.call_args
    self.assertEqual(command[1:3], ["-m", launch.MODULE])
    self.assertEqual(command[3:], [_RUN, "--workdir=/tmp/x"])
    environment = given.pop("environment")
    self.assertEqual(environment["DSX_DATA_DIR"], "/data")
    self.assertEqual(
      environment[cli.RESUME_VARIABLE],
      shlex.join(["python", "-m", "experiments.launch", *words[1:]]),
    )
    self.assertEqual(
      given,
      {
        "processes": 4,
        "devices_per_process": 2,
        "max_restarts": 5,
        "workdir": "/tmp/x",
      },
    )

  def test_every_setting_has_a_flag(self):
    for cls in options._SETTINGS.values():
      for name in cls.__dataclass_fields__:
        self.assertIn(name, options._OPTIONS)


if __name__ == "__main__":
  absltest.main()
