"""Mutated gin files are answered with lines, never with a traceback."""

import random
import sys

from absl.testing import absltest

from experiments import preflight
from experiments.bindings import problems
from experiments.bindings import sources
from tests.experiments import toy


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


class FuzzTest(toy.ToyTestCase):
  def test_thousand_mutated_files(self):
    rng = random.Random(0)
    witness = self.folder / "witness"
    seeds = [
      toy.GOOD,
      toy.GOOD + "include 'part.gin'\na/parts.Part.note = 'x'\n",
      toy.GOOD + "parts.Part:\n  width = 3\n  depth = 4\n",
      toy.GOOD + "top.Run.table = {'a': (1, [2, {3: 4}])}\n",
      toy.GOOD
      + f"import subprocess\nsubprocess.call.args = ('touch {witness}',)\n",
      toy.GOOD
      + f"top.Run.reward = @parts.run\nparts.run.command = 'touch {witness}'",
      toy.GOOD + "top.Run.seed = 0xff\ntop.Run.rate = -1_0.5e3\n",
    ]
    alphabet = "abz_.'\"@%/()[]{}:=,#\\\n\t 019-+jeé\x00\u2028\U0001f600\ud800"
    chunks = ["include 'run.gin'\n", "@parts.Part()", "%STEPS", "((" * 120]
    chunks += ["'''", "import os\n", "  ", "1" * 5000, "[" * 3000, "{[]: 1}"]
    self.write("part.gin", toy.HEAD + "parts.Part.width = 3\n")
    self.write("run.gin", toy.GOOD)
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
        accepted.append(self.check().text([toy.RUN]))
      except problems.Refused as refused:
        for problem in refused.problems:
          self.assertTrue(str(problem).isprintable(), str(problem))
          self.assertRegex(str(problem), r"^\S+:\d+: .+; .+")
    self.assertFalse(witness.exists())
    self.assertEqual(set(sys.modules) - before, set())
    # Neither is everything refused nor anything let through.
    self.assertBetween(len(accepted), 10, 500)
    for text in accepted:
      toy.build(text)
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


if __name__ == "__main__":
  absltest.main()
