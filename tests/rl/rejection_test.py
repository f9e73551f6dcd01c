"""Which answers are kept, and for what reason the others are not."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import problems
from dsx.rl import rejection

_SUM = problems.Problem("sum", "2+2=", "x", "number", "4")
_OPEN = problems.Problem("open", "a poem", "x", "open", None)
_CHINESE = problems.Problem("zh", "2+2=", "x", "number", "4", "zh")


def _tagged(thought, answer="4"):
  return f"<think>{thought}</think><answer>{answer}</answer>"


_GOOD = _tagged("so it is")


def _candidate(number=0, text=_GOOD, **known):
  settings = {
    "tokens": len(text),
    "truncated": False,
    "right": 1.0,
    "error": "",
    "reward": 2.0,
    "logprob": -0.5,
  }
  return rejection.Candidate(number=number, text=text, **(settings | known))


def _reason(problem=_SUM, filters=None, form="tags", **known):
  filters = filters or rejection.Filters()
  return rejection.reason(problem, _candidate(**known), filters, form)


class ReasonTest(parameterized.TestCase):
  @parameterized.parameters(
    ("so it is", {}, ""),
    ("2+2=4", {}, ""),
    ("", {}, ""),
    ("so it \u662f \u56db", {}, "mixed languages"),
    ("so it \u662f \u56db", {"least_language": 0.5}, ""),
    ("a" * 2001, {}, "long paragraph"),
    ("a" * 2001, {"longest_paragraph": 0}, ""),
    ("\n\n".join(f"line {i} " + "ab" * 90 for i in range(12)), {}, ""),
    ("so\n```\n2+2\n```", {}, "code block"),
    ("so\n```\n2+2\n```", {"code_blocks": True}, ""),
    ("wait, I will think about it again. " * 9, {}, "repetition"),
    ("wait, I will think about it again. " * 9, {"most_repetition": 1.0}, ""),
  )
  def test_thoughts(self, thought, settings, expected):
    filters = rejection.Filters(**settings)
    self.assertEqual(_reason(text=_tagged(thought), filters=filters), expected)

  @parameterized.parameters(
    ({"error": "took more than 1 s", "right": math.nan}, "error"),
    ({"truncated": True}, "cut off"),
    ({"text": "4"}, "wrong form"),
    ({"right": 0.0}, "wrong answer"),
    ({"right": math.nan}, "wrong answer"),
  )
  def test_answers(self, known, expected):
    self.assertEqual(_reason(**known), expected)

  def test_the_problem_s_language(self):
    chinese = _tagged("\u4e8c\u52a0\u4e8c\u662f\u56db")
    self.assertEqual(_reason(_CHINESE, text=chinese), "")
    self.assertEqual(_reason(_SUM, text=chinese), "mixed languages")
    self.assertEqual(_reason(_CHINESE), "mixed languages")

  @parameterized.parameters(
    (0.5, None, ""),
    (0.5, 0.4, ""),
    (0.5, 0.6, "poor answer"),
    (math.nan, None, "poor answer"),
  )
  def test_open_problems(self, score, least, expected):
    filters = rejection.Filters(least_score=least)
    got = _reason(_OPEN, filters, right=math.nan, score=score)
    self.assertEqual(got, expected)

  def test_form(self):
    text = "<think>so</think>It is \\boxed{4}."
    self.assertEqual(_reason(text=text, form="summary"), "")
    self.assertEqual(_reason(text=text), "wrong form")

  def test_reasons_are_listed(self):
    self.assertLen(set(rejection.REASONS), len(rejection.REASONS))
    self.assertIn(_reason(text="4"), rejection.REASONS)


class SelectTest(parameterized.TestCase):
  @parameterized.parameters(
    ("reward", [2, 1, 3, 0]),
    ("likeliest", [0, 3, 1, 2]),
    ("shortest", [3, 1, 0, 2]),
  )
  def test_the_best_first(self, best, order):
    known = [
      {"reward": 1.0, "logprob": -0.1, "tokens": 9},
      {"reward": 2.0, "logprob": -0.3, "tokens": 7},
      {"reward": 3.0, "logprob": -0.4, "tokens": 11},
      {"reward": 2.0, "logprob": -0.2, "tokens": 7},
    ]
    known[3]["tokens"] = 7 if best != "shortest" else 6
    candidates = [
      _candidate(i, _tagged(f"way {i}"), **k) for i, k in enumerate(known)
    ]
    filters = rejection.Filters(keep=0, best=best)
    kept, refused = rejection.select(_SUM, candidates, filters, "tags")
    self.assertEqual([c.number for c in kept], order)
    self.assertEmpty(refused)
    filters = rejection.Filters(keep=2, best=best)
    kept, refused = rejection.select(_SUM, candidates, filters, "tags")
    self.assertEqual([c.number for c in kept], order[:2])
    self.assertEqual(
      [(c.number, why) for c, why in refused],
      [(n, "not among the best") for n in order[2:]],
    )

  def test_duplicates(self):
    texts = ["so it is", "So  it\nis", "or thus", "so it is"]
    candidates = [_candidate(i, _tagged(t)) for i, t in enumerate(texts)]
    filters = rejection.Filters(keep=0, best="likeliest")
    kept, refused = rejection.select(_SUM, candidates, filters, "tags")
    self.assertCountEqual([c.number for c in kept], [0, 2])
    self.assertEqual([why for _, why in refused], ["duplicate"] * 2)

  def test_the_wrong_take_no_place(self):
    """However good they look."""
    wrong = _candidate(0, reward=9.0, right=0.0)
    good = _candidate(1, reward=1.0)
    got = rejection.select(_SUM, [wrong, good], rejection.Filters(), "tags")
    self.assertEqual(got, ([good], [(wrong, "wrong answer")]))

  @parameterized.parameters(
    ({"best": "x"}, "best='x': expected one of reward, likeliest"),
    ({"keep": -1}, "keep=-1: expected at least 0"),
    ({"least_language": 2}, "least_language=2: expected a share, 0 to 1"),
    ({"most_repetition": -1}, "most_repetition=-1: expected a share"),
    ({"repetition_words": 0}, "n=0: expected at least 1 word"),
  )
  def test_refused(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      rejection.Filters(**settings)


if __name__ == "__main__":
  absltest.main()
