"""From a text to its continuation: BOS, EOS, and what is refused."""

from absl.testing import absltest
from absl.testing import parameterized
import flax.linen as nn
import jax
import jax.numpy as jnp

from dsx.data import vocab
from dsx.inference import completion
from dsx.inference import sampling
from dsx.models import config as config_lib
from tests.training import tiny


class _Parrot(nn.Module):
  """Says `answer`, one token after the other, whatever it is asked."""

  config: config_lib.DeepSeekConfig
  answer: tuple[int, ...]
  prompt_length: int

  def __call__(self, tokens):
    place = jnp.arange(tokens.shape[1]) - (self.prompt_length - 1)
    place = jnp.clip(place, 0, len(self.answer) - 1)
    said = jnp.asarray(self.answer)[place]
    return jax.nn.one_hot(said, self.config.vocab_size)[None, :, :], {}


_BYTE = vocab.ByteVocabulary()
_GREEDY = sampling.Sampling(temperature=0.0, max_new_tokens=6)


def _parrot(answer, prompt="ab", **config):
  fields = {"vocab_size": 320, "max_position_embeddings": 32} | config
  length = len(prompt.encode()) + 1
  return _Parrot(tiny.model_config(**fields), tuple(answer), length)


class CompletionTest(parameterized.TestCase):
  def test_until_there_are_enough(self):
    model = _parrot(b"cdefghijk")
    found = completion.complete(model, {}, _BYTE, "ab", _GREEDY)
    self.assertEqual(found, ("cdefgh", list(b"cdefgh"), False))

  def test_until_eos(self):
    eos = _BYTE.special["eos"]
    model = _parrot([*"né".encode(), eos, 65, 65, 65, 65])
    found = completion.complete(model, {}, _BYTE, "ab", _GREEDY)
    self.assertEqual(found, ("né", [*"né".encode(), eos], True))

  def test_bos_comes_first_if_there_is_one(self):
    bos = _BYTE.special["bos"]
    self.assertEqual(completion.prompt_tokens(_BYTE, "a"), [bos, 97])
    without = vocab.ByteVocabulary()
    without.special = {"eos": _BYTE.special["eos"]}
    self.assertEqual(completion.prompt_tokens(without, "a"), [97])

  def test_special_tokens_in_a_prompt_are_text(self):
    text = "<｜end▁of▁sentence｜>"
    found = completion.prompt_tokens(_BYTE, text)[1:]
    self.assertEqual(found, list(text.encode()))

  @parameterized.parameters(
    ("", {}, {}, "prompt='': expected text"),
    ("ab", {}, {"vocab_size": 300}, "has 320 ids, the model 300: expected"),
    ("abcd", {"window": 4}, {}, "5 tokens: expected at most window=4; shorten"),
    ("a" * 32, {}, {}, "33 tokens: expected at most window=32; shorten"),
    ("ab", {"window": 33}, {}, "at most max_position_embeddings=32"),
  )
  def test_bad_input(self, prompt, how, config, message):
    with self.assertRaisesRegex(ValueError, message):
      completion.complete(_parrot(b"x", **config), {}, _BYTE, prompt, **how)

  def test_what_it_cannot_do_is_refused(self):
    how = sampling.Sampling(top_p=0.5)
    with self.assertRaisesRegex(ValueError, "length, temperature and seed"):
      completion.complete(_parrot(b"x"), {}, _BYTE, "ab", how)


if __name__ == "__main__":
  absltest.main()
