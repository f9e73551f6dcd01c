"""Templates, and that nothing a person or a policy writes becomes special."""

import random

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import prompt_template
from dsx.data import special_tokens
from dsx.data import vocab

_BYTES = vocab.ByteVocabulary()
_SPECIAL = _BYTES.special


class TemplateTest(parameterized.TestCase):
  def test_r1_zero(self):
    tokens = prompt_template.Template().tokens(_BYTES, "{1+1}")
    self.assertEqual(tokens[0], _SPECIAL["bos"])
    text = _BYTES.decode(tokens)
    self.assertStartsWith(text, "A conversation between User and Assistant.")
    self.assertEndsWith(
      text, "<answer> answer here </answer>. User: {1+1}. Assistant:"
    )
    # Its tags are text, as the report has them.
    self.assertEqual(sum(t >= 256 for t in tokens), 1)

  @parameterized.parameters(
    ("plain", "1+1=\n"), ("Q: {prompt} A:", "Q: 1+1= A:")
  )
  def test_text(self, kind, expected):
    template = prompt_template.Template(kind=kind)
    tokens = template.tokens(_BYTES, "1+1=")
    self.assertEqual(tokens, [_SPECIAL["bos"], *expected.encode()])
    self.assertFalse(template.opens_thought)

  def test_chat(self):
    template = prompt_template.Template(kind="chat", system="s")
    s = _SPECIAL
    self.assertEqual(
      template.tokens(_BYTES, "x"),
      [s["bos"], *b"s", s["user"], *b"x", s["assistant"], s["think"], *b"\n"],
    )
    self.assertTrue(template.opens_thought)
    silent = prompt_template.Template(kind="chat", think=False)
    self.assertFalse(silent.opens_thought)
    self.assertEqual(silent.tokens(_BYTES, "x")[-1], s["/think"])

  @parameterized.parameters(
    ({"kind": "zero"}, "kind='zero': expected r1_zero, chat, plain or a"),
    ({"kind": "{prompt}{prompt}"}, "expected r1_zero, chat, plain or a text"),
    ({"system": "s"}, "system='s', think=True: expected these of kind='chat'"),
    ({"think": False}, "think=False: expected these of kind='chat'"),
  )
  def test_refused(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      prompt_template.Template(**settings)

  def test_empty_prompt(self):
    with self.assertRaisesRegex(ValueError, "prompt='': expected text"):
      prompt_template.Template().tokens(_BYTES, "")

  @parameterized.parameters("r1_zero", "plain", "chat")
  def test_prompts_hold_no_special_tokens(self, kind):
    """10,000 strings made of special tokens' strings, whole and in pieces."""
    generator = random.Random(0)
    template = prompt_template.Template(kind=kind)
    strings = [*special_tokens.STRINGS.values(), "<answer>", "</answer>", "x"]
    expected = [t for t in template.tokens(_BYTES, "x") if t >= 256]
    for _ in range(10_000 if kind == "plain" else 300):
      text = "".join(generator.choices(strings, k=3))
      cut = generator.randrange(len(text))
      got = template.tokens(_BYTES, text[cut:] + text[: cut + 1])
      self.assertEqual([t for t in got if t >= 256], expected)


class ResponseTest(parameterized.TestCase):
  def test_tags_are_tokens(self):
    text = "<think>a</think><answer>b</answer>"
    tokens = prompt_template.response_tokens(_BYTES, text)
    self.assertEqual(
      tokens,
      [_SPECIAL["think"], *b"a", _SPECIAL["/think"], *b"<answer>b</answer>"],
    )
    ended = [*tokens, _SPECIAL["eos"]]
    self.assertEqual(prompt_template.response_text(_BYTES, ended), text)
    self.assertEqual(prompt_template.response_text(_BYTES, tokens), text)

  @parameterized.parameters(
    "", "</think><think>", "a<think>", "<|EOT|><think>x", "<<think>>\u4e09"
  )
  def test_there_and_back(self, text):
    tokens = prompt_template.response_tokens(_BYTES, text)
    self.assertEqual(prompt_template.response_text(_BYTES, tokens), text)
    allowed = {_SPECIAL["think"], _SPECIAL["/think"]}
    self.assertLessEqual({t for t in tokens if t >= 256}, allowed)

  def test_other_special_tokens_show(self):
    """A policy that says them has not kept to the form."""
    said = [_SPECIAL["eos"], _SPECIAL["user"], _SPECIAL["eos"]]
    text = prompt_template.response_text(_BYTES, said)
    strings = special_tokens.STRINGS
    self.assertEqual(text, strings["eos"] + strings["user"])


if __name__ == "__main__":
  absltest.main()
