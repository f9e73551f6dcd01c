"""The benchmark of FP8 products, as far as a CPU can take it."""

import contextlib
import io

from absl.testing import absltest

from benchmarks import fp8_gemm


class Fp8GemmTest(absltest.TestCase):
  def test_a_cpu_can_try_the_whole_way_to_the_table(self):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
      self.assertEqual(fp8_gemm.main(["--tiny"]), 0)
    lines = said.getvalue().splitlines()
    rows = [line for line in lines if line.startswith("| tiny")]
    self.assertLen(rows, 1)
    self.assertIn("| 256 x 128 x 128 |", rows[0])
    # Each kernel and each way to quantise, printed first and with the table.
    checks = [line for line in lines if line.endswith("| ok |")]
    self.assertLen(checks, 2 * 5)

  def test_other_devices_are_refused_in_a_line(self):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
      self.assertEqual(fp8_gemm.main([]), 1)
    self.assertRegex(said.getvalue(), "^platform='cpu': hopper_gemm wants")


if __name__ == "__main__":
  absltest.main()
