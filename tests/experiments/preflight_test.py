"""Every mistake in a gin file has a line that says what to do."""

import pathlib
import subprocess
import sys
import textwrap

from absl.testing import absltest
from absl.testing import parameterized

from tests.experiments import toy

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class OneMistakeTest(toy.ToyTestCase):
  @parameterized.named_parameters(
    (
      "misspelt_field",
      "top.Run.stepps = 3",
      "run.gin:8: top.Run has no field 'stepps'; did you mean 'steps'?",
    ),
    (
      "misspelt_class",
      "top.Rum.steps = 3",
      "run.gin:8: top.Rum: dsx_toy.top has no 'Rum'; did you mean 'Run'?",
    ),
    (
      "misspelt_module",
      "topp.Run.steps = 3",
      "run.gin:8: topp.Run: 'topp' is not imported here; did you mean 'top'?",
    ),
    (
      "misspelt_import",
      "from dsx_toy import tops",
      "run.gin:8: 'from dsx_toy import tops': there is no module dsx_toy.tops;"
      " did you mean 'dsx_toy.top'?",
    ),
    (
      "import_of_a_class",
      "from dsx_toy.parts import Part",
      "run.gin:8: 'from dsx_toy.parts import Part': Part is no module, and gin"
      " imports modules; write 'from dsx_toy import parts' and parts.Part",
    ),
    (
      "quoted_float",
      "top.Run.rate = '3e-4'",
      "run.gin:8: top.Run.rate = '3e-4': expected float or None; write 3e-4"
      " without quotes",
    ),
    (
      "float_for_int",
      "top.Run.steps = 1e3",
      "run.gin:8: top.Run.steps = 1000.0: expected int; write 1000",
    ),
    (
      "bool_for_int",
      "top.Run.steps = True",
      "run.gin:8: top.Run.steps = True: expected int; give int",
    ),
    (
      "int_for_bool",
      "top.Run.ready = 1",
      "run.gin:8: top.Run.ready = 1: expected bool; write True",
    ),
    (
      "number_for_string",
      "top.Run.title = 3",
      "run.gin:8: top.Run.title = 3: expected str; write '3'",
    ),
    (
      "none_for_int",
      "top.Run.steps = None",
      "run.gin:8: top.Run.steps = None: expected int; leave the line out to"
      " keep the default",
    ),
    (
      "string_for_tuple",
      "top.Run.files = ('a.txt')",
      "run.gin:8: top.Run.files = 'a.txt': expected tuple of (str, ...); write"
      " ('a.txt',)",
    ),
    (
      "list_for_tuple",
      "top.Run.sizes = [1, 2]",
      "run.gin:8: top.Run.sizes = [1, 2]: expected tuple of (int, int); write"
      " (1, 2)",
    ),
    (
      "tuple_too_long",
      "top.Run.sizes = (1, 2, 3)",
      "run.gin:8: top.Run.sizes = (1, 2, 3): expected tuple of (int, int);"
      " give tuple of (int, int)",
    ),
    (
      "wrong_item_in_dict",
      "top.Run.table = {'a': '1'}",
      "run.gin:8: top.Run.table = {'a': '1'}: expected dict of str to int; give"
      " dict of str to int",
    ),
    (
      "literal",
      "parts.Part.mode = 'fats'",
      "run.gin:8: parts.Part.mode = 'fats': expected one of 'fast', 'slow'; did"
      " you mean 'fast'?",
    ),
    (
      "enumeration",
      "parts.Part.colour = 'rad'",
      "run.gin:8: parts.Part.colour = 'rad': expected one of 'red', 'blue'; did"
      " you mean 'red'?",
    ),
    (
      "class_instead_of_instance",
      "top.Run.extra = @parts.Part",
      "run.gin:8: top.Run.extra = @parts.Part: expected parts.Part or None;"
      " write @parts.Part()",
    ),
    (
      "instance_of_another_class",
      "top.Run.extra = @parts.Base()",
      "run.gin:8: top.Run.extra = @parts.Base(): expected parts.Part or None;"
      " write @parts.Part()",
    ),
    (
      "undefined_macro",
      "top.Run.seed = %STEP",
      "run.gin:8: %STEP is not defined; did you mean %STEPS?",
    ),
    (
      "unused_macro",
      "LR = 3e-4",
      "run.gin:8: macro LR is never used; remove it or write %LR",
    ),
    (
      "macro_of_the_wrong_type",
      "RATE = '1'\ntop.Run.rate = %RATE",
      "run.gin:8: top.Run.rate = %RATE = '1': expected float or None; write 1"
      " without quotes",
    ),
    (
      "macro_of_itself",
      "A = %B\nB = %A\ntop.Run.rate = %A",
      "run.gin:9: %A is defined by itself; give it a value",
    ),
    (
      "built_of_itself",
      "parts.Part.inner = @parts.Part()",
      "run.gin:8: @dsx_toy.parts.Part() needs itself to be built; bind"
      " something else",
    ),
    (
      "binding_that_nothing_builds",
      "parts.Other.size = 4",
      "run.gin:8: parts.Other.size has no effect: nothing builds it; bind"
      " top.Run.spare = @parts.Other()",
    ),
    (
      "binding_out_of_reach",
      "from dsx_toy import nets\nnets.Net.features = 4",
      "run.gin:9: nets.Net.features has no effect: top.Run never reaches it;"
      " remove it",
    ),
    (
      "scope_that_nothing_enters",
      "tain/parts.Part.width = 3\ntop.Run.extra = @train/parts.Part()",
      "run.gin:8: tain/parts.Part.width has no effect: nothing is built in"
      " scope 'tain'; did you mean 'train'?",
    ),
    (
      "required_left_unset",
      "top.Run.seed = %gin.REQUIRED",
      "run.gin:8: top.Run.seed is required and nothing sets it; add"
      " --gin.top.Run.seed=VALUE",
    ),
    (
      "required_through_a_macro",
      "SEED = %gin.REQUIRED\ntop.Run.seed = %SEED",
      "run.gin:9: SEED is required and nothing sets it; add --gin.SEED=VALUE",
    ),
    (
      "field_without_a_default",
      "top.Run.spare = @parts.Other()",
      "run.gin:8: parts.Other needs size, which nothing sets; add"
      " parts.Other.size = VALUE",
    ),
    (
      "not_gin",
      "top.Run.steps 3",
      "run.gin:8: 'top.Run.steps 3' is not gin (Couldn't parse statement,"
      " expected ':' or '='); expected module.Class.field = value, NAME ="
      " value, an include or an import",
    ),
    (
      "unquoted_string",
      "top.Run.title = tour",
      "run.gin:8: 'top.Run.title = tour': tour is neither a number, a quoted"
      " string, True, False nor None; quote it ('tour') or write a number",
    ),
    (
      "missing_include",
      "include 'runs/toyy.gin'",
      "run.gin:8: include 'runs/toyy.gin' does not exist; did you mean"
      " 'gin_configs/models/toy.gin'?",
    ),
    (
      "complex_number",
      "top.Run.rate = 1j",
      "run.gin:8: complex number 1j: expected a real one; leave out the 'j'",
    ),
    (
      "field_of_another_class",
      "top.Run.colour = 'red'",
      "run.gin:8: top.Run has no field 'colour'; did you mean"
      " 'parts.Part.colour'?",
    ),
  )
  def test_prints_one_line(self, extra, line):
    self.write("run.gin", f"{toy.GOOD}{extra}\n")
    self.write("gin_configs/models/toy.gin", "")
    self.assertEqual(self.mistakes(), [line])

  def test_no_file(self):
    self.assertEqual(
      self.mistakes(files=()),
      [
        "--gin_file:1: top.Run needs part, which nothing sets; give"
        " --gin_file one that does, as in gin_configs/runs"
      ],
    )

  def test_missing_file(self):
    self.write("gin_configs/runs/tiny.gin", toy.GOOD)
    self.assertEqual(
      self.mistakes(files=["gin_configs/runs/tniy.gin"]),
      [
        "--gin_file:1: 'gin_configs/runs/tniy.gin' is no file; did you mean"
        " 'gin_configs/runs/tiny.gin'?"
      ],
    )

  def test_no_dynamic_registration(self):
    text = toy.GOOD.replace("from __gin__ import dynamic_registration\n", "")
    self.write("run.gin", text)
    self.assertEqual(
      self.mistakes(),
      [
        "run.gin:5: top.Run needs an import; make 'from __gin__ import"
        " dynamic_registration' the file's first line"
      ],
    )

  def test_not_utf8(self):
    (self.folder / "run.gin").write_bytes(toy.GOOD.encode() + b"# \xff\n")
    self.assertRegex(self.mistakes()[0], r"^run.gin:1: is not UTF-8 \(byte")

  def test_not_a_config(self):
    self.write("run.gin", "#\n" * (1 << 17) + "#")
    self.assertEqual(
      self.mistakes(),
      ["run.gin:1: is larger than 256 KiB; is it a gin file?"],
    )

  def test_line_that_would_take_minutes(self):
    self.write("run.gin", f"{toy.GOOD}top.Run.sizes = ({'1,' * 6000})\n")
    self.assertEqual(
      self.mistakes(),
      ["run.gin:1: a line has over 10000 characters; break it"],
    )

  def test_macros_that_multiply(self):
    lines = [f"M{n} = [%M{n + 1}, %M{n + 1}]\n" for n in range(30)]
    text = f"{toy.GOOD}{''.join(lines)}M30 = 1\ntop.Run.weights = %M0\n"
    self.write("run.gin", text)
    self.assertEqual(
      self.mistakes(),
      ["run.gin:39: macros expand to more than 10000 values; use fewer"],
    )

  def test_module_that_is_not_python(self):
    self.write(
      "run.gin",
      f"{toy.GOOD}from dsx_toy import broken\nbroken.Part.width = 1\n",
    )
    [line] = self.mistakes()
    self.assertRegex(line, r"broken.py:3: not Python: .*; mend the module$")

  def test_mistakes_beyond_what_anybody_reads(self):
    text = "".join(f"top.Run.steps{n} = 1\n" for n in range(1000))
    self.write("run.gin", f"{toy.GOOD}{text}")
    self.assertLen(self.mistakes(), 100)

  def test_seed_of_a_class_without_one(self):
    self.assertEqual(
      self.mistakes(files=(), target="dsx_toy.parts.Part", seed=1),
      ["--seed:1: parts.Part has no seed; leave the flag out"],
    )

  def test_all_mistakes_are_reported(self):
    self.write("run.gin", f"{toy.GOOD}top.Run.sed = 1\ntop.Run.ready = 1\n")
    self.assertLen(self.mistakes(bindings=["Run.steps='1'"]), 3)

  def test_messages_cannot_move_the_cursor(self):
    self.write("run.gin", f"{toy.GOOD}top.Run.steps = 'a\\x1b[2J\\nb\\u202e'\n")
    [line] = self.mistakes()
    self.assertTrue(line.isprintable(), line)


class CommandLineTest(toy.ToyTestCase):
  @parameterized.parameters(
    "Run.steps = 3",
    "top.Run.steps = 3",
    "dsx_toy.top.Run.steps=3",
    "STEPS = 3",
  )
  def test_binding_wins_over_file(self, binding):
    self.write("run.gin", toy.GOOD)
    program = self.check(bindings=["Run.steps = 2", "STEPS = 2", binding])
    [steps] = [b for b in program.bindings if b.parameter == "steps"][-1:]
    wanted = 2 if binding.startswith("STEPS") else 3
    self.assertEqual(program.value(steps.value), wanted)

  def test_class_that_no_file_imports(self):
    text = toy.HEAD.replace("from dsx_toy import parts\n", "")
    self.write("run.gin", text)
    program = self.check(bindings=["Run.part = @Part()", "Part.depth = 9"])
    self.assertIn("parts.Part.depth = 9", program.text([toy.RUN]))

  @parameterized.parameters(
    (
      "Rum.steps = 3",
      "--gin_bindings:1: Rum is not a class that the gin files know; did you"
      " mean 'Run'?",
    ),
    (
      "steps = 3",
      "--gin_bindings:1: macro steps is never used; did you mean"
      " top.Run.steps?",
    ),
    (
      "STEP = 3",
      "--gin_bindings:1: macro STEP is never used; did you mean STEPS?",
    ),
    (
      "import subprocess",
      "--gin_bindings:1: 'import subprocess' is refused: a gin file may import"
      " only modules of dsx_toy; remove the import",
    ),
    (
      "steps",
      "--gin_bindings:1: 'steps' is not gin (Couldn't parse statement, expected"
      " ':' or '='); expected module.Class.field = value, NAME = value, an"
      " include or an import",
    ),
  )
  def test_mistake(self, binding, line):
    self.write("run.gin", toy.GOOD)
    self.assertEqual(self.mistakes(bindings=[binding]), [line])

  def test_seed(self):
    self.write("run.gin", f"{toy.GOOD}top.Run.seed = 1\n")
    text = self.check(seed=5).text([toy.RUN])
    self.assertIn("top.Run.seed = 5  # --seed:1", text)


class OverrideTest(toy.ToyTestCase):
  def test_details_of_what_was_overridden_are_no_mistake(self):
    self.write(
      "run.gin",
      f"{toy.GOOD}top.Run.extra = @far/parts.Part()\n"
      "far/parts.Part.width = 3\n",
    )
    text = self.check(bindings=["Run.extra = None"]).text([toy.RUN])
    self.assertIn("top.Run.extra = None", text)
    self.assertNotIn("far/", text)

  def test_required_set_later(self):
    self.write("run.gin", f"{toy.GOOD}top.Run.seed = %gin.REQUIRED\n")
    self.assertIn(
      "seed = 4",
      self.check(bindings=["Run.seed = 4"]).text([toy.RUN]),
    )

  def test_what_only_another_binary_builds(self):
    self.write("run.gin", toy.GOOD)
    program = self.check(target="dsx_toy.parts.Part", also=[toy.RUN])
    self.assertNotIn("import top", program.text(["dsx_toy.parts.Part"]))


class WithoutJaxTest(absltest.TestCase):
  def test_misspelt_binding_is_answered_before_anything_is_imported(self):
    script = """
      import sys
      from experiments import preflight
      try:
        preflight.check([], ["DeepSeekConfig.hiden_size = 1"],
                        target="dsx.models.config.DeepSeekConfig")
      except ValueError as error:
        print(error)
      ours = [m for m in sys.modules if m.split(".")[0] == "dsx"]
      print(len(sys.modules) < 300, ours, "jax" in sys.modules)
    """
    result = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(script)],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertEqual(
      result.stdout.splitlines(),
      [
        "--gin_bindings:1: config.DeepSeekConfig has no field 'hiden_size'; did"
        " you mean 'hidden_size'?",
        "True [] False",
      ],
    )


if __name__ == "__main__":
  absltest.main()
