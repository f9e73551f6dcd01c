"""Saves until it is killed, again and again: the other half of a test.

For each line on standard input, `<directory> <milliseconds>`, forks a process
that goes on from the newest step of the directory, saves step after step and
kills itself with SIGKILL that long after its first save began. Answers with the
newest step that it had been told is complete, or -1. Forking spares each of
them the imports; JAX's backend starts in the child.
"""

import os
import signal
import sys
import threading

if __name__ == "__main__":
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
  os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from dsx.training import checkpoint


def state(step: int) -> dict[str, np.ndarray]:
  """What is saved as a step: about 1 MB, other values at every step."""
  rng = np.random.default_rng(step)
  return {
    name: rng.normal(size=(rows, 512)).astype(np.float32)
    for name, rows in (("a", 256), ("b", 2), ("c", 256))
  }


def _save_for_ever(directory: str, seconds: float, answer) -> None:
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  checkpoints = checkpoint.Checkpointer(directory, max_to_keep=2)
  step = max(checkpoints.steps(), default=-1)
  threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
  while True:
    # A save returns once the one before it is complete.
    step += 1
    checkpoints.save(step, jax.device_put(state(step), sharding), {"at": step})
    os.write(answer, f"{step - 1}\n".encode())


def main() -> None:
  for line in sys.stdin:
    directory, milliseconds = line.split()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
      try:
        _save_for_ever(directory, float(milliseconds) / 1000, write)
      finally:
        os._exit(1)
    os.close(write)
    with os.fdopen(read) as told:
      lines = told.read().split()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    print(lines[-1] if lines else -1, int(killed), flush=True)


if __name__ == "__main__":
  main()
