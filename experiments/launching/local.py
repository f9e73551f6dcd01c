"""Runs a command as several processes of this machine, and starts it again.

    from experiments.launching import local
    command = [sys.executable, "-m", "experiments.pretrain", *arguments]
    code = local.run(command, processes=4, devices_per_process=1,
                     workdir="runs/v3_tiny")

When one process dies, the others end (see `dsx.parallel.liveness`); whoever
does not is killed. Then all are started anew and go on from the newest good
checkpoint of the workdir.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import re
import socket
import sys

from dsx.training import step_directory
from experiments.launching import group

_DEVICES = "--xla_force_host_platform_device_count"
# Wrong flags or gin files, Ctrl-C, a closed pipe: the same would come again.
_FINAL = (2, 130, 141)


def run(
  command: Sequence[str],
  *,
  processes: int,
  devices_per_process: int | None = None,
  max_restarts: int = 3,
  workdir: str | os.PathLike[str] | None = None,
  environment: Mapping[str, str] | None = None,
  grace_seconds: float = 30.0,
) -> int:
  """Runs `command` as processes that train together, until it is done.

  Args:
    command: a binary of `experiments` with its flags. Each process is given
      `--coordinator_address`, `--num_processes` and `--process_id` besides.
    processes: how many.
    devices_per_process: CPU devices that each shows as its own; None leaves
      the devices as they are.
    max_restarts: how often in a row it is started again without a new
      checkpoint in between; 0 for never.
    workdir: where the run keeps its checkpoints. Without it no progress is
      seen, and `max_restarts` counts all restarts.
    environment: of the processes; by default this one's.
    grace_seconds: how long the others may take to end when one has died.

  Returns:
    0 if all processes end well, which they also do when SIGTERM or Ctrl-C asks
    them to save and stop; else the exit code of the one that died first, 128
    and the signal's number if it was killed.

  Raises:
    ValueError: a number is too small.
  """
  for name, value, least in (
    ("processes", processes, 1),
    ("devices_per_process", devices_per_process, 1),
    ("max_restarts", max_restarts, 0),
  ):
    if value is not None and value < least:
      raise ValueError(f"{name}={value}: expected at least {least}; raise it")
  environment = _environment(environment, devices_per_process)
  restarts, saved = 0, _newest(workdir)
  with group.Stopping() as stopping:
    while True:
      attempt = group.Group(
        _commands(command, processes), environment, grace_seconds
      )
      end = attempt.wait(stopping)
      if end.process is None:
        return 0
      code = end.code if end.code >= 0 else 128 - end.code
      _say(end.describe())
      if stopping.asked:
        return code
      before, saved = saved, _newest(workdir)
      restarts = 0 if saved != before else restarts
      refused = _why_not(end.code, restarts, max_restarts, saved != before)
      if refused:
        _say(refused)
        return code
      restarts += 1
      _say(f"starting again, {_from(saved)} ({restarts} of {max_restarts})")


def _why_not(code: int, restarts: int, limit: int, progress: bool) -> str:
  """Why the run is not started again; empty if it is."""
  if code in _FINAL:
    return "not started again: the same would come again"
  if restarts >= limit:
    return f"not started again: max_restarts={limit} without a new checkpoint"
  # An error that has its own exit code is said in a line above; a machine's
  # mishap comes as a signal, or as another process's loss.
  if code == 1 and not progress:
    return "not started again: it failed before it got any further"
  return ""


def _from(step: int | None) -> str:
  return "from the beginning" if step is None else f"from step {step:,}"


def _newest(workdir: str | os.PathLike[str] | None) -> int | None:
  """The newest complete checkpoint's step."""
  if workdir is None:
    return None
  steps = step_directory.StepDirectory(pathlib.Path(workdir) / "checkpoints")
  return max(steps.complete(), default=None)


def _commands(command: Sequence[str], processes: int) -> list[list[str]]:
  """The command of each process; they meet at a free port."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  return [
    [
      *command,
      f"--coordinator_address=127.0.0.1:{port}",
      f"--num_processes={processes}",
      f"--process_id={process}",
    ]
    for process in range(processes)
  ]


def _environment(given: Mapping[str, str] | None, devices: int | None):
  environment = dict(os.environ if given is None else given)
  # What a process says is shown at once, and is not lost when it is killed.
  environment["PYTHONUNBUFFERED"] = "1"
  if devices is not None:
    kept = re.sub(rf"{_DEVICES}=\S*", "", environment.get("XLA_FLAGS", ""))
    environment["XLA_FLAGS"] = f"{kept} {_DEVICES}={devices}".strip()
    environment["JAX_PLATFORMS"] = "cpu"
  return environment


def _say(text: str) -> None:
  print(f"launcher: {text}", file=sys.stderr, flush=True)
