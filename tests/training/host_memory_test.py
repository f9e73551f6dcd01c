"""The allocator keeps large blocks that are freed."""

import subprocess
import sys

from absl.testing import absltest

_SCRIPT = """
import resource
import numpy as np
from dsx.training import host_memory

def faults(times):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(times):
    np.ones(2 ** 22)  # 32 MiB, 8192 pages
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults(8)
kept = host_memory.keep_freed()
faults(1)
print(kept, before, faults(8))
"""


class HostMemoryTest(absltest.TestCase):
  def test_freed_blocks_are_not_mapped_anew(self):
    done = subprocess.run(
      [sys.executable, "-c", _SCRIPT],
      capture_output=True,
      text=True,
      timeout=120,
      check=True,
    )
    kept, before, after = done.stdout.split()
    if kept == "True":
      self.assertLess(int(after), max(int(before), 64) // 2)
    else:
      self.assertEqual(kept, "False")


if __name__ == "__main__":
  absltest.main()
