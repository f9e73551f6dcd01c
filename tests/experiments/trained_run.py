"""A workdir with a config.gin, and programs run on it as a person would."""

import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

from dsx.parallel import mesh as mesh_lib
from dsx.training import workdir as workdir_lib
from tests.evals import workdirs

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_GIN = """\
from __gin__ import dynamic_registration
from dsx.data import pipeline
from dsx.models import config
from dsx.parallel import mesh
from dsx.training import pretraining
from dsx.training import schedules

pipeline.Data.sequence_length = 16
pipeline.Data.prepared = {prepared!r}
schedules.Schedule.total_tokens = 2048
schedules.Schedule.sequence_length = 16
schedules.Schedule.batch_size_start = 8
schedules.Schedule.batch_size = 8
mesh.MeshShape.data = 8
pretraining.Pretraining.data = @pipeline.Data()
pretraining.Pretraining.schedule = @schedules.Schedule()
pretraining.Pretraining.mesh = @mesh.MeshShape()
pretraining.Pretraining.config = @config.DeepSeekConfig()
pretraining.Pretraining.ema_decay = 0.9
pretraining.Pretraining.final_evaluation_records = 11
"""


def make() -> pathlib.Path:
  """Returns a fresh workdir of an untrained model."""
  folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
  data = workdirs.data(folder / "data")
  run = workdirs.run(data, mesh=mesh_lib.MeshShape(data=8))
  workdirs.save(folder / "run", run, {4: workdirs.state_of(run, seed=0)})
  lines = [
    f"config.DeepSeekConfig.{name} = {value!r}"
    for name, value in run.identity()["config"].items()
  ]
  text = _GIN.format(prepared=data.prepared) + "\n".join(lines) + "\n"
  workdir_lib.describe(folder / "run", **{"config.gin": text})
  return folder / "run"


def call(binary: str, *arguments: str):
  """Runs `python -m experiments.<binary>`; returns the finished process."""
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{binary}", *arguments],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
