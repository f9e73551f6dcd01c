"""What does not fit the model is said before its weights are read."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import vocab
from dsx.inference import generation
from dsx.inference import plan
from dsx.inference import prompts_file
from dsx.inference import template
from tests.training import tiny

_BYTE = vocab.ByteVocabulary()
_TEXT = template.Template()
_CHAT = template.Template(chat=True)


def _plan(*texts, how=None, asked=_TEXT, config=None, **more):
  fields = {"vocab_size": 320, "max_position_embeddings": 64} | (config or {})
  return plan.make(
    generation.Generation().replace(**(how or {})),
    asked,
    [prompts_file.Prompt(t, f"p:{i}") for i, t in enumerate(texts, 1)],
    config=tiny.model_config(**fields),
    vocabulary=_BYTE,
    window=16,
    **more,
  )


class PlanTest(parameterized.TestCase):
  def test_prompts_begin_with_bos(self):
    made = _plan("a", "bc")
    bos = _BYTE.special["bos"]
    self.assertEqual(made.tokens, [[bos, 97], [bos, 98, 99]])
    self.assertEqual(
      made.details(), "p:1: 2 tokens: 256 97\np:2: 3 tokens: 256 98 99"
    )

  def test_prompts_of_a_chat(self):
    made = _plan("a", asked=template.Template(chat=True, system="b"))
    self.assertEqual(
      _BYTE.decode(made.tokens[0], specials=True),
      "<｜begin▁of▁sentence｜>b<｜User｜>a<｜Assistant｜><think>\n",
    )

  @parameterized.parameters(
    ({}, 1, 2, 16),  # what it was trained with
    ({"context": 40}, 1, 2, 40),
    ({"max_new_tokens": 3}, 1, 2, 6),  # no more than can be filled
    ({"samples": 9}, 1, 8, 16),
    ({"slots": 3, "samples": 9}, 1, 3, 16),
    ({}, 4, 4, 16),  # what the mesh can divide
    ({"samples": 4}, 3, 9, 16),
  )
  def test_decoding_is_no_larger_than_needed(self, how, shards, slots, context):
    decoding = _plan("a", "bc", how=how, shards=shards).how.decoding
    self.assertEqual((decoding.slots, decoding.context), (slots, context))

  def test_one_text_comes_in_small_pieces(self):
    self.assertEqual(_plan("a").how.decoding.steps, 4)
    self.assertEqual(_plan("a", how={"steps": 2}).how.decoding.steps, 2)
    self.assertEqual(_plan(asked=_CHAT).how.decoding.steps, 4)
    self.assertEqual(_plan("a", "b").how.decoding.steps, 16)
    self.assertEqual(_plan("a", how={"samples": 2}).how.decoding.steps, 16)

  def test_a_chat(self):
    made = _plan(asked=_CHAT, how={"context": 50})
    self.assertEqual(made.how.decoding.slots, 1)
    self.assertEqual(made.how.decoding.context, 50)
    self.assertEqual(made.how.sampling.max_new_tokens, 50)
    self.assertIn("a chat, window=50", str(made))
    short = _plan(asked=_CHAT, how={"max_new_tokens": 7})
    self.assertEqual(short.how.sampling.max_new_tokens, 7)
    self.assertEqual(short.window, 16)

  def test_in_words(self):
    self.assertEqual(
      str(_plan("abc")),
      "prompt of 4 tokens, window=16, seed=0, max_new_tokens=200, "
      "temperature=0.7",
    )
    how = {"top_k": 3, "samples": 2, "seed": 4, "drafts": 1, "stop": ("a",)}
    self.assertEqual(
      str(_plan("a", "bcd", how=how)),
      "2 prompts of 2 to 4 tokens, 2 samples of each, window=16, seed=4, "
      "drafts=1, max_new_tokens=200, temperature=0.7, top_k=3, stop=('a',)",
    )

  @parameterized.parameters(
    (
      {"config": {"vocab_size": 300}},
      "vocabulary 'byte' has 320 ids, the model 300: expected the vocabulary "
      "it was trained with",
    ),
    (
      {"how": {"drafts": 2}},
      "drafts=2: expected at most 1, one for each MTP module of this "
      "checkpoint; lower it",
    ),
    (
      {"how": {"context": 65}},
      "window=65: expected at most max_position_embeddings=64, the model's "
      "context; shorten it",
    ),
    (
      {"texts": ["a" * 15]},
      "p:1: prompt of 16 tokens: expected fewer than window=16; shorten it, or "
      "raise the window (this model's context is 64)",
    ),
    (
      {"texts": ["a", "a" * 63], "how": {"context": 64}},
      "p:2: prompt of 64 tokens: expected fewer than window=64; shorten it",
    ),
    (
      {"texts": ["b\udcff"]},
      "p:1: text: character 1 is a lone surrogate ('\\udcff'), expected "
      "Unicode text that UTF-8 can hold; replace or drop that character",
    ),
    (
      {"texts": ["b\udcff"], "asked": _CHAT},
      "p:1: messages[0].content: text: character 1 is a lone surrogate "
      "('\\udcff'), expected Unicode text that UTF-8 can hold; replace or drop "
      "that character",
    ),
    (
      {"texts": [], "asked": template.Template(chat=True, system="\udcff")},
      "messages[0].content: text: character 0 is a lone surrogate "
      "('\\udcff'), expected Unicode text that UTF-8 can hold; replace or drop "
      "that character",
    ),
  )
  def test_what_does_not_fit(self, case, message):
    with self.assertRaises(ValueError) as caught:
      _plan(*case.pop("texts", ["a"]), **case)
    self.assertEqual(str(caught.exception), message)


if __name__ == "__main__":
  absltest.main()
