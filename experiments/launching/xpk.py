"""A job as a call of `xpk workload create`, for TPU slices on GKE.

xpk puts the command into a shell script in a template of a YAML manifest, and
Kubernetes expands $(NAME) in it. The command is therefore one line of printable
ASCII in which none of them finds anything of its own; see `shell.plain_words`.
"""

import dataclasses

from experiments.launching import job as job_lib
from experiments.launching import jobset
from experiments.launching import shell

SUFFIX = ".sh"
_WORD = r"[a-z0-9]([-a-z0-9_.:]*[a-z0-9])?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Xpk:
  """What xpk is asked for.

  Attributes:
    cluster: name of the GKE cluster.
    tpu_type: such as v5p-1024 (by cores) or v6e-256 (by chips).
    image: container image with dsx installed.
    slices: TPU slices.
    project: of Google Cloud; None takes gcloud's.
    zone: None takes gcloud's.
  """

  cluster: str
  tpu_type: str
  image: str
  slices: int = 1
  project: str | None = None
  zone: str | None = None

  def __post_init__(self):
    for flag, example in (
      ("cluster", "my-cluster"),
      ("tpu_type", "v5p-1024"),
      ("project", "my-project"),
      ("zone", "us-east5-a"),
    ):
      if (value := getattr(self, flag)) is not None:
        job_lib.check(flag, value, _WORD, f"a name such as {example}")
    job_lib.check(
      "image", self.image, jobset.IMAGE, "an image such as registry/dsx:1.0"
    )
    job_lib.check_count("slices", self.slices)

  def render(self, job: job_lib.Job) -> str:
    """The script."""
    words = (*job.own_command, "--detect_processes")
    command = f"cd {shell.plain_words([job.folder])} && "
    command += f"exec {shell.plain_words(words)}"
    flags = {
      "cluster": self.cluster,
      "workload": job.name,
      "tpu-type": self.tpu_type,
      "num-slices": self.slices,
      "docker-image": self.image,
      "max-restarts": job.max_restarts,
      "project": self.project,
      "zone": self.zone,
      "command": command,
    }
    lines = [
      "#!/bin/bash",
      "# Made by experiments.launch: run it where xpk is installed.",
      *shell.array(
        "flags",
        [f"--{k}={v}" for k, v in flags.items() if v is not None],
      ),
      'exec xpk workload create "${flags[@]}" "$@"',
    ]
    return "\n".join(lines) + "\n"
