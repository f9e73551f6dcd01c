"""One of several processes that add numbers together: half of a test.

Arguments: a port, the number of processes, this one's number, what befalls a
process in its fifth step ('nothing', 'kill', 'stop', 'hang' or 'fail', or
before it all: 'absence') and which one.
"""

import os
import signal
import sys
import threading

import jax
import jax.numpy as jnp

from dsx.parallel import distributed
from dsx.parallel import liveness
from dsx.parallel import mesh as mesh_lib

_STEP = 5
# Enough that nobody is done before the others are lost.
_STEPS = {"nothing": 10}


def befall(trouble: str) -> None:
  """What happens to this process."""
  if trouble == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
  elif trouble == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
  elif trouble == "hang":
    threading.Event().wait()
  elif trouble == "fail":
    raise ValueError("a bad record")


def main() -> None:
  """Adds the numbers of all processes, step by step."""
  port, count, rank, trouble, victim = sys.argv[1:]
  distributed.initialise(
    f"127.0.0.1:{port}",
    int(count),
    int(rank),
    timing=liveness.Timing(
      beat_seconds=0.2,
      silence_seconds=3 if trouble == "stop" else 60,
      hang_seconds=2 if trouble == "hang" else 60,
      meet_seconds=2 if trouble == "absence" else 60,
    ),
  )
  with distributed.together():
    mesh = mesh_lib.make(mesh_lib.MeshShape())
    everywhere = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(tuple(mesh.axis_names))
    )
    numbers = jax.make_array_from_callback(
      (int(count),), everywhere, lambda index: jnp.ones(1)
    )
    add = jax.jit(jnp.sum)
    for step in range(_STEPS.get(trouble, 10**9)):
      if step == _STEP and rank == victim:
        befall(trouble)
      distributed.arrived(f"step {step}")
      total = int(add(numbers))
  print(f"total {total}", flush=True)


if __name__ == "__main__":
  main()
