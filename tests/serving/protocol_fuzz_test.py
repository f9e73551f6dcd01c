"""Whatever a body says, it is taken or refused with one line."""

import json
import random

from absl.testing import absltest

from dsx.inference import request as request_lib
from dsx.serving import fields
from dsx.serving import protocol
from dsx.serving import refusal

_FIELDS = (
  "prompt messages max_tokens max_completion_tokens temperature top_p top_k"
  " min_p n seed stop stop_token_ids ignore_eos logprobs top_logprobs echo"
  " stream stream_options suffix best_of logit_bias presence_penalty"
  " frequency_penalty response_format tools tool_choice functions"
  " function_call modalities thinking user store add_special_tokens"
  " skip_special_tokens role content type text include_usage unheard_of"
).split()
_SCALARS = (
  None, True, False, 0, 1, -1, 5, 2**31, 2**63, -(2**64), 10**300, 0.0, 1.0,
  0.5, -0.1, 1e308, "", "a", "é\x00", "\ud800", "text", "user", "none",
)  # fmt: skip


def _value(rng, depth):
  kind = rng.random()
  if depth == 0 or kind < 0.5:
    return rng.choice(_SCALARS)
  items = [_value(rng, depth - 1) for _ in range(rng.randrange(4))]
  if kind < 0.75:
    return items
  return {rng.choice(_FIELDS): item for item in items}


def _completion(read):
  return protocol.completion(read, vocab_size=320, max_choices=8)


def _chat(read):
  return protocol.chat(read, max_choices=8)


class ProtocolFuzzTest(absltest.TestCase):
  def test_taken_or_refused(self):
    rng = random.Random(0)
    kinds = (
      (_completion, {"prompt": "a"}),
      (_chat, {"messages": [{"role": "user", "content": "hi"}]}),
    )
    taken = refused = 0
    for _ in range(20_000):
      read, body = rng.choice(kinds)
      body = dict(body)
      for _ in range(rng.randrange(1, 4)):
        body[rng.choice(_FIELDS)] = _value(rng, 3)
      text = json.dumps(body).encode()
      try:
        call = read(fields.parse(text))
        asked = call.request((1, 2), call.n - 1, 64)
        self.assertIsInstance(asked, request_lib.Request)
        taken += 1
      except refusal.Refusal as error:
        self.assertEqual(error.status, 400)
        message = str(error)
        self.assertLess(len(message), 300)
        self.assertTrue(message.isascii() and message.isprintable(), message)
        json.dumps(error.body).encode("ascii")
        refused += 1
    # Both happen often.
    self.assertGreater(min(taken, refused), 500)


if __name__ == "__main__":
  absltest.main()
