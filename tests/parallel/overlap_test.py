"""What a schedule does while data travel."""

from absl.testing import absltest

from dsx.parallel import hlo
from dsx.parallel import overlap

_TEXT = """HloModule step, is_scheduled=true

%sent (p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0} parameter(0)
  ROOT %inner = bf16[8]{0} all-to-all(%p), replica_groups={{0,1}}
}

ENTRY %main (x: bf16[8]) -> bf16[8] {
  %x = bf16[8]{0} parameter(0)
  %a-start = (bf16[8]{0}, bf16[16]{0}) all-gather-start(%x), replica_groups={}
  %f = bf16[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %a-done = bf16[16]{0} all-gather-done(%a-start)
  %b-start = ((bf16[8]), bf16[8]) async-start(%f), calls=%sent
  %t = bf16[8]{0} bitcast(%f)
  %b-done = bf16[8]{0} async-done(%b-start)
  %copy-start = (bf16[8], bf16[8]) copy-start(%t)
  %g = bf16[8]{0} fusion(%t), kind=kLoop, calls=%fused
  %copy-done = bf16[8]{0} copy-done(%copy-start)
  ROOT %c = bf16[8]{0} all-reduce(%g), replica_groups={}, to_apply=%add
}
"""


class OverlapTest(absltest.TestCase):
  def test_what_runs_meanwhile(self):
    gather, exchange = overlap.travels(hlo.parse(_TEXT))
    self.assertEqual(gather.collectives, (("main", "a-start"),))
    self.assertEqual([line.name for line in gather.meanwhile], ["f"])
    self.assertEqual(exchange.collectives, (("sent", "inner"),))
    self.assertEmpty(exchange.meanwhile)  # a new name for bytes is no work

  def test_hidden_behind_work(self):
    self.assertEqual(overlap.hidden(hlo.parse(_TEXT)), {("main", "a-start")})


if __name__ == "__main__":
  absltest.main()
