"""`python -m experiments.generate` as a person calls it."""

from absl.testing import absltest
from absl.testing import parameterized

from tests.experiments import trained_run


class GenerateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = trained_run.make()

  def call(self, *arguments):
    arguments = (a.format(self.workdir) for a in arguments)
    return trained_run.call("generate", *arguments)

  def test_prompt_and_continuation(self):
    arguments = ("--prompt=def f(", "--max_new_tokens=5", "--seed=3")
    done = self.call("--checkpoint={}", *arguments)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertStartsWith(done.stdout, "def f(")
    self.assertGreater(len(done.stdout), len("def f(\n"))
    self.assertIn("max_new_tokens=5", done.stderr)
    self.assertIn("seed=3", done.stderr)
    self.assertIn("5 tokens, as many as asked for", done.stderr)
    # The workdir may be named as everywhere else; the seed decides.
    again = self.call("--workdir={}", *arguments)
    self.assertEqual(again.stdout, done.stdout)

  def test_dry_run(self):
    done = self.call(
      "--checkpoint={}", "--prompt=abc", "--dry_run", "--print_config"
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("sampling.Sampling.temperature = 0.7", done.stdout)
    self.assertIn(f"step 4 of {self.workdir}; prompt of 4 tokens", done.stdout)

  @parameterized.parameters(
    (("--prompt=a",), "--checkpoint is missing"),
    (("--checkpoint={}",), "--prompt is empty"),
    (("--checkpoint={}", "--prompt="), "--prompt is empty"),
    (("--checkpoint=/tmp/dsx_none", "--prompt=a"), "dsx_none: no checkpoint"),
    (("--checkpoint={}", "--prompt=a", "--temperature=-1"), "temperature=-1"),
    (("--checkpoint={}", "--prompt=a", "--temperature=nan"), "temperature=nan"),
    (
      ("--checkpoint={}", "--prompt=seventeen letters"),
      "prompt of 18 tokens: expected at most window=16",
    ),
  )
  def test_errors_in_one_line(self, arguments, message):
    done = self.call(*arguments)
    self.assertEqual(done.returncode, 1)
    self.assertEqual(done.stdout, "")
    self.assertLen(done.stderr.splitlines(), 1, done.stderr)
    self.assertIn(message, done.stderr)


if __name__ == "__main__":
  absltest.main()
