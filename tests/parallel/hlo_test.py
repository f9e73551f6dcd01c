"""Compiled programs are taken apart as they were put together."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp

from dsx.parallel import hlo

_TEXT = """HloModule jit_step, is_scheduled=true

%body (carry: (s32[], f32[4])) -> (s32[], f32[4]) {
  %carry = (s32[]{:T(128)}, /*index=1*/f32[4]{0:T(256)S(1)}) parameter(0)
  ROOT %next = (s32[], f32[4]) custom-call(%carry), custom_call_target="f(x)"
}

%condition (carry: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %carry = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main.1 (x: f32[4]) -> (s32[], f32[4]) {
  %x = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4]) tuple(%zero, %x)
  ROOT %loop = (s32[], f32[4]) while(%start), condition=%condition, body=%body
}
"""


def _loop(trips):
  """A program with a sine in a loop; of unknown length if `trips` is None."""

  def f(x, n):
    with jax.named_scope("turns"):
      return lax.fori_loop(
        0, n if trips is None else trips, lambda i, x: jnp.sin(x), x
      )

  return jax.jit(f).lower(jnp.ones(4), jnp.int32(2)).compile().as_text()


def _sines(text, **trips):
  program = hlo.parse(text)
  runs = program.runs(trips)
  return sum(
    runs[name]
    for name, computation in program.computations.items()
    for one in computation.instructions.values()
    if one.opcode == "sine"
  )


class HloTest(parameterized.TestCase):
  def test_takes_lines_apart(self):
    program = hlo.parse(_TEXT)
    self.assertEqual(program.entry, "main.1")
    entry = program.computations["main.1"]
    self.assertEqual(list(entry.instructions), ["x", "zero", "start", "loop"])
    loop = entry.instructions["loop"]
    self.assertEqual(loop.opcode, "while")
    self.assertEqual(loop.operands, ("start",))
    self.assertCountEqual(loop.called, ["condition", "body"])
    self.assertEqual(loop.bytes, 4 + 16)
    self.assertEqual(entry.operand_bytes(entry.instructions["start"]), 20)

  def test_a_line_that_a_kernel_s_metadata_break_is_one(self):
    whole = '%next = (s32[], f32[4]) custom-call(%carry), custom_call_target="f'
    broken = whole.replace(
      "custom_call_target",
      'attributes={kernel={\n"a":"{\\"b\\": 1}"\n}}, calls=%f, target',
    )
    body = hlo.parse(_TEXT.replace(whole, broken)).computations["body"]
    self.assertEqual(list(body.instructions), ["carry", "next"])
    self.assertEqual(body.instructions["next"].called, ("f",))

  def test_a_loop_s_length_is_its_condition_s_constant(self):
    program = hlo.parse(_TEXT)
    self.assertEqual(program.runs()["body"], 7)

  def test_a_loop_to_anything_else_is_of_unknown_length(self):
    text = _TEXT.replace("compare(%i, %limit)", "compare(%limit, %i)")
    program = hlo.parse(text)
    self.assertIsNone(
      program.trips(program.computations["main.1"].instructions["loop"])
    )

  def test_loops_of_this_machine_s_compiler(self):
    self.assertEqual(_sines(_loop(5)), 5)
    self.assertEqual(_sines(_loop(None)), 1)
    self.assertEqual(_sines(_loop(None), turns=3), 3)
    self.assertEqual(_sines(_loop(None), turns=0), 0)
    self.assertEqual(_sines(_loop(None), others=3), 1)

  def test_loops_in_loops_multiply(self):
    def f(x):
      def inner(i, x):
        return lax.fori_loop(0, 3, lambda j, x: jnp.sin(x), x)

      return lax.fori_loop(0, 4, inner, x)

    self.assertEqual(
      _sines(jax.jit(f).lower(jnp.ones(4)).compile().as_text()), 12
    )

  @parameterized.parameters(
    ("f32[2,3]{1,0}", 24),
    ("bf16[]", 2),
    ("(bf16[8,4]{1,0:T(8,128)(2,1)}, pred[3], token[])", 67),
    ("s4[5]", 3),
    ("f8e4m3fn[16]", 16),
  )
  def test_bytes_of_types(self, kind, expected):
    self.assertEqual(hlo.type_bytes(kind), expected)

  def test_text_that_is_no_program(self):
    with self.assertRaisesRegex(ValueError, "ENTRY computation"):
      hlo.parse("HloModule nothing")


if __name__ == "__main__":
  absltest.main()
