import json
import os
import pathlib
import socket
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx.training import checkpoint
from dsx.training import commit
from dsx.training import manifest
from dsx.training import step_directory
from tests.training import two_processes

_SECONDS = 120


def _free_port() -> int:
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    return server.getsockname()[1]


def _run(count: int, directory: str) -> list[dict]:
  """Runs the processes; none outlives the test."""
  script = pathlib.Path(two_processes.__file__)
  environment = os.environ | {"PYTHONPATH": str(script.parents[2])}
  port = str(_free_port())
  processes = [
    subprocess.Popen(
      [sys.executable, script, str(rank), str(count), port, directory],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for rank in range(count)
  ]
  try:
    outputs = [process.communicate(timeout=_SECONDS) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.wait()
  for process, (_, error) in zip(processes, outputs, strict=True):
    if process.returncode:
      raise AssertionError(error[-3000:])
  return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


class CommitTest(parameterized.TestCase):
  def test_one_process(self):
    directory = step_directory.StepDirectory(self.create_tempdir().full_path)
    directory.path(4).mkdir()
    (directory.path(4) / "file").write_text("x")
    pending = commit.Pending(
      step=4,
      serial=1,
      leaves={"w": ((2, 3), "float32")},
      sums={"w": 5},
    )
    commit.commit(directory, pending, timeout_seconds=1)
    found = manifest.read(directory.path(4))
    self.assertEqual(found.step, 4)
    leaf = manifest.Leaf(shape=(2, 3), dtype="float32", checksum=5)
    self.assertEqual(found.leaves, {"w": leaf})
    self.assertEqual(found.files["file"].size, 1)
    self.assertEqual(directory.complete(), [4])

  def test_processes_save_and_restore_together(self):
    directory = self.create_tempdir().full_path
    said = _run(2, directory)
    for one in said:
      self.assertEqual(one["steps"], [1, 2])
      self.assertEqual(one["restored"], [2, True])
      self.assertEqual(one["fallen_back"], [1, True])
      self.assertLen(one["notes"], 1)
      self.assertIn("is damaged", one["notes"][0])
      self.assertEqual(one["saved_anew"], 2)
      self.assertIn("'a' lives on this process alone", one["alone"])
    # All say the same, though one of them has read the damaged file.
    self.assertEqual(said[0]["notes"], said[1]["notes"])
    names = sorted(os.listdir(directory))
    self.assertEqual(names, ["1", "2", "2.damaged", "3"])
    self._check_in_one_process(directory)

  def _check_in_one_process(self, directory):
    """On other devices, in another number, the values are the same."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with checkpoint.Checkpointer(directory) as checkpoints:
      target = {
        name: jax.ShapeDtypeStruct(
          value.shape,
          value.dtype if name != "replicated" else np.int32,
          sharding=rows if name == "sharded" else whole,
        )
        for name, value in two_processes.values(2).items()
      }
      target["key"] = jax.device_put(jax.random.key(0), whole)
      restored = checkpoints.restore(target, step=2)
      self.assertEqual(restored.metadata, {"at": 2})
      found = restored.arrays
      found["key"] = jax.random.key_data(found["key"])
      for name, value in two_processes.values(2).items():
        np.testing.assert_array_equal(found[name], value)
      average = {"ema": {"w": target["sharded"]}}
      found = checkpoints.restore(average, step=3).arrays["ema"]["w"]
    old, new = (two_processes.values(step)["sharded"] for step in (1, 2))
    np.testing.assert_array_equal(found, old + np.float32(0.5) * (new - old))


if __name__ == "__main__":
  absltest.main()
