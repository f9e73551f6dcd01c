"""`python -m experiments.compile_topology` as a person calls it.

What it prints of a compiled step is tested in
tests/training/ahead_of_time_test.py, where a compiler is at hand.
"""

from absl.testing import absltest
from absl.testing import parameterized

from tests.experiments import trained_run

_RUN = "--gin_file=gin_configs/runs/v3_tiny.gin"


class CompileTopologyTest(parameterized.TestCase):
  @parameterized.parameters(
    (("--topology=v9:8x8",), 1, "topology='v9:8x8': expected one of v5e, v5p"),
    (("--topology=h100:8",), 1, "expected machines x GPUs"),
    ((), 2, "--topology"),
  )
  def test_one_line_for_a_wrong_topology(self, flags, code, message):
    done = trained_run.call("compile_topology", _RUN, *flags)
    self.assertEqual(done.returncode, code)
    self.assertIn(message, done.stderr)
    self.assertLen(done.stderr.splitlines(), 1)
    self.assertEmpty(done.stdout)

  def test_dry_run_compiles_nothing(self):
    done = trained_run.call(
      "compile_topology", _RUN, "--topology=v5p:8x8x16", "--dry_run"
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("FLOPs per token", done.stdout)


if __name__ == "__main__":
  absltest.main()
