"""Tokens as clients see them."""

import json

from absl.testing import absltest

from dsx.inference import request as request_lib
from dsx.serving import refusal
from dsx.serving import token_text
from tests.serving import fake_engine

_VOCABULARY = fake_engine.VOCABULARY


def _drawn(token, logprob, *top):
  return request_lib.Drawn(token, logprob, logprob, top)


class TokenTextTest(absltest.TestCase):
  def test_no_two_tokens_look_the_same(self):
    shown = [token_text.shown(_VOCABULARY, t) for t in range(_VOCABULARY.size)]
    self.assertLen(set(shown), _VOCABULARY.size)
    self.assertEqual(shown[ord("a")], "a")
    self.assertEqual(shown[0xC3], "bytes:\\xc3")
    self.assertEqual(shown[fake_engine.EOS], "<｜end▁of▁sentence｜>")
    self.assertEqual(shown[319], "token:319")

  def test_legacy(self):
    tokens = _VOCABULARY.encode("é!b")
    legacy = token_text.Legacy(_VOCABULARY)
    first = legacy.of(tokens[:2], [None, _drawn(tokens[1], -1.0)])
    self.assertEqual(first["tokens"], ["bytes:\\xc3", "bytes:\\xa9"])
    self.assertEqual(first["token_logprobs"], [None, -1.0])
    self.assertEqual(first["top_logprobs"], [None, {"bytes:\\xa9": -1.0}])
    self.assertEqual(first["text_offset"], [0, 0])
    # The offsets go on in the next piece.
    best = (ord("x"), -0.5), (ord("!"), -2.0)
    then = legacy.of(
      tokens[2:], [_drawn(ord("!"), -2.0, *best), _drawn(ord("b"), -3.0, *best)]
    )
    self.assertEqual(then["text_offset"], [1, 2])
    self.assertEqual(
      then["top_logprobs"],
      [{"x": -0.5, "!": -2.0}, {"x": -0.5, "!": -2.0, "b": -3.0}],
    )

  def test_numbers_that_json_has_not(self):
    self.assertEqual(token_text.finite(float("-inf")), -9999.0)
    with self.assertRaises(refusal.Refusal) as caught:
      token_text.finite(float("nan"))
    self.assertEqual(caught.exception.status, 500)

  def test_chat_entry(self):
    entry = token_text.chat_entry(
      _VOCABULARY, _drawn(0xC3, -1.0, (fake_engine.EOS, -0.5))
    )
    json.dumps(entry, allow_nan=False)
    self.assertEqual(entry["bytes"], [0xC3])
    self.assertEqual(entry["logprob"], -1.0)
    self.assertEqual(
      entry["top_logprobs"],
      [{"token": "<｜end▁of▁sentence｜>", "logprob": -0.5, "bytes": []}],
    )


if __name__ == "__main__":
  absltest.main()
