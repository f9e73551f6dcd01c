"""The table of kernels: which there are, and how reports are read."""

from absl.testing import absltest
from absl.testing import parameterized

from benchmarks import fp8_kernels

_PTXAS = """ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
    24 bytes stack frame, {spilled} bytes spill stores, 4 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers, 17 bytes smem
{more}"""
_PTX = "wgmma.mma_async.sync.aligned.m64n128k32 {};\n" * 4
_PASSES = """%a = arith.constant 5 : i32
%c7 = arith.constant 199760 : i32
gpu.launch dynamic_shared_memory_size %c7 {"""


class Fp8KernelsTest(parameterized.TestCase):
  @parameterized.parameters(
    (12, "", "ok"),
    (64, "", "FAILED: spills more than 32 bytes"),
    (0, "wgmma.mma_async instructions are serialized", "FAILED: wgmma"),
  )
  def test_reads_what_the_assembler_reports(self, spilled, more, verdict):
    report = _PTXAS.format(spilled=spilled, more=more)
    found = fp8_kernels.of_report(report, _PTX, _PASSES)
    self.assertEqual(found.registers, 168)
    self.assertEqual(found.shared, 199760)
    self.assertEqual(found.spilled, max(spilled, 4))
    self.assertEqual(found.wgmma, 4)
    self.assertStartsWith(found.verdict, verdict)

  def test_refuses_another_assemblers_report(self):
    with self.assertRaisesRegex(ValueError, "ptxas: expected its report"):
      fp8_kernels.of_report("nothing", _PTX, _PASSES)

  def test_cases_are_of_every_kernel_at_v3s_shapes(self):
    cases = fp8_kernels.cases()
    shapes = {(case.kernel, case.shape) for case in cases}
    self.assertLen(shapes, len(cases))
    self.assertIn(("wgrad", "kv_b_proj 4096 x 512 x 32768"), shapes)
    for kernel in ("grouped fprop", "grouped wgrad", "quantise weight"):
      self.assertIn(kernel, {case.kernel for case in cases})


if __name__ == "__main__":
  absltest.main()
