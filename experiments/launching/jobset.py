"""A job as a JobSet for Kubernetes, GKE's above all.

One pod a machine, which starts the program without a shell. Where pods have
GPUs, they are told each other by flags: the first one's host name, how many
there are, and the pod's index. On a TPU slice JAX finds all three in what GKE
sets. When a pod fails, all are started anew, from the last good checkpoint;
exit code 2, a mistake in flags or gin files, ends the job instead.
"""

import dataclasses
from typing import Any

import yaml

from experiments.launching import job as job_lib

SUFFIX = ".yaml"
_REPLICATED_JOB = _CONTAINER = "run"
_INDEX = "DSX_PROCESS"
_PORT = 12345
_SECONDS_TO_SAVE = 120
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_LABEL_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
IMAGE = (
  r"[a-z0-9]+([._:-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
  r"(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSet:
  """What Kubernetes is asked for besides machines.

  Attributes:
    image: container image with dsx installed.
    volume_claim: the shared file system, as CLAIM:/PATH.
    accelerator: GKE's name of the machines' accelerators, such as
      nvidia-h100-80gb or tpu-v5p-slice; None takes any GPU.
    topology: of a TPU slice, such as 4x4x8.
    namespace: None takes kubectl's.
    queue: Kueue's local queue.
  """

  image: str
  volume_claim: str | None = None
  accelerator: str | None = None
  topology: str | None = None
  namespace: str | None = None
  queue: str | None = None

  def __post_init__(self):
    job_lib.check(
      "image", self.image, IMAGE, "an image such as registry/dsx:1.0"
    )
    for flag in ("namespace", "queue"):
      if (value := getattr(self, flag)) is not None:
        job_lib.check(flag, value, _LABEL, "a DNS-1123 label such as team-a")
    if self.accelerator is not None:
      job_lib.check(
        "accelerator",
        self.accelerator,
        _LABEL_VALUE,
        "the value of a node's label, such as nvidia-h100-80gb",
      )
    if self.topology is not None:
      job_lib.check(
        "topology", self.topology, r"\d{1,4}(x\d{1,4}){1,2}", "such as 4x4x8"
      )
    if self.has_tpus != (self.topology is not None):
      job_lib.refuse(
        "topology",
        f"{self.topology!r}, and --accelerator={self.accelerator!r}: expected"
        " both --accelerator=tpu-... and --topology of a TPU slice, or no"
        " topology; change one",
      )
    if self.volume_claim is not None:
      claim, _, path = self.volume_claim.partition(":")
      job_lib.check(
        "volume_claim", claim, _LABEL, "CLAIM:/PATH, such as runs:/shared"
      )
      job_lib.check_path("volume_claim", path)

  @property
  def has_tpus(self) -> bool:
    """Whether it runs on a TPU slice."""
    return (self.accelerator or "").startswith("tpu")

  def manifest(self, job: job_lib.Job) -> dict[str, Any]:
    """The JobSet, as the API takes it.

    Raises:
      problems.Refused: a variable has a name that is taken.
    """
    if _INDEX in job.environment:
      job_lib.refuse("env", f"{_INDEX}: holds a pod's index; name it otherwise")
    labels = {"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {}
    metadata = {"name": job.name, "namespace": self.namespace, "labels": labels}
    mistake = {
      "action": "FailJob",
      "onExitCodes": {
        "containerName": _CONTAINER,
        "operator": "In",
        "values": [2],
      },
    }
    one = {
      "parallelism": job.nodes,
      "completions": job.nodes,
      "completionMode": "Indexed",
      "backoffLimit": 0,
      "podFailurePolicy": {"rules": [mistake]},
      "template": {"spec": self._pod(job)},
    }
    rule = {
      "name": "mistake",
      "action": "FailJobSet",
      "onJobFailureReasons": ["PodFailurePolicy"],
    }
    replicated = {
      "name": _REPLICATED_JOB,
      "replicas": 1,
      "template": {"spec": one},
    }
    return {
      "apiVersion": "jobset.x-k8s.io/v1alpha2",
      "kind": "JobSet",
      "metadata": {name: value for name, value in metadata.items() if value},
      "spec": {
        "failurePolicy": {"maxRestarts": job.max_restarts, "rules": [rule]},
        "replicatedJobs": [replicated],
      },
    }

  def _pod(self, job: job_lib.Job) -> dict[str, Any]:
    device = "google.com/tpu" if self.has_tpus else "nvidia.com/gpu"
    limits = {"limits": {device: job.devices_per_node}}
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    # NCCL's processes of one machine meet in shared memory.
    volumes: list[Any] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if self.volume_claim is not None:
      claim, _, path = self.volume_claim.partition(":")
      mounts.append({"name": "shared", "mountPath": path})
      source = {"persistentVolumeClaim": {"claimName": claim}}
      volumes.append({"name": "shared", **source})
    command = [literal(word) for word in (*job.command, *self._own(job))]
    environment: list[Any] = [
      {"name": name, "value": literal(value)}
      for name, value in job.environment.items()
    ]
    if not self.has_tpus and job.nodes > 1:
      host = f"{job.name}-{_REPLICATED_JOB}-0-0.{job.name}"
      command += [
        f"--coordinator_address={host}:{_PORT}",
        f"--num_processes={job.nodes}",
        f"--process_id=$({_INDEX})",
      ]
      path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
      source = {"fieldRef": {"fieldPath": path}}
      environment.insert(0, {"name": _INDEX, "valueFrom": source})
    selector = {
      f"cloud.google.com/gke-{'tpu-' * self.has_tpus}accelerator": (
        self.accelerator
      ),
      "cloud.google.com/gke-tpu-topology": self.topology,
    }
    pod = {
      "restartPolicy": "Never",
      "terminationGracePeriodSeconds": _SECONDS_TO_SAVE,
      "nodeSelector": {k: v for k, v in selector.items() if v is not None},
      "containers": [
        {
          "name": _CONTAINER,
          "image": self.image,
          "workingDir": job.folder,
          "command": command,
          "env": environment,
          "resources": limits,
          "volumeMounts": mounts,
        }
      ],
      "volumes": volumes,
    }
    return {name: value for name, value in pod.items() if value != {}}

  def _own(self, job: job_lib.Job) -> tuple[str, ...]:
    return ("--detect_processes",) if self.has_tpus and job.nodes > 1 else ()

  def render(self, job: job_lib.Job) -> str:
    """The manifest, in YAML."""
    head = (
      "# Made by experiments.launch. kubectl apply -f this file; deleted and\n"
      "# applied again it goes on from the last good checkpoint.\n"
    )
    return head + text(self.manifest(job))


def literal(value: str) -> str:
  """`value` such that Kubernetes, which expands $(NAME), gives it back."""
  return value.replace("$", "$$")


class _Text(str):
  """Is written between double quotes.

  YAML's readers disagree on which plain words are numbers: Go's, which
  Kubernetes uses, reads 1e3 as one, and Python's does not.
  """


class _Dumper(yaml.SafeDumper):
  """Writes no anchors, and `_Text` in quotes."""

  def ignore_aliases(self, data):
    return True


def _quoted(dumper: yaml.SafeDumper, value: _Text) -> yaml.Node:
  return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"')


_Dumper.add_representer(_Text, _quoted)


def _marked(value: Any) -> Any:
  """`value` with its texts to be quoted; keys are our own plain words."""
  if isinstance(value, dict):
    return {key: _marked(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_marked(item) for item in value]
  return _Text(value) if isinstance(value, str) else value


def text(manifest: dict[str, Any]) -> str:
  """YAML that every reader understands alike."""
  return yaml.dump(
    _marked(manifest),
    Dumper=_Dumper,
    sort_keys=False,
    width=4096,
    allow_unicode=False,
  )
