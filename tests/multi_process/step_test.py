"""One, two and four processes take the same steps."""

import os
import pathlib
import socket
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.multi_process import stepper
from tests.training import tiny_run

_DEVICES = 4
_LIMIT = 300
# float32 sums in another order; Adam magnifies the difference of gradients that
# are nearly zero up to a fraction of the learning rate, 1e-3.
_TOLERANCE = 1e-4
_kept = []


def setUpModule():
  """Takes all steps once, for all tests."""
  folder = tiny_run.folder()
  _kept.append(folder)
  global _found
  root = folder.__enter__()
  _found = {count: _run(root / str(count), count) for count in (1, 2, 4)}


def tearDownModule():
  _kept.pop().__exit__(None, None, None)


def _run(folder: pathlib.Path, count: int):
  """What `count` processes of four devices in all find, by name."""
  folder.mkdir()
  with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
  devices = f"--xla_force_host_platform_device_count={_DEVICES // count}"
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "tests.multi_process.stepper"),
        *map(str, (port, count, rank, folder)),
      ],
      cwd=tiny_run.ROOT,
      env={
        **os.environ,
        "XLA_FLAGS": devices,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
      },
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(count)
  ]
  try:
    for process in processes:
      _, errors = process.communicate(timeout=_LIMIT)
      if process.returncode:
        raise RuntimeError(f"{count} processes: {errors}")
  finally:
    for process in processes:
      process.kill()
      process.wait()
  return {
    path.stem: dict(np.load(path).items()) for path in folder.glob("*.npz")
  }


class StepTest(parameterized.TestCase):
  def _check(self, found, expected):
    self.assertEqual(found.keys(), expected.keys())
    for name, value in expected.items():
      # Tokens are counted, and biases step by a fixed size: exactly.
      exact = name.startswith(("load", "router_bias"))
      tolerance = 0 if exact else _TOLERANCE
      np.testing.assert_allclose(
        found[name], value, rtol=tolerance, atol=tolerance, err_msg=name
      )

  @parameterized.parameters(1, 2, 4)
  def test_steps_are_those_of_one_device(self, count):
    self._check(_found[count][stepper.SPREAD], _found[1][stepper.ALONE])

  def test_the_steps_change_what_is_compared(self):
    once = _found[1][stepper.ALONE]
    parts = {name.partition("/")[0] for name in once}
    self.assertContainsSubset({"params", "opt_state", "router_bias"}, parts)
    self.assertNotEqual(once["loss/0"], once["loss/1"])
    biases = [v for k, v in once.items() if k.startswith("router_bias")]
    self.assertTrue(all(bias.any() for bias in biases))


if __name__ == "__main__":
  absltest.main()
