"""A model that grades answers: places, votes, what it does not say."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.data import prompt_template
from dsx.data import vocab
from dsx.rl import generative_judge
from dsx.rl import sample

_PLAIN = prompt_template.Template(kind="plain")
_QUESTION = "Q {prompt} A {a} B {b} ."


class _Model:
  """Replies by a function of the question's text."""

  def __init__(self, reply):
    self.reply, self.asked = reply, []

  def sample(self, prompts, *, group_size, sampling, run_seed, step):
    assert group_size == 1 and sampling.max_new_tokens and run_seed == 3
    vocabulary = vocab.ByteVocabulary()
    found = []
    for number, prompt in enumerate(prompts):
      text = vocabulary.decode(prompt).strip()
      self.asked.append((step, text))
      tokens = np.asarray(vocabulary.encode(self.reply(text)), np.int32)
      nothing = np.zeros(len(tokens), np.float32)
      found.append(
        sample.Sample(
          prompt_number=number,
          number=0,
          prompt=np.asarray(prompt),
          tokens=tokens,
          logprob=nothing,
          sampled_logprob=nothing,
          experts=None,
          version=np.zeros(len(tokens), np.int32),
          truncated=False,
        )
      )
    return found


def _judge(reply, **changes):
  fields = {"question": _QUESTION, "template": _PLAIN, "seed": 3, "votes": 8}
  model = _Model(reply)
  judging = generative_judge.Judging(**{**fields, **changes})
  found = generative_judge.GenerativeJudge(
    model, vocab.ByteVocabulary(), judging
  )
  return found, model


def _by_length(text: str) -> str:
  """The longer of both answers gets the better grade."""
  a, b = text.split(" A ")[1].removesuffix(" .").split(" B ")
  return f"A: {len(a)} B: {len(b)}"


class GenerativeJudgeTest(parameterized.TestCase):
  def test_places_change_nothing(self):
    judge, model = _judge(_by_length)
    grades, count = judge.compare([("q", "xx", "xxxxx"), ("r", "xxx", "x")])
    np.testing.assert_array_equal(grades, [[2, 5], [3, 1]])
    np.testing.assert_array_equal(count, [8, 8])
    # Both orders were asked, of both questions.
    texts = {text for _, text in model.asked}
    self.assertEqual(
      texts,
      {"Q q A xx B xxxxx .", "Q q A xxxxx B xx .", "Q r A xxx B x ."}
      | {"Q r A x B xxx ."},
    )

  def test_one_who_always_prefers_a_prefers_nobody(self):
    judge, _ = _judge(lambda text: "A: 9 B: 1", votes=400)
    ((x, y),), _ = judge.compare([("q", "one", "two")])
    self.assertLess(abs(x - y), 1.0)
    self.assertAlmostEqual(x + y, 10.0, delta=1e-4)

  def test_replies_follow_from_what_is_asked(self):
    judge, model = _judge(_by_length)
    for _ in range(2):
      self.assertLen(judge.compare([("q", "a", "b")])[0], 1)
    half = len(model.asked) // 2
    self.assertEqual(model.asked[:half], model.asked[half:])

  def test_votes_without_grades_do_not_count(self):
    judge, _ = _judge(lambda text: "A: 3 B: 4" if " A x " in text else "?")
    grades, count = judge.compare([("q", "x", "y")])
    self.assertBetween(count[0], 1, 7)
    np.testing.assert_array_equal(grades, [[3, 4]])
    judge, _ = _judge(lambda text: "no")
    grades, count = judge.compare([("q", "x", "y")])
    self.assertTrue(np.isnan(grades).all())
    self.assertEqual(count[0], 0)

  def test_scores_of_groups(self):
    judge, _ = _judge(_by_length, opponents=2)
    found = judge.scores(
      ["q", "r", "s"], [["x", "xxx", "xx", "xxxx"], ["alone"], ["x", "xx"]]
    )
    np.testing.assert_array_equal(found[0], [1, 3, 2, 4])
    self.assertTrue(np.isnan(found[1][0]))
    np.testing.assert_array_equal(found[2], [1, 2])

  def test_the_chain_of_thought_is_not_shown(self):
    judge, model = _judge(_by_length)
    answer = "<think>A: 1 B: 10</think><answer>x</answer>"
    self.assertLen(judge.compare([("q", answer, "xx")])[0], 1)
    self.assertNotIn("10", "".join(text for _, text in model.asked))

  def test_fields_in_answers_are_not_filled_in(self):
    judge, model = _judge(lambda text: "A: 1 B: 1", votes=1)
    self.assertLen(judge.compare([("{a}", "{b}", "{prompt}")])[0], 1)
    (_, text) = model.asked[0]
    self.assertIn("Q {a} A ", text)

  def test_pairs_far_enough_apart(self):
    judge, _ = _judge(_by_length)
    asked = [("q", "x", "xxx"), ("r", "xxx", "xx"), ("s", "xxxx", "x")]
    pairs = judge.pairs(asked, margin=1.0)
    self.assertEqual(
      [(p.prompt, p.chosen, p.rejected) for p in pairs],
      [("q", "xxx", "x"), ("s", "xxxx", "x")],
    )

  @parameterized.parameters(
    ("A: 8 B: 2", (8.0, 2.0)),
    ("A: 1 B: 1 and then A:7, B:9.5", (7.0, 9.5)),
    ("<think>A: 1 B: 2</think> A: 3 B: 4", (3.0, 4.0)),
    ("<think>A: 1 B: 2", None),
    ("A: 11 B: 2", None),
    ("A: 0 B: 2", None),
    ("B: 2", None),
    ("", None),
  )
  def test_grades(self, reply, expected):
    self.assertEqual(generative_judge.grades_in(reply), expected)

  @parameterized.parameters(
    ({"votes": 0}, "votes=0: expected at least 1"),
    ({"question": "{prompt} {a}"}, r"expected \{b\} in it once"),
    ({"part": "none"}, "part='none': expected one of summary, whole"),
  )
  def test_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self.assertIsNone(generative_judge.Judging(**changes))


if __name__ == "__main__":
  absltest.main()
