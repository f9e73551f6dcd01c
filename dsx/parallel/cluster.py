"""Where the processes of a run meet, as the machine they are on says it.

JAX knows the environments of TPU pods, SLURM, Open MPI and Kubernetes. What is
given by hand wins over what is found.
"""

import dataclasses
import os

# The only door to what JAX detects without starting anything.
from jax._src import clusters

# Where its mpirun is, which later versions do not say.
_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meeting:
  """What a process has to know to meet the others.

  Attributes:
    coordinator_address: host:port of process 0.
    num_processes: how many there are.
    process_id: which one this is.
    local_device_ids: the devices of this machine that are its own; None for
      all.
  """

  coordinator_address: str
  num_processes: int
  process_id: int
  local_device_ids: tuple[int, ...] | None = None

  def __post_init__(self):
    host, colon, port = self.coordinator_address.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 2**16):
      raise ValueError(
        f"coordinator_address={self.coordinator_address!r}: expected "
        "host:port; write the name or address of the machine of process 0 and "
        "a free port of it"
      )
    if not 0 <= self.process_id < self.num_processes:
      raise ValueError(
        f"process_id={self.process_id}: expected one of 0 to "
        f"{self.num_processes - 1}, num_processes={self.num_processes} of them;"
        " count from 0"
      )

  @property
  def coordinator(self) -> tuple[str, int]:
    """Host and port of process 0."""
    host, _, port = self.coordinator_address.rpartition(":")
    return host.strip("[]"), int(port)


def given(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
) -> Meeting | None:
  """The meeting that is written on a command line; None for one process.

  Raises:
    ValueError: only some of the three are given, or one is impossible.
  """
  if coordinator_address is num_processes is process_id is None:
    return None
  if None in (coordinator_address, num_processes, process_id):
    raise ValueError(
      f"coordinator_address={coordinator_address!r}, num_processes="
      f"{num_processes!r}, process_id={process_id!r}: expected all three or "
      "none; give the others too, or --detect_processes"
    )
  assert coordinator_address and num_processes is not None
  assert process_id is not None
  return Meeting(
    coordinator_address=coordinator_address,
    num_processes=num_processes,
    process_id=process_id,
  )


def detect(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  timeout_seconds: int = 300,
) -> Meeting:
  """The meeting that the environment describes.

  Args:
    coordinator_address: if given, the environment need not say it.
    num_processes: likewise.
    process_id: likewise.
    timeout_seconds: how long to look for a TPU pod's coordinator.

  Raises:
    ValueError: the environment does not say enough, or says nonsense.
  """
  if "OMPI_COMM_WORLD_RANK" in os.environ and _OPEN_MPI_4 not in os.environ:
    detected = _open_mpi_5(coordinator_address, num_processes, process_id)
  else:
    try:
      detected = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator_address,
        num_processes,
        process_id,
        None,
        None,
        timeout_seconds,
      )
    except (RuntimeError, OSError, ValueError, IndexError) as error:
      raise ValueError(
        f"--detect_processes: the environment cannot be understood ({error}); "
        "give coordinator_address, num_processes and process_id"
      ) from error
  address, count, process, devices = detected
  if address is None or count is None or process is None:
    raise ValueError(
      f"--detect_processes: found coordinator_address={address!r}, "
      f"num_processes={count!r}, process_id={process!r}; expected a TPU pod, "
      "or to be started by srun or mpirun; give what is missing"
    )
  return Meeting(
    coordinator_address=address,
    num_processes=count,
    process_id=process,
    local_device_ids=None if _alone() or not devices else tuple(devices),
  )


def _open_mpi_5(address: str | None, count: int | None, process: int | None):
  """What Open MPI 5 says: all but where process 0 is."""
  environ = os.environ
  if count is None:
    count = int(environ["OMPI_COMM_WORLD_SIZE"])
  if process is None:
    process = int(environ["OMPI_COMM_WORLD_RANK"])
  return address, count, process, [int(environ["OMPI_COMM_WORLD_LOCAL_RANK"])]


def _alone() -> bool:
  """Whether this is the only process of its machine, whose devices it gets.

  JAX takes a SLURM task or an MPI rank to be one of several with a GPU each.
  """
  ranks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
  tasks = os.environ.get("SLURM_NTASKS")
  machines = os.environ.get("SLURM_STEP_NUM_NODES")
  return ranks == "1" or (tasks is not None and tasks == machines)
