"""Answers before and after, side by side."""

import pathlib

from absl.testing import absltest

from dsx.rl import completions


def _shown(answer: str, right: bool = False) -> dict:
  return {
    "problem": "a",
    "prompt": "1+1=\n2?",
    "answer": answer,
    "right": right,
    "tokens": 3,
  }


class CompletionsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_first_beside_last(self):
    for step, answer in ((10, "it is 2"), (0, "it is\nthree"), (5, "unseen")):
      completions.write(self.folder, step, [_shown(answer, step == 10)])
    self.assertEqual(list(completions.read(self.folder)), [0, 5, 10])
    path = completions.compare(self.folder)
    self.assertIsNotNone(path)
    text = path.read_text()
    self.assertIn("> 1+1=\n> 2?", text)
    lines = text.splitlines()
    (title,) = [line for line in lines if line.startswith("step 0")]
    self.assertRegex(title, r"^step 0: wrong, 3 tokens +\| step 10: right, 3")
    self.assertTrue(
      any(l.startswith("it is  ") and "| it is 2" in l for l in lines)
    )
    self.assertTrue(any(l.startswith("three ") for l in lines))
    self.assertNotIn("unseen", text)

  def test_long_answers_lose_their_middle(self):
    completions.write(
      self.folder, 0, [_shown("a" * 3000 + "\x1b[31m" + "z" * 600)]
    )
    text = completions.compare(self.folder).read_text()
    self.assertIn("characters]", text)
    self.assertLess(len(text), 8000)
    self.assertLess(max(map(len, text.splitlines())), 110)
    self.assertNotIn("\x1b", text)

  def test_same_step_is_written_again(self):
    completions.write(self.folder, 0, [_shown("one")])
    completions.write(self.folder, 0, [_shown("two")])
    self.assertEqual(completions.read(self.folder)[0][0]["answer"], "two")

  def test_nothing_kept(self):
    self.assertIsNone(completions.compare(self.folder))


if __name__ == "__main__":
  absltest.main()
