"""One of several processes that save and restore together: half of a test.

Arguments: this process's number, the number of processes, a port, a directory.
Prints one JSON object on its last line.
"""

import json
import os
import pathlib
import sys

if __name__ == "__main__":
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
  os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from jax.experimental import multihost_utils
import numpy as np

from dsx.training import checkpoint
from dsx.training import ema


def values(step: int) -> dict[str, np.ndarray]:
  """What step `step` holds, on the host."""
  rng = np.random.default_rng(step)
  return {
    "sharded": rng.normal(size=(8, 64)).astype(np.float32),
    "columns": rng.normal(size=(4, 64)).astype(np.float16),
    "replicated": rng.integers(0, 99, size=33),
    "key": np.asarray(jax.random.key_data(jax.random.key(step))),
  }


def arrays(step: int, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """The same as arrays over all processes."""
  specs = {
    "sharded": jax.sharding.PartitionSpec("a", "b"),
    "columns": jax.sharding.PartitionSpec(None, "a"),
    "replicated": jax.sharding.PartitionSpec(),
    "key": jax.sharding.PartitionSpec(),
  }
  placed = {
    name: jax.make_array_from_callback(
      value.shape,
      jax.sharding.NamedSharding(mesh, specs[name]),
      lambda index, value=value: value[index],
    )
    for name, value in values(step).items()
  }
  return placed | {"key": jax.random.wrap_key_data(placed["key"])}


def _is(found: dict[str, jax.Array], step: int) -> bool:
  found = found | {"key": jax.random.key_data(found["key"])}
  return all(
    np.array_equal(shard.data, values(step)[name][shard.index])
    for name, leaf in found.items()
    for shard in leaf.addressable_shards
  )


def _flip_a_bit(step: pathlib.Path) -> None:
  files = [path for path in step.rglob("*") if path.is_file()]
  file = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def main() -> None:
  rank, count, port, directory = (*map(int, sys.argv[1:4]), sys.argv[4])
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    f"127.0.0.1:{port}", count, rank, heartbeat_timeout_seconds=10
  )
  mesh = jax.make_mesh(
    (count, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  checkpoints = checkpoint.Checkpointer(directory, timeout_seconds=60)
  said = {}

  for step in (1, 2):
    checkpoints.save(step, arrays(step, mesh), {"at": step})
  checkpoints.wait()
  said["steps"] = checkpoints.steps()
  restored = checkpoints.restore(arrays(0, mesh))
  said["restored"] = [restored.step, _is(restored.arrays, 2)]

  if rank == count - 1:
    _flip_a_bit(pathlib.Path(directory) / "2")
  multihost_utils.sync_global_devices("flipped")
  restored = checkpoints.restore(arrays(0, mesh))
  said["fallen_back"] = [restored.step, _is(restored.arrays, 1)]
  said["notes"] = restored.notes
  checkpoints.save(2, arrays(2, mesh), {"at": 2})
  checkpoints.wait()
  said["saved_anew"] = checkpoints.restore(arrays(0, mesh)).step

  try:
    checkpoints.save(3, {"a": jax.numpy.ones(2)}, {})
  except ValueError as error:
    said["alone"] = str(error)

  average = ema.Ema({"w": arrays(1, mesh)["sharded"]}, 0.5)
  average.update({"w": arrays(2, mesh)["sharded"]})
  checkpoints.save(3, {"ema": average.arrays()}, {})
  checkpoints.close()

  print(json.dumps(said), flush=True)
  jax.distributed.shutdown()


if __name__ == "__main__":
  main()
