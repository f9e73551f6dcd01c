"""Forms that are right, and the many that are not."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.rl import response


class ResponseTest(parameterized.TestCase):
  def test_taken_apart(self):
    got = response.parse("\n<think>a\nb</think>\n<answer> 4 </answer>\n")
    self.assertEqual(got, response.Response("a\nb", "4"))
    got = response.parse(" a</think><answer></answer>", opened=True)
    self.assertEqual((got.thought, got.answer), (" a", ""))
    self.assertTrue(got.well_formed)

  @parameterized.parameters(
    "",
    "4",
    "<answer>4</answer>",
    "<think>a</think>",
    "<answer>4</answer><think>a</think>",
    "<think>a</think><answer>4</answer><answer>5</answer>",
    "<think>a<think>b</think><answer>4</answer>",
    "<think>a</think></think><answer>4</answer>",
    "<think>a</think> so <answer>4</answer>",
    "well <think>a</think><answer>4</answer>",
    "<think>a</think><answer>4</answer> indeed",
    "<think>a<answer>3</answer></think><answer>4</answer>",
    "<think>a</think><answer>4",
    "<THINK>a</THINK><answer>4</answer>",
    "<think>a</think><answer>4<think></answer>",
  )
  def test_wrong_form(self, text):
    self.assertEqual(response.parse(text), response.Response("", None))

  def test_tags_are_not_expected_twice(self):
    text = "<think>a</think><answer>4</answer>"
    self.assertFalse(response.parse(text, opened=True).well_formed)

  @parameterized.parameters(
    ("<think>a</think>4", "4"),
    ("\n<think>\na</think>\n\nso \\boxed{4} it is", "4"),
    ("<think>\\boxed{5}</think>\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("<think>a</think>\\boxed{4} \\boxed{5}", ""),
    ("<think>a</think>\\boxed{\\boxed{4}}", ""),
    ("<think>a</think>\\boxed{4", ""),
    ("<think>a</think>\\boxed{}", ""),
    ("<think></think><answer>4</answer>", "<answer>4</answer>"),
  )
  def test_summary(self, text, answer):
    got = response.parse(text, form="summary")
    self.assertEqual((got.answer, got.well_formed), (answer, True))

  @parameterized.parameters(
    "",
    "4",
    "<think>a",
    "a</think>4",
    "<think>a</think>",
    "<think></think> ",
    "<think>a</think>b</think>4",
    "<think><think>a</think>4",
    "well <think>a</think>4",
  )
  def test_no_summary(self, text):
    got = response.parse(text, form="summary")
    self.assertEqual(got, response.Response("", None))

  def test_a_long_text_is_read_quickly(self):
    """No pattern goes over it again and again."""
    text = "<think>" * 20_000 + "</think>" * 20_000
    self.assertFalse(response.parse(text).well_formed)
    self.assertFalse(response.parse(text, form="summary").well_formed)


if __name__ == "__main__":
  absltest.main()
