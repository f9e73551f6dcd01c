"""Words, their scripts and the share of a language."""

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies

from dsx.rl import language


class LanguageTest(parameterized.TestCase):
  @parameterized.parameters(
    ("Let's go", ["Let's", "go"]),
    ("x1+y2=3", ["x", "y"]),
    ("\u4f60\u597d", ["\u4f60", "\u597d"]),
    ("\u4f60ok\u597d", ["\u4f60", "ok", "\u597d"]),
    ("caf\u00e9 cafe\u0301", ["caf\u00e9", "cafe\u0301"]),
    (
      "\u043f\u0440\u0438\u0432\u0435\u0442",
      ["\u043f\u0440\u0438\u0432\u0435\u0442"],
    ),
    ("a\u0434b", ["a", "\u0434", "b"]),
    ("12 + 30 = 42", []),
    ("", []),
  )
  def test_words(self, text, expected):
    self.assertEqual([word for word, _ in language.words(text)], expected)

  @parameterized.parameters(
    ("so 2 + 2 is 4", "en", 1.0),
    ("so \u56e0\u6b64 it", "en", 0.5),
    ("so \u56e0\u6b64 it", "zh", 0.5),
    ("\u6771\u4eac\u3067\u3059", "ja", 1.0),
    ("2 + 2 = 4", "en", 0.0),
    ("", "en", 0.0),
  )
  def test_consistency(self, text, name, expected):
    self.assertEqual(language.consistency(text, name), expected)

  def test_unknown(self):
    with self.assertRaisesRegex(
      ValueError, "language='xx': expected one of ar"
    ):
      language.consistency("a", "xx")

  @hypothesis.given(strategies.text())
  def test_every_letter_is_in_a_word(self, text):
    found = "".join(word for word, _ in language.words(text))
    letters = [c for c in text if language._script(c)]
    self.assertEqual([c for c in found if language._script(c)], letters)


if __name__ == "__main__":
  absltest.main()
