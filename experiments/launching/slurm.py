"""A job as a script for SLURM's `sbatch`.

One task a device: JAX reads the number of tasks, its own rank, its device and
the coordinator from what `srun` sets. When one task ends badly `srun` ends the
others, and the script starts all of them again from the last good checkpoint.
Two minutes before the time limit every task is sent SIGTERM, saves and ends,
and the job goes back into the queue; scancel ends it for good.
"""

import dataclasses
import shlex

from experiments.launching import job as job_lib
from experiments.launching import shell

SUFFIX = ".sbatch"
# What ended well before the end of its schedule was asked to. A job that saves
# nothing within its time would go round for ever.
_END = """\
end() {
  if [[ $(progress) != "$first" ]] &&
    grep -qs '"state_digest": null' -- "$summary"; then
    echo "stopped before its end, and queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit 0
}
first=$(progress)"""
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.,+-]*"
_TIME = r"(\d+-)?\d+(:\d+){0,2}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
  """What SLURM is asked for besides machines.

  Attributes:
    partition: where to queue.
    account: whom to charge.
    qos: quality of service.
    time_limit: in SLURM's own words, such as 1-00:00:00 for a day.
  """

  partition: str | None = None
  account: str | None = None
  qos: str | None = None
  time_limit: str | None = None

  def __post_init__(self):
    for flag in ("partition", "account", "qos"):
      value = getattr(self, flag)
      if value is not None:
        job_lib.check(
          flag, value, _WORD, "a name, as 'sinfo' and 'sacctmgr' show them"
        )
    if self.time_limit is not None:
      job_lib.check(
        "time_limit", self.time_limit, _TIME, "days-hours:minutes:seconds"
      )

  def render(self, job: job_lib.Job) -> str:
    """The script."""
    asked = {
      "job-name": job.name,
      "output": f"{job.name}-%j.out",
      "open-mode": "append",
      "nodes": job.nodes,
      "ntasks-per-node": job.devices_per_node,
      "gpus-per-node": job.devices_per_node,
      "signal": "TERM@120",
      "partition": self.partition,
      "account": self.account,
      "qos": self.qos,
      "time": self.time_limit,
    }
    lines = ["#!/bin/bash"]
    for name, value in asked.items():
      if value is not None:
        lines.append(f"#SBATCH --{name}={value}")
    checkpoints = shlex.quote(f"{job.workdir}/checkpoints")
    lines += [
      "#SBATCH --requeue",
      "",
      "# Made by experiments.launch; submit it with sbatch. Submitted again it",
      "# goes on from the last good checkpoint.",
      "set -u",
      f"cd -- {shlex.quote(job.folder)} || exit 1",
      *shell.array("command", (*job.own_command, "--detect_processes")),
      'attempt() { srun --kill-on-bad-exit=1 "${command[@]}"; }',
      f"progress() {{ ls -- {checkpoints} 2>/dev/null; }}",
      f"summary={shlex.quote(f'{job.workdir}/summary.json')}",
      _END,
      *shell.supervision(job.max_restarts, end="end"),
    ]
    return "\n".join(lines) + "\n"
