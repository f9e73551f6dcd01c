"""A job as a script that makes a TPU slice, runs the job on it, deletes it.

Every host of the slice gets the same command by ssh, and JAX finds the others
in what the machine says of itself. When one host fails the others end, and the
script starts all of them again from the last good checkpoint.
"""

import dataclasses
import shlex

from experiments.launching import job as job_lib
from experiments.launching import shell

SUFFIX = ".sh"
_WORD = r"[a-z0-9]([-a-z0-9_.:]*[a-z0-9])?"
_POLL_SECONDS = 30

_ACTIONS = """\
queue=(gcloud compute tpus queued-resources)
on_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" \\
    --command="$2"
}
create() {
  "${queue[@]}" create "$name" --node-id="$name" "${where[@]}" "${kind[@]}"
}
state() {
  "${queue[@]}" describe "$name" "${where[@]}" --format='value(state.state)'
}
wait_for_it() {
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPEND*) echo "$name is $now" >&2; return 1 ;;
    esac
    sleep %d
  done
  [[ $now == ACTIVE ]]
}
attempt() { on_hosts all "$command"; }
progress() { on_hosts 0 "$list" 2>/dev/null; }
run() {
%s
}
delete() { "${queue[@]}" delete "$name" "${where[@]}" --force --quiet; }

case ${1-} in
  create) create && wait_for_it ;;
  run) (run) ;;
  delete) delete ;;
  *) echo "usage: $0 create|run|delete" >&2; exit 2 ;;
esac
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuVm:
  """What Google Cloud is asked for.

  Attributes:
    zone: such as us-east5-a.
    tpu_type: such as v5p-1024 (by cores) or v6e-256 (by chips).
    runtime_version: of the machines' software, such as v2-alpha-tpuv5.
    project: None takes gcloud's.
    spot: whether the slice may be taken away at any time.
  """

  zone: str
  tpu_type: str
  runtime_version: str
  project: str | None = None
  spot: bool = False

  def __post_init__(self):
    for flag, example in (
      ("zone", "us-east5-a"),
      ("tpu_type", "v5p-1024"),
      ("runtime_version", "v2-alpha-tpuv5"),
      ("project", "my-project"),
    ):
      if (value := getattr(self, flag)) is not None:
        job_lib.check(flag, value, _WORD, f"a name such as {example}")

  def render(self, job: job_lib.Job) -> str:
    """The script."""
    words = (*job.own_command, "--detect_processes")
    remote = f"cd -- {shlex.quote(job.folder)} && exec {shlex.join(words)}"
    checkpoints = shlex.quote(f"{job.workdir}/checkpoints")
    kind = [f"--accelerator-type={self.tpu_type}"]
    kind += [f"--runtime-version={self.runtime_version}"]
    kind += ["--spot"] if self.spot else []
    where = [f"--zone={self.zone}"]
    where += [f"--project={self.project}"] if self.project else []
    lines = [
      "#!/bin/bash",
      "# Made by experiments.launch. `create` makes the slice and waits for",
      "# it; `run`, again and again, goes on from the last good checkpoint;",
      "# `delete` ends the bill. The checkout is on every host before `run`.",
      "set -u",
      f"name={shlex.quote(job.name)}",
      *shell.array("where", where),
      *shell.array("kind", kind),
      f"command={shlex.quote(remote)}",
      f"list={shlex.quote(f'ls -- {checkpoints}')}",
      _ACTIONS
      % (
        _POLL_SECONDS,
        "\n".join(f"  {line}" for line in shell.supervision(job.max_restarts)),
      ),
    ]
    return "\n".join(lines)
