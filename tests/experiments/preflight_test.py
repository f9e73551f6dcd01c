import pathlib
import random
import subprocess
import sys
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import gin

from experiments import preflight
from experiments.bindings import problems
from experiments.bindings import search
from experiments.bindings import sources
from tests.experiments import toy

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_HEAD = """\
from __gin__ import dynamic_registration
from dsx_toy import parts
from dsx_toy import top
"""
_GOOD = (
  _HEAD
  + """
STEPS = 7
top.Run.part = @parts.Part()
top.Run.steps = %STEPS
"""
)


def setUpModule():
  toy.write("dsx_toy")


def _build(text):
  """Returns the `Run` that gin builds from `text`."""
  gin.clear_config()
  gin.parse_config(text)
  from dsx_toy import top

  try:
    return gin.get_configurable(top.Run)()
  finally:
    gin.clear_config()


class PreflightTestCase(parameterized.TestCase):
  """Writes gin files into a folder of their own and checks them."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.index = sources.Sources(["dsx_toy"])
    self.path = search.SearchPath(root=self.folder, cwd=self.folder)

  def write(self, name, text):
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

  def check(self, files=("run.gin",), bindings=(), **more):
    return preflight.check(
      files,
      bindings,
      target=more.pop("target", "dsx_toy.top.Run"),
      index=self.index,
      path=self.path,
      **more,
    )

  def mistakes(self, *arguments, **more):
    with self.assertRaises(problems.Refused) as caught:
      self.check(*arguments, **more)
    return [str(problem) for problem in caught.exception.problems]


class OneMistakeTest(PreflightTestCase):
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
      "include 'runs/nothing.gin'",
      "run.gin:8: include 'runs/nothing.gin' does not exist; did you mean"
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
    self.write("run.gin", f"{_GOOD}{extra}\n")
    self.write("gin_configs/models/toy.gin", "")
    self.assertEqual(self.mistakes(), [line])

  def test_no_file(self):
    self.assertEqual(
      self.mistakes(files=()),
      [
        "--gin_file:1: top.Run needs part, which nothing sets; write"
        " --gin_file=FILE, such as one of gin_configs/runs"
      ],
    )

  def test_missing_file(self):
    self.write("gin_configs/runs/tiny.gin", _GOOD)
    self.assertEqual(
      self.mistakes(files=["gin_configs/runs/tniy.gin"]),
      [
        "--gin_file:1: 'gin_configs/runs/tniy.gin' is no file; did you mean"
        " 'gin_configs/runs/tiny.gin'?"
      ],
    )

  def test_no_dynamic_registration(self):
    text = _GOOD.replace("from __gin__ import dynamic_registration\n", "")
    self.write("run.gin", text)
    self.assertEqual(
      self.mistakes(),
      [
        "run.gin:5: top.Run needs an import; make 'from __gin__ import"
        " dynamic_registration' the file's first line"
      ],
    )

  def test_not_utf8(self):
    (self.folder / "run.gin").write_bytes(_GOOD.encode() + b"# \xff\n")
    self.assertRegex(self.mistakes()[0], r"^run.gin:1: is not UTF-8 \(byte")

  def test_not_a_config(self):
    self.write("run.gin", "#" * (1 << 20) + "\n")
    self.assertEqual(
      self.mistakes(),
      ["run.gin:1: is larger than 1 MiB; is it a gin file?"],
    )

  def test_seed_of_a_class_without_one(self):
    self.assertEqual(
      self.mistakes(files=(), target="dsx_toy.parts.Part", seed=1),
      ["--seed:1: parts.Part has no seed; leave the flag out"],
    )

  def test_all_mistakes_are_reported(self):
    self.write("run.gin", f"{_GOOD}top.Run.sed = 1\ntop.Run.ready = 1\n")
    self.assertLen(self.mistakes(bindings=["Run.steps='1'"]), 3)

  def test_messages_cannot_move_the_cursor(self):
    self.write("run.gin", f"{_GOOD}top.Run.steps = 'a\\x1b[2J\\nb\\u202e'\n")
    [line] = self.mistakes()
    self.assertTrue(line.isprintable(), line)


class CommandLineTest(PreflightTestCase):
  @parameterized.parameters(
    "Run.steps = 3",
    "top.Run.steps = 3",
    "dsx_toy.top.Run.steps=3",
    "STEPS = 3",
  )
  def test_binding_wins_over_file(self, binding):
    self.write("run.gin", _GOOD)
    program = self.check(bindings=["Run.steps = 2", "STEPS = 2", binding])
    [steps] = [b for b in program.bindings if b.parameter == "steps"][-1:]
    wanted = 2 if binding.startswith("STEPS") else 3
    self.assertEqual(program.value(steps.value), wanted)

  def test_class_that_no_file_imports(self):
    text = _HEAD.replace("from dsx_toy import parts\n", "")
    self.write("run.gin", text)
    program = self.check(bindings=["Run.part = @Part()", "Part.depth = 9"])
    self.assertIn("parts.Part.depth = 9", program.text(["dsx_toy.top.Run"]))

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
    self.write("run.gin", _GOOD)
    self.assertEqual(self.mistakes(bindings=[binding]), [line])

  def test_seed(self):
    self.write("run.gin", f"{_GOOD}top.Run.seed = 1\n")
    text = self.check(seed=5).text(["dsx_toy.top.Run"])
    self.assertIn("top.Run.seed = 5  # --seed:1", text)


class IncludeTest(PreflightTestCase):
  def test_from_the_folder_of_the_file_and_from_gin_configs(self):
    self.write("gin_configs/models/a.gin", _HEAD + "top.Run.steps = 1\n")
    self.write("gin_configs/models/b.gin", "include 'a.gin'\n")
    self.write(
      "run.gin",
      f"{_GOOD}include 'gin_configs/models/b.gin'\ninclude 'models/a.gin'\n",
    )
    self.assertIn("steps = 1", self.check().text(["dsx_toy.top.Run"]))

  def test_circle(self):
    self.write("a.gin", "include 'b.gin'\n")
    self.write("b.gin", "\ninclude 'run.gin'\n")
    self.write("run.gin", f"{_GOOD}include 'a.gin'\n")
    self.assertEqual(
      self.mistakes(),
      [
        "b.gin:2: includes go in a circle (run.gin > a.gin > b.gin > run.gin);"
        " remove one"
      ],
    )

  def test_files_that_multiply(self):
    for number in range(12):
      name = f"include 'f{number + 1}.gin'\n"
      self.write(f"f{number}.gin", name * 2)
    self.write("f12.gin", "")
    self.write("run.gin", f"{_GOOD}include 'f0.gin'\n")
    [line] = self.mistakes()
    self.assertRegex(line, "more than 200 files; include fewer")

  def test_out_of_the_folders(self):
    outside = self.create_tempdir().full_path
    secret = pathlib.Path(outside) / "secret.gin"
    secret.write_text("PASSWORD = 'xyzzy'\n")
    (self.folder / "link.gin").symlink_to(secret)
    for name in (
      str(secret),
      "link.gin",
      f"../{pathlib.Path(outside).name}/secret.gin",
    ):
      self.write("run.gin", f"{_GOOD}include '{name}'\n")
      [line] = self.mistakes()
      self.assertIn("leads out of the including file's folder", line)
      self.assertNotIn("xyzzy", line)

  def test_of_something_else_than_gin(self):
    self.write("passwords.txt", "xyzzy\n")
    self.write("run.gin", f"{_GOOD}include 'passwords.txt'\n")
    self.assertEqual(
      self.mistakes(),
      [
        "run.gin:8: include 'passwords.txt': expected a name ending in .gin;"
        " rename the file"
      ],
    )


class OverrideTest(PreflightTestCase):
  def test_details_of_what_was_overridden_are_no_mistake(self):
    self.write(
      "run.gin",
      f"{_GOOD}top.Run.extra = @far/parts.Part()\nfar/parts.Part.width = 3\n",
    )
    text = self.check(bindings=["Run.extra = None"]).text(["dsx_toy.top.Run"])
    self.assertIn("top.Run.extra = None", text)
    self.assertNotIn("far/", text)

  def test_required_set_later(self):
    self.write("run.gin", f"{_GOOD}top.Run.seed = %gin.REQUIRED\n")
    self.assertIn(
      "seed = 4",
      self.check(bindings=["Run.seed = 4"]).text(["dsx_toy.top.Run"]),
    )

  def test_what_only_another_binary_builds(self):
    self.write("run.gin", _GOOD)
    program = self.check(target="dsx_toy.parts.Part", also=["dsx_toy.top.Run"])
    self.assertNotIn("import top", program.text(["dsx_toy.parts.Part"]))


class SameAsGinTest(PreflightTestCase):
  """What reaches gin means what the files mean to gin itself."""

  def test_scopes_macros_blocks_and_includes(self):
    self.write(
      "part.gin",
      _HEAD
      + textwrap.dedent("""
          parts.Part:
            width = 3
            depth = %DEPTH
          DEPTH = 4
          a/parts.Part.width = 30
          a/b/parts.Part.width = 300
          b/parts.Part.depth = 5
          """),
    )
    path = self.write(
      "run.gin",
      f"include '{self.folder}/part.gin'\n"
      + _HEAD.replace("import parts", "import parts as p")
      + textwrap.dedent("""
          import dsx_toy.parts
          top.Run.part = @p.Part()
          top.Run.others = (
              @p.Part(), @a/p.Part(), @a/b/p.Part(), @b/p.Part(), @c/p.Part(),
              @size/p.make(), %MADE)
          c/p.Part.inner = @dsx_toy.parts.Base()
          c/dsx_toy.parts.Base.width = 8
          size/p.make.size = %DEPTH
          MADE = @p.Part()
          MADE/p.Part.note = "it's\\n# no comment"
          top.Run.table = {'a': 1, 'b': %DEPTH}
          top.Run.weights = [1e999, -1e999, -0.5, 3, %s/RATE]
          s/RATE = 2.5
          top.Run.reward = @p.run
          top.Run.title = '%DEPTH @p.Part()'
          DEPTH = 6
          top.Run.steps = 1
          top.Run.steps = 2
          """),
    )
    by_gin = _build(f"include '{path}'")
    text = self.check([str(path)]).text(["dsx_toy.top.Run"])
    by_us = _build(text)
    self.assertEqual(by_us.others[6].note, "it's\n# no comment")
    self.assertEqual(by_us.others[4].inner.width, 8)
    self.assertEqual(by_us.reward.__wrapped__, by_gin.reward.__wrapped__)
    self.assertEqual(repr(by_us), repr(by_gin).replace("\0", ""))

  def test_name_of_a_file_cannot_add_statements(self):
    name = "run\ntop.Run.title = 'taken'\n.gin"
    self.write(name, _GOOD)
    program = self.check([name])
    run = _build(program.text(["dsx_toy.top.Run"]))
    self.assertEqual(run.title, "run")

  def test_linen_module(self):
    self.write(
      "run.gin",
      "from __gin__ import dynamic_registration\nfrom dsx_toy import nets\n"
      "nets.Net.features = 4\nnets.Net.name = 'net'\n",
    )
    program = self.check(target="dsx_toy.nets.Net")
    self.assertIn("features = 4", program.text(["dsx_toy.nets.Net"]))


class CodeTest(PreflightTestCase):
  """A gin file can have nothing done."""

  @parameterized.parameters(
    "import subprocess",
    "import os",
    "import os as top",
    "import subprocess as parts",
    "from os import path",
    "import importlib.util",
    "import builtins",
    "import jax",
    "import dsx_toy.parts.subprocess",
    "from dsx_toy.parts import subprocess",
    "from dsx_toy import _os",
    "from __gin__ import something",
    "from __gin__ import dynamic_registration as x",
    "import dsx_toy as gin",
    "import experiments.cli",
    "top.Run.extra = @subprocess.getoutput()",
    "subprocess.getoutput.cmd = 'touch X'",
    "top.Run.extra = @parts.subprocess.getoutput()",
    "top.Run.reward = @parts.subprocess.getoutput",
    "parts.subprocess.getoutput.cmd = 'touch X'",
    "parts.subprocess.Popen.args = 'touch X'",
    "parts._os.system.command = 'touch X'",
    "top.Run.extra = @parts._os.system()",
    "top.Run.extra = @top.parts.Part()",
    "top.Run.extra = @parts.dataclasses.sys.modules.clear()",
    "top.Run.extra = @parts.run()",
    "parts.run.command = 'touch X'",
    "top.Run.extra = @parts.Plain()",
    "parts.Plain.command = 'touch X'",
    "top.Run.extra = @parts._Private()",
    "top.Run.extra = @parts.Part.__init__()",
    "top.Run.extra = @parts.Part.__class__()",
    "top.Run.extra = @parts.__builtins__.eval()",
    "top.Run.extra = @parts.__loader__.exec_module()",
    "parts.Part.__init__.width = 3",
    "top.Run.extra = @gin.singleton()",
    "x/gin.singleton.constructor = @parts.Part",
    "top.Run.extra = @gin.macro()",
    "x/gin.macro.value = 3",
    "top.Run.extra = @dsx_toy.parts.run()",
    "REQUIRED = 3",
  )
  def test_refused(self, statement):
    witness = self.folder / "witness"
    statement = statement.replace("touch X", f"touch {witness}")
    self.write("run.gin", f"{_GOOD}{statement}\n")
    before = set(sys.modules)
    from_file = self.mistakes()
    self.write("run.gin", _GOOD)
    from_flag = self.mistakes(bindings=[statement])
    self.assertRegex(from_file[0], "^run.gin:8: ")
    self.assertRegex(from_flag[0], "^--gin_bindings:1: ")
    self.assertFalse(witness.exists())
    self.assertEqual(set(sys.modules) - before, set())

  def test_accepted_file_is_not_imported_by_the_check(self):
    toy.write("dsx_toy_unseen")
    index = sources.Sources(["dsx_toy_unseen"])
    self.write("run.gin", _GOOD.replace("dsx_toy", "dsx_toy_unseen"))
    preflight.check(
      ["run.gin"], target="dsx_toy_unseen.top.Run", index=index, path=self.path
    )
    self.assertFalse([m for m in sys.modules if m.startswith("dsx_toy_unseen")])


def _edit(text, rng, alphabet):
  """Returns `text` with one character added, dropped, changed or swapped."""
  at = rng.randrange(len(text))
  letter = rng.choice(alphabet)
  kind = rng.randrange(4)
  if kind == 0:
    return text[:at] + letter + text[at:]
  if kind == 1:
    return text[:at] + text[at + 1 :]
  if kind == 2:
    return text[:at] + letter + text[at + 1 :]
  return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]


class FuzzTest(PreflightTestCase):
  def test_thousand_mutated_files(self):
    rng = random.Random(0)
    witness = self.folder / "witness"
    seeds = [
      _GOOD,
      _GOOD + "include 'part.gin'\na/parts.Part.note = 'x'\n",
      _HEAD + "parts.Part:\n  width = 3\n  depth = 4\n" + _GOOD[len(_HEAD) :],
      _GOOD + "top.Run.table = {'a': (1, [2, {3: 4}])}\n",
      _GOOD
      + f"import subprocess\nsubprocess.call.args = ('touch {witness}',)\n",
      _GOOD
      + f"top.Run.reward = @parts.run\nparts.run.command = 'touch {witness}'",
      _GOOD + "top.Run.seed = 0xff\ntop.Run.rate = -1_0.5e3\n",
    ]
    alphabet = "abz_.'\"@%/()[]{}:=,#\\\n\t 019-+jeé\x00\u2028\U0001f600\ud800"
    chunks = ["include 'run.gin'\n", "@parts.Part()", "%STEPS", "((" * 120]
    chunks += ["'''", "import os\n", "  ", "1" * 5000, "[" * 3000, "{[]: 1}"]
    self.write("part.gin", _HEAD + "parts.Part.width = 3\n")
    self.write("run.gin", _GOOD)
    self.check()  # what Python itself imports for it is no witness
    before = set(sys.modules)
    accepted = []
    for _ in range(1000):
      # Mutations of comments and strings alone leave a file that is right.
      text = f"# {'words ' * 30}\n{rng.choice(seeds)}"
      for _ in range(rng.choice((1, 1, 2, 4))):
        if rng.random() < 0.2:
          at = rng.randrange(len(text))
          text = text[:at] + rng.choice(chunks) + text[at:]
        else:
          text = _edit(text, rng, alphabet)
      data = text.encode("utf-8", "surrogatepass")
      (self.folder / "run.gin").write_bytes(data)
      try:
        accepted.append(self.check().text(["dsx_toy.top.Run"]))
      except problems.Refused as refused:
        for problem in refused.problems:
          self.assertTrue(str(problem).isprintable(), str(problem))
          self.assertRegex(str(problem), r"^\S+:\d+: .+; .+")
    self.assertFalse(witness.exists())
    self.assertEqual(set(sys.modules) - before, set())
    # Neither is everything refused nor anything let through.
    self.assertBetween(len(accepted), 10, 500)
    for text in accepted:
      _build(text)
    self.assertFalse(witness.exists())

  def test_nine_of_ten_misspelt_fields_are_recognised(self):
    rng = random.Random(0)
    index = sources.Sources(["dsx"])
    right = total = 0
    for name in ("DeepSeekConfig", "RopeScaling", "Execution"):
      target = f"dsx.models.config.{name}"
      fields = list(index.fields(target))
      for field in fields * 10:
        typo = _edit(field, rng, "abcdefghijklmnopqrstuvwxyz_")
        if typo in fields or not typo.isidentifier():
          continue
        with self.assertRaises(problems.Refused) as caught:
          preflight.check(
            [], [f"{name}.{typo} = 1"], target=target, index=index
          )
        right += f"did you mean '{field}'?" in str(caught.exception)
        total += 1
    self.assertGreater(total, 300)
    self.assertGreaterEqual(right / total, 0.9)


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
