"""One of several processes that take the same training steps: half of a test.

Arguments: a port, the number of processes, this one's number, a folder. All
have four devices together. Process 0 writes what the steps have left as
FOLDER/spread.npz: losses, loads of experts, parameters, moments of the
gradients and router biases, by name. A lone process also takes them on one
device.
"""

import pathlib
import sys

import jax
import numpy as np

from dsx.models import deepseek
from dsx.parallel import distributed
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import batches
from dsx.training import optimizer as optimizer_lib
from dsx.training import state as state_lib
from dsx.training import step as step_lib
from tests.training import tiny

_OPTIMIZER = optimizer_lib.AdamW(moment_dtype="float32").transformation()
_STEPS = 2
_SEQUENCES = 8
ALONE, SPREAD = "one_device", "spread"
# Between processes the experts' tokens cross `node`, and with four of them
# `local` too; the batch, parameters and moments are spread over both.
_SPREAD = (
  mesh_lib.MeshShape(data=1, node=2, local=2),
  sharding_lib.Sharding(strategy="fully_sharded"),
)


class _Source:
  """The same sequences for everybody."""

  def rows(self, indices):
    return {"tokens": tiny.tokens(_STEPS * _SEQUENCES, 17)[indices]}


def steps(mesh: jax.sharding.Mesh, sharding: sharding_lib.Sharding):
  """Takes a few steps; returns all that they have left, on the host."""
  model = deepseek.DeepSeek(tiny.model_config())
  found: dict[str, np.ndarray] = {}
  with sharding_lib.use(mesh, sharding):
    boxed = state_lib.abstract(model, _OPTIMIZER)
    placement = state_lib.shardings(boxed, sharding, mesh)
    state = state_lib.initialise(model, _OPTIMIZER, placement, seed=0)
    take = step_lib.compiled(model, _OPTIMIZER, placement)
    for step in range(_STEPS):
      rows = np.arange(_SEQUENCES)[None] + step * _SEQUENCES
      batch = batches.place(_Source(), rows, mesh)
      if step == 0:
        take = distributed.compiled(take, state, batch, tiny.scalars())
      state, metrics = take(state, batch, tiny.scalars())
      found[f"loss/{step}"] = state_lib.whole(metrics["loss"])
      found[f"load/{step}"] = state_lib.whole(metrics["load"])
    left = {
      name: getattr(state, name)
      for name in ("params", "opt_state", "router_bias")
    }
    # One program for all leaves: each process then has the whole.
    gather = jax.jit(lambda x: x, out_shardings=sharding_lib.replicated(mesh))
    gather = distributed.compiled(gather, left)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gather(left)):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      found[name] = state_lib.whole(leaf)
  return found


def main() -> None:
  """Takes the steps and writes what they have left."""
  port, count, rank, folder = sys.argv[1:]
  if int(count) > 1:
    distributed.initialise(f"127.0.0.1:{port}", int(count), int(rank))
  with distributed.together():
    shape, sharding = _SPREAD
    found = {SPREAD: steps(mesh_lib.make(shape), sharding)}
    if int(count) == 1:
      alone = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
      found[ALONE] = steps(alone, sharding_lib.Sharding())
    if int(rank) == 0:
      for name, arrays in found.items():
        with (pathlib.Path(folder) / f"{name}.npz").open("wb") as file:
          np.savez(file, allow_pickle=False, **arrays)


if __name__ == "__main__":
  main()
