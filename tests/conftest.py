"""What every test needs: 8 CPU devices, strict ranks, and room for programs.

Tests that shard anything run on eight CPU devices of one process. Broadcasting
between arrays of different rank is an error in tests: it is the commonest way
in which a wrong shape still gives a number.
"""

import gc
import os
import re
import shutil
import sys
import tempfile

from absl import flags
import pytest

_DEVICES = "--xla_force_host_platform_device_count"

# A developer's own XLA_FLAGS stay, except for the number of devices.
_kept = re.sub(rf"{_DEVICES}=\S*", "", os.environ.get("XLA_FLAGS", ""))
os.environ["XLA_FLAGS"] = f"{_kept} {_DEVICES}=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


def pytest_configure(config):
  """Lets absl's `create_tempdir` work under pytest, in a fresh directory."""
  config.dsx_temporary = tempfile.mkdtemp(prefix="dsx_test_")
  os.environ["TEST_TMPDIR"] = config.dsx_temporary
  flags.FLAGS.mark_as_parsed()


def pytest_unconfigure(config):
  """Leaves nothing behind."""
  shutil.rmtree(config.dsx_temporary, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _programs_end_with_their_file():
  """Frees what a file of tests compiled.

  Each program holds some memory maps, of which Linux gives a process 65,530.
  Half an hour of compiling reaches that, and LLVM then ends the process.
  """
  yield
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()
    gc.collect()
