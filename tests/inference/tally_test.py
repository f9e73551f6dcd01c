"""One line that says it all."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.inference import continuation
from dsx.inference import tally
from dsx.inference import thinking


class TallyTest(parameterized.TestCase):
  def line(self, *came, drafts=(0, 0), asked=0):
    self.now = 0.0
    made = tally.Tally(clock=lambda: self.now)
    for self.now, drawn, end in came:
      done = end and continuation.Continuation(
        reasoning="", text="", tokens=[], logprobs=[], end=end
      )
      made.add(continuation.News(0, thinking.Part("", ""), drawn, done))
    return made.line(asked=asked, drafted=drafts[0], accepted=drafts[1])

  @parameterized.parameters(
    ("model", "the model ended the text"),
    ("stop_string", "a stop string came"),
    ("max_new_tokens", "as many as asked for"),
    ("context", "the context is full"),
  )
  def test_one_text(self, end, why):
    self.assertEqual(
      self.line((0.5, 0, None), (1.5, 3, None), (2.0, 2, end)),
      f"5 tokens, {why}, 2.0 s (1.5 s to the first), 2.5 tokens/s",
    )

  def test_many_texts(self):
    self.assertEqual(
      self.line(
        (1.0, 1000, "context"),
        (1.0, 500, "model"),
        (2.0, 500, "model"),
        drafts=(2000, 1300),
      ),
      "2,000 tokens in 3 texts (2: the model ended the text; 1: the context is "
      "full), 2.0 s (1.0 s to the first), 1,000.0 tokens/s, 1,300 of 2,000 "
      "drafts accepted (65%)",
    )

  def test_time_between_answers_does_not_count(self):
    self.now = 0.0
    made = tally.Tally(clock=lambda: self.now)
    for self.now in (100.0, 200.0):
      made.begin()
      self.now += 2
      made.add(continuation.News(0, thinking.Part("", ""), 10, None))
    self.assertEqual(
      made.line(), "20 tokens, 4.0 s (2.0 s to the first), 5.0 tokens/s"
    )

  def test_cut_off(self):
    self.assertStartsWith(
      self.line((1.0, 10, "model"), (2.0, 5, None), asked=64),
      "15 tokens in 1 of 64 texts (1: the model ended the text), 2.0 s",
    )

  def test_nothing(self):
    self.assertEqual(self.line(), "0 tokens")
    self.assertEqual(
      self.line((2.0, 1, None)),
      "1 token, 2.0 s (2.0 s to the first), 0.5 tokens/s",
    )


if __name__ == "__main__":
  absltest.main()
