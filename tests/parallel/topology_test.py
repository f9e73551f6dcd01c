"""Machines by name, and what is said of those that cannot be had."""

import importlib.util
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.parallel import gpu_targets
from dsx.parallel import topology


class TopologyTest(parameterized.TestCase):
  @parameterized.parameters(
    "v5p", "v5p:", "v5p:8x", "v5p:0x4", "v4:4x4x4", "a100:2x8", "V5P:8x8x8", ""
  )
  def test_no_name_of_a_machine(self, name):
    with self.assertRaisesRegex(
      ValueError, f"^topology='{name}': expected one of v5e, v5p, .*h100"
    ):
      topology.find(name)

  @parameterized.parameters(
    ("v5p:4x4x4", "libtpu", r"needs libtpu; install dsx\[tpu\]"),
    ("h100:2x8", "jax_cuda13_plugin", r"CUDA plugin; install dsx\[gpu\]"),
  )
  def test_a_compiler_that_is_not_installed(self, name, package, message):
    found = importlib.util.find_spec

    def find(asked, *rest):
      return None if asked == package else found(asked, *rest)

    with mock.patch.object(importlib.util, "find_spec", find):
      with self.assertRaisesRegex(ValueError, message):
        topology.find(name)

  def test_gpus_are_machines_of_gpus(self):
    with self.assertRaisesRegex(ValueError, "expected machines x GPUs"):
      topology.find("h100:256")

  @parameterized.parameters(*gpu_targets.TARGETS)
  def test_descriptions_of_gpus_are_closed(self, kind):
    text = gpu_targets.TARGETS[kind]
    self.assertEqual(text.count("{"), text.count("}"))
    self.assertNotIn("{{", text)


if __name__ == "__main__":
  absltest.main()
