"""What the preflight hands to gin means what the files mean to gin."""

import textwrap

from absl.testing import absltest

from tests.experiments import toy


class SameAsGinTest(toy.ToyTestCase):
  """What reaches gin means what the files mean to gin itself."""

  def test_scopes_macros_blocks_and_includes(self):
    self.write(
      "part.gin",
      toy.HEAD
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
      + toy.HEAD.replace("import parts", "import parts as p")
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
    by_gin = toy.build(f"include '{path}'")
    text = self.check([str(path)]).text([toy.RUN])
    by_us = toy.build(text)
    self.assertEqual(by_us.others[6].note, "it's\n# no comment")
    self.assertEqual(by_us.others[4].inner.width, 8)
    self.assertEqual(by_us.reward.__wrapped__, by_gin.reward.__wrapped__)
    self.assertEqual(repr(by_us), repr(by_gin).replace("\0", ""))

  def test_name_of_a_file_cannot_add_statements(self):
    name = "run\ntop.Run.title = 'taken'\n.gin"
    self.write(name, toy.GOOD)
    program = self.check([name])
    run = toy.build(program.text([toy.RUN]))
    self.assertEqual(run.title, "run")

  def test_linen_module(self):
    self.write(
      "run.gin",
      "from __gin__ import dynamic_registration\nfrom dsx_toy import nets\n"
      "nets.Net.features = 4\nnets.Net.name = 'net'\n",
    )
    program = self.check(target="dsx_toy.nets.Net")
    self.assertIn("features = 4", program.text(["dsx_toy.nets.Net"]))


if __name__ == "__main__":
  absltest.main()
