"""A prompt is a text to continue, or a user's words."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import vocab
from dsx.inference import prompts_file
from dsx.inference import template

_BYTE = vocab.ByteVocabulary()
_PROMPT = prompts_file.Prompt("a<｜User｜>", "p:1")


class TemplateTest(parameterized.TestCase):
  def text(self, **fields):
    tokens = template.Template(**fields).prompt(_BYTE, _PROMPT)
    return _BYTE.decode(tokens, specials=True)

  def test_a_text(self):
    self.assertEqual(self.text(), "<｜begin▁of▁sentence｜>a<｜User｜>")

  def test_words_in_a_chat(self):
    said = "<｜User｜>a<｜User｜><｜Assistant｜>"
    self.assertEqual(
      self.text(chat=True, system="b"),
      f"<｜begin▁of▁sentence｜>b{said}<think>\n",
    )
    self.assertEqual(
      self.text(chat=True, think=False),
      f"<｜begin▁of▁sentence｜>{said}</think>",
    )

  @parameterized.parameters(
    ({}, False), ({"chat": True}, True), ({"chat": True, "think": False}, False)
  )
  def test_where_prompts_end(self, fields, expected):
    self.assertEqual(template.Template(**fields).opens_reasoning, expected)

  @parameterized.parameters({"system": "b"}, {"think": False})
  def test_of_a_chat_only(self, **fields):
    with self.assertRaisesRegex(ValueError, "expected these of a chat only"):
      template.Template(**fields)


if __name__ == "__main__":
  absltest.main()
