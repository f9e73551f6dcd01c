"""How much is said again, in words of any script."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.rl import repetition


class RepetitionTest(parameterized.TestCase):
  @parameterized.parameters(
    ("", 1, 0.0),
    ("a b c", 4, 0.0),
    ("a b c", 3, 0.0),
    ("a a a a", 1, 0.75),
    ("a b a b a", 2, 0.5),
    ("12 12", 1, 0.5),
    ("1 2 12", 1, 0.0),
    ("\u4e09\u4e09\u4e09\u4e09", 1, 0.75),
    ("wow!!!", 1, 0.5),
  )
  def test_share(self, text, n, expected):
    self.assertEqual(repetition.share(text, n), expected)

  def test_for_ever(self):
    self.assertGreater(repetition.share("so it goes on. " * 1000), 0.99)

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, "n=0: expected at least 1 word"):
      repetition.share("a", 0)


if __name__ == "__main__":
  absltest.main()
