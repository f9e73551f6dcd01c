"""One of several processes that are asked to stop: half of a test.

Arguments: a port, the number of processes, this one's number, the name of the
signal, when it comes ('early', 'compiling', or a step) and to whom ('0,2').
Whoever got one gets a SIGTERM again after the last step, as a cluster's comes
to some processes later than to others.
"""

import os
import signal
import sys

import jax
import jax.numpy as jnp

from dsx.parallel import distributed
from dsx.parallel import mesh as mesh_lib
from dsx.training import preemption

STEPS = 1000


def main() -> None:
  """Adds the numbers of all processes, step by step."""
  port, count, rank, name, when, whom = sys.argv[1:]
  distributed.initialise(f"127.0.0.1:{port}", int(count), int(rank))
  mine = rank in whom.split(",")

  def moment(now: str) -> None:
    if mine and now == when:
      os.kill(os.getpid(), signal.Signals[name])

  @jax.jit
  def add(numbers):
    moment("compiling")
    return jnp.sum(numbers)

  moment("early")
  with distributed.together(), preemption.Preemption() as stop:
    mesh = mesh_lib.make(mesh_lib.MeshShape())
    everywhere = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(tuple(mesh.axis_names))
    )
    numbers = jax.make_array_from_callback(
      (int(count),), everywhere, lambda index: jnp.ones(1)
    )
    take = distributed.compiled(add, numbers)
    for step in range(1, STEPS + 1):
      moment(str(step))
      total = take(numbers)
      if stop.requested():
        break
  if mine:
    os.kill(os.getpid(), signal.SIGTERM)
  # A collective of its own, as a checkpoint has: nobody is lost by now.
  total = int(take(numbers))
  why = stop.signal.name if stop.signal else "the end"
  print(f"{why}: step {step}, total {total}", flush=True)


if __name__ == "__main__":
  main()
