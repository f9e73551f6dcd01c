"""The flags that say where a run goes, and the job that they describe.

`experiments.launch` and `experiments.sweep` have them in common. A flag that
the chosen place has no use for is refused: it was meant for something.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import shlex
import sys
from typing import Any
from typing import Protocol

from absl import flags

from experiments import cli
from experiments.bindings import search
from experiments.launching import job as job_lib
from experiments.launching import jobset
from experiments.launching import slurm
from experiments.launching import tpu_vm
from experiments.launching import xpk

LOCAL = "local"
_PLACES: dict[str, Any] = {
  "slurm": slurm,
  "jobset": jobset,
  "xpk": xpk,
  "tpu_vm": tpu_vm,
}
_SETTINGS: dict[str, Any] = {
  "slurm": slurm.Slurm,
  "jobset": jobset.JobSet,
  "xpk": xpk.Xpk,
  "tpu_vm": tpu_vm.TpuVm,
}
_SUBMISSION = {
  "slurm": "sbatch",
  "jobset": "kubectl apply --filename",
  "xpk": "bash",
  "tpu_vm": "bash",
}

TO = flags.DEFINE_enum(
  "to",
  LOCAL,
  [LOCAL, *_PLACES],
  "Where to run: here, or a file for SLURM, GKE's JobSet, xpk or a TPU VM.",
)
OUTPUT = flags.DEFINE_string(
  "output", None, "What to write; by default launch prints it."
)
NAME = flags.DEFINE_string(
  "name", None, "What a scheduler calls it; by default the workdir's name."
)
NODES = flags.DEFINE_integer("nodes", None, "Machines; locally, processes.")
DEVICES = flags.DEFINE_integer(
  "devices_per_node",
  None,
  "Accelerators of a machine; locally, CPU devices of a process.",
)
MAX_RESTARTS = flags.DEFINE_integer(
  "max_restarts", None, "Restarts in a row without a new checkpoint."
)
ENV = flags.DEFINE_multi_string(
  "env", [], "NAME=VALUE for every process; may be repeated."
)
FOLDER = flags.DEFINE_string(
  "folder", None, "The checkout on the machines; for SLURM by default this one."
)
PYTHON = flags.DEFINE_string(
  "python", None, "Python there; by default python, for SLURM this one."
)
_HELP = {
  "partition": "SLURM: where to queue.",
  "account": "SLURM: whom to charge.",
  "qos": "SLURM: quality of service.",
  "time_limit": "SLURM: days-hours:minutes:seconds.",
  "image": "JobSet, xpk: container image.",
  "volume_claim": "JobSet: the shared file system, CLAIM:/PATH.",
  "accelerator": "JobSet: nvidia-h100-80gb, tpu-v5p-slice, ...",
  "topology": "JobSet: of a TPU slice, such as 4x4x8.",
  "namespace": "JobSet: of Kubernetes.",
  "queue": "JobSet: Kueue's local queue.",
  "cluster": "xpk: of GKE.",
  "tpu_type": "xpk, TPU VM: such as v5p-1024.",
  "project": "xpk, TPU VM: of Google Cloud.",
  "zone": "xpk, TPU VM: such as us-east5-a.",
  "runtime_version": "TPU VM: such as v2-alpha-tpuv5.",
}
_OPTIONS: dict[str, flags.FlagHolder] = {
  name: flags.DEFINE_string(name, None, text) for name, text in _HELP.items()
}
_OPTIONS["slices"] = flags.DEFINE_integer("slices", None, "xpk: TPU slices.")
_OPTIONS["spot"] = flags.DEFINE_bool(
  "spot", None, "TPU VM: a slice that may be taken away."
)
# Of a job that is rendered, and of nothing else.
_RENDERED = {"name": NAME, "folder": FOLDER, "python": PYTHON}


class Settings(Protocol):
  """What one scheduler is asked for besides machines."""

  def render(self, job: job_lib.Job) -> str:
    """The job in the scheduler's language."""
    ...


def settings() -> Settings | None:
  """What the flags ask of the scheduler; None for this machine.

  Raises:
    problems.Refused: a flag is missing, wrong or out of place.
  """
  place = TO.value
  given = {
    name: flag.value
    for name, flag in _OPTIONS.items()
    if flag.value is not None
  }
  if place == LOCAL:
    unused = [*given, *(n for n, f in _RENDERED.items() if f.value is not None)]
    if unused:
      job_lib.refuse(
        unused[0], "not for --to=local; leave it out, or change --to"
      )
    return None
  fields = {field.name: field for field in dataclasses.fields(_SETTINGS[place])}
  for name in given:
    if name not in fields:
      job_lib.refuse(name, f"not for --to={place}; leave it out")
  for name, field in fields.items():
    if field.default is dataclasses.MISSING and name not in given:
      what = _HELP[name].partition(": ")[2].rstrip(".")
      job_lib.refuse(name, f"--to={place} needs it; expected {what}")
  return _SETTINGS[place](**given)


def suffix() -> str:
  """How the name of a rendered file ends."""
  return _PLACES[TO.value].SUFFIX


def submission(path: pathlib.Path) -> str:
  """What a person types to submit a rendered file."""
  more = " create|run|delete" if TO.value == "tpu_vm" else ""
  return f"{_SUBMISSION[TO.value]} {shlex.quote(str(path))}{more}"


def submission_of_all(names: Sequence[str]) -> str:
  """A script that submits the rendered files beside it."""
  lines = ["#!/bin/bash", 'cd -- "$(dirname -- "$0")" || exit 1']
  for name in names:
    path = shlex.quote(f"./{name}")
    if TO.value == "tpu_vm":  # one slice each, all at once
      line = f"(bash {path} create && bash {path} run; bash {path} delete) &"
      lines.append(line)
    else:
      lines.append(f"{_SUBMISSION[TO.value]} {path}")
  return "\n".join([*lines, "wait"]) + "\n"


def environment() -> dict[str, str]:
  """The variables of `--env`."""
  found = {}
  for text in ENV.value:
    name, equals, value = text.partition("=")
    if not equals:
      job_lib.refuse("env", f"{text!r}: expected NAME=VALUE; write both")
    job_lib.check_variable(name, value)
    found[name] = value
  return found


def arguments(
  workdir: str, bindings: Sequence[str] = (), seed: int | None = None
) -> tuple[str, ...]:
  """Flags of the run, from those of this program.

  Args:
    workdir: of the run.
    bindings: more of them, which win.
    seed: None takes that of this program, if any.
  """
  seed = cli.SEED.value if seed is None else seed
  return (
    *(f"--gin_file={_portable(name)}" for name in cli.GIN_FILE.value),
    *(
      f"--gin_bindings={text}" for text in (*cli.GIN_BINDINGS.value, *bindings)
    ),
    *(() if seed is None else (f"--seed={seed}",)),
    f"--workdir={workdir}",
  )


def _portable(name: str) -> str:
  """A gin file's name as it is found on any machine with the checkout."""
  path = search.SearchPath().given(name)
  if path.is_relative_to(search.ROOT):
    return str(path.relative_to(search.ROOT))
  return str(path)


def workdir() -> str:
  """The run's folder, as the machines see it.

  Raises:
    problems.Refused: for other machines it is not absolute.
  """
  if TO.value == LOCAL:
    return str(cli.workdir())
  job_lib.check_path("workdir", cli.WORKDIR.value or "")
  return str(pathlib.PurePosixPath(cli.WORKDIR.value or ""))


def job(module: str, arguments: Sequence[str], workdir: str, name: str = ""):
  """The job that the flags describe.

  Args:
    module: what to run.
    arguments: its flags.
    workdir: of the run.
    name: of the job, before that of `--name` or the workdir.

  Raises:
    problems.Refused: a flag is missing or wrong.
  """
  here = TO.value == "slurm"
  folder = FOLDER.value or (str(search.ROOT) if here else "")
  python = PYTHON.value or (sys.executable if here else "python")
  default = job_lib.name_of(pathlib.PurePosixPath(workdir).name)
  given = {
    "nodes": NODES.value,
    "devices_per_node": DEVICES.value,
    "max_restarts": MAX_RESTARTS.value,
  }
  return job_lib.Job(
    name=name or NAME.value or default,
    program=(python, "-m", module),
    arguments=tuple(arguments),
    workdir=workdir,
    folder=folder,
    environment=environment(),
    **{name: value for name, value in given.items() if value is not None},
  )
