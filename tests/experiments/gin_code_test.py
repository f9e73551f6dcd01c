"""A gin file can have nothing done."""

import sys

from absl.testing import absltest
from absl.testing import parameterized

from experiments import preflight
from experiments.bindings import sources
from tests.experiments import toy


class CodeTest(toy.ToyTestCase):
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
    # Nothing is wrong with these but that something would be done.
    "top.Run.reward = @parts.run\nparts.run.command = 'touch X'",
    "top.Run.anything = @parts.run()\nparts.run.command = 'touch X'",
    "top.Run.anything = @parts.Plain()\nparts.Plain.command = 'touch X'",
    "top.Run.anything = @parts._Private()",
    "top.Run.anything = @parts._os.getcwd()",
    "top.Run.anything = @parts.subprocess.Popen",
  )
  def test_refused(self, statement):
    witness = self.folder / "witness"
    statement = statement.replace("touch X", f"touch {witness}")
    self.write("run.gin", f"{toy.GOOD}{statement}\n")
    before = set(sys.modules)
    from_file = self.mistakes()
    self.write("run.gin", toy.GOOD)
    from_flag = self.mistakes(bindings=[statement])
    self.assertRegex(from_file[0], "^run.gin:[89]: ")
    self.assertRegex(from_flag[0], "^--gin_bindings:1: ")
    self.assertFalse(witness.exists())
    self.assertEqual(set(sys.modules) - before, set())

  def test_accepted_file_is_not_imported_by_the_check(self):
    toy.write("dsx_toy_unseen")
    index = sources.Sources(["dsx_toy_unseen"])
    self.write("run.gin", toy.GOOD.replace("dsx_toy", "dsx_toy_unseen"))
    preflight.check(
      ["run.gin"], target="dsx_toy_unseen.top.Run", index=index, path=self.path
    )
    self.assertFalse([m for m in sys.modules if m.startswith("dsx_toy_unseen")])


if __name__ == "__main__":
  absltest.main()
