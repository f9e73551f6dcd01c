"""Meeting of the processes of one run, through `jax.distributed`."""

import atexit
from collections.abc import Iterator
import contextlib
import os
import sys

import jax

# After this long without a sign of life a process counts as lost, and JAX ends
# the others, which wait for it in a collective. JAX's own 100 s waste machines.
_LOST_SECONDS = 30


def initialise(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  detect: bool = False,
) -> None:
  """Joins the other processes; does nothing for a run of one process.

  Args:
    coordinator_address: host:port of process 0, or None.
    num_processes: how many processes there are.
    process_id: which one this is, from 0.
    detect: let JAX find all three in its environment (TPU pods, SLURM, Open
      MPI).

  Raises:
    ValueError: if only some of the three are given.
  """
  given = (coordinator_address, num_processes, process_id)
  if not detect and all(value is None for value in given):
    return
  if not detect and any(value is None for value in given):
    raise ValueError(
      f"coordinator_address={coordinator_address!r}, num_processes="
      f"{num_processes!r}, process_id={process_id!r}: expected all three or "
      "none; give the others too"
    )
  # XLA's own CPU collectives do not cross processes.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    coordinator_address=coordinator_address,
    num_processes=num_processes,
    process_id=process_id,
    heartbeat_timeout_seconds=_LOST_SECONDS,
  )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Ends this process without waiting if what is inside fails in it.

  The others wait for it in a collective, and at its exit it would wait for
  them; now they notice, and JAX ends them. With one process nothing changes.
  """
  try:
    yield
  except Exception:
    if jax.process_count() > 1:
      # Runs before what JAX has registered, which meets the other processes.
      atexit.register(_exit)
    raise


def _exit() -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)
