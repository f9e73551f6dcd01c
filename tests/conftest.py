"""What every test needs before JAX is imported: 8 CPU devices, strict ranks.

Tests that shard anything run on eight CPU devices of one process. Broadcasting
between arrays of different rank is an error in tests: it is the commonest way
in which a wrong shape still gives a number.
"""

import os
import re
import shutil
import tempfile

from absl import flags

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
