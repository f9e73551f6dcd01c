"""Bodies of completions and chats, to what the engine takes."""

import json

from absl.testing import absltest
from absl.testing import parameterized

from dsx.serving import fields
from dsx.serving import protocol
from dsx.serving import refusal


def completion(**body):
  return protocol.completion(
    fields.parse(json.dumps({"prompt": "a", **body}).encode()),
    vocab_size=320,
    max_choices=8,
  )


def chat(**body):
  body = {"messages": [{"role": "user", "content": "hi"}], **body}
  return protocol.chat(fields.parse(json.dumps(body).encode()), max_choices=8)


class CompletionTest(parameterized.TestCase):
  def test_defaults(self):
    call = completion()
    self.assertEqual(call.prompts, ("a",))
    self.assertEqual(call.max_tokens, 16)
    self.assertEqual(call.n, 1)
    self.assertEqual(call.sampling.temperature, 1.0)
    self.assertEqual(call.sampling.stop, ())
    self.assertFalse(call.stream or call.echo or call.logprobs)
    # Without a seed every request has another one.
    self.assertNotEqual(call.sampling.seed, completion().sampling.seed)

  @parameterized.parameters(
    ("text", ("text",)),
    (["a", "b"], ("a", "b")),
    ([1, 2], ((1, 2),)),
    ([[1], [2, 3]], ((1,), (2, 3))),
    ("", ("",)),
  )
  def test_prompts(self, prompt, expected):
    self.assertEqual(completion(prompt=prompt).prompts, expected)

  def test_everything(self):
    call = completion(
      model="m",
      max_tokens=0,
      echo=True,
      logprobs=0,
      temperature=0.5,
      top_p=0.9,
      top_k=4,
      min_p=0.1,
      seed=-1,
      stop=["x", "y"],
      stop_token_ids=[3],
      ignore_eos=True,
      n=2,
      stream=True,
      stream_options={"include_usage": True},
      best_of=1,
      presence_penalty=0,
      frequency_penalty=0.0,
      logit_bias={},
      suffix=None,
      user="someone",
    )
    self.assertEqual(call.max_tokens, 0)
    self.assertTrue(call.logprobs)
    self.assertEqual(call.sampling.top_logprobs, 0)
    self.assertEqual(call.sampling.seed, 2**64 - 1)
    self.assertEqual(call.sampling.stop, ("x", "y"))
    self.assertEqual(call.sampling.stop_tokens, (3,))
    self.assertEqual(call.sampling.top_k, 4)
    self.assertTrue(call.include_usage and call.stream)

  @parameterized.parameters(
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, None),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [320]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": ["a"] * 9}, "prompt"),
    ({"prompt": ["a"] * 3, "n": 3}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 101}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"seed": 2**64}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "x"),
    ({"messages": []}, "messages"),
  )
  def test_refused(self, body, param):
    if param is None:  # an empty prompt is found when its tokens are counted
      call = completion(**body)
      with self.assertRaisesRegex(refusal.Refusal, "it has no tokens"):
        call.request(call.prompts[0], 0, 64)
      return
    with self.assertRaises(refusal.Refusal) as caught:
      completion(**body)
    self.assertEqual(caught.exception.status, 400)
    self.assertEqual(caught.exception.param, param)

  def test_request(self):
    call = completion(seed=5, n=3, echo=True, logprobs=1, max_tokens=9)
    asked = [call.request((1, 2), k, 10) for k in range(3)]
    self.assertEqual([r.prompt for r in asked], [(1, 2)] * 3)
    # The context has room for 8.
    self.assertEqual({r.sampling.max_new_tokens for r in asked}, {8})
    self.assertTrue(all(r.score_prompt for r in asked))
    # The first answer's seed is the request's own.
    seeds = [r.sampling.seed for r in asked]
    self.assertEqual(seeds[0], 5)
    self.assertLen(set(seeds), 3)
    again = call.request((1, 2), 2, 10).sampling.seed
    self.assertEqual(again, seeds[2])

  def test_context(self):
    with self.assertRaises(refusal.Refusal) as caught:
      completion().request((1,) * 10, 0, 10)
    self.assertEqual(caught.exception.code, "context_length_exceeded")
    self.assertIn("10 tokens: expected at most 9", str(caught.exception))
    scored = completion(echo=True, max_tokens=0)
    self.assertTrue(scored.request((1,) * 10, 0, 10).score_prompt)
    with self.assertRaises(refusal.Refusal):
      scored.request((1,) * 11, 0, 10)


class ChatTest(parameterized.TestCase):
  def test_defaults(self):
    call = chat()
    self.assertEqual(call.messages, ({"role": "user", "content": "hi"},))
    self.assertIsNone(call.max_tokens)
    self.assertIsNone(call.think)
    # As much as there is room for.
    asked = call.request((1, 2), 0, 10)
    self.assertEqual(asked.sampling.max_new_tokens, 8)
    self.assertFalse(asked.score_prompt)
    with self.assertRaisesRegex(refusal.Refusal, "expected at most 9"):
      call.request((1,) * 10, 0, 10)

  def test_messages(self):
    call = chat(
      messages=[
        {"role": "developer", "content": "be brief"},
        {
          "role": "user",
          "content": [
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b"},
          ],
        },
        # What the client has of an answer, as it was.
        {
          "role": "assistant",
          "content": "c",
          "reasoning_content": "r",
          "refusal": None,
          "tool_calls": None,
        },
        {"role": "user", "content": "d"},
      ]
    )
    self.assertEqual(
      call.messages,
      (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
      ),
    )

  def test_everything(self):
    call = chat(
      max_completion_tokens=7,
      max_tokens=9,
      logprobs=True,
      top_logprobs=3,
      tools=[],
      tool_choice="none",
      response_format={"type": "text"},
      thinking={"type": "disabled"},
    )
    self.assertEqual(call.max_tokens, 7)
    self.assertTrue(call.logprobs)
    self.assertEqual(call.sampling.top_logprobs, 3)
    self.assertFalse(call.think)
    self.assertIsNotNone(call.think)

  @parameterized.parameters(
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    (
      {"messages": [{"role": "user", "content": "\udc00"}]},
      "messages[0].content",
    ),
    (
      {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
      "messages[0].content[0].type",
    ),
    (
      {"messages": [{"role": "user", "content": ["x"]}]},
      "messages[0].content[0]",
    ),
    ({"max_tokens": 0}, "max_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"n": 9}, "n"),
    ({"tools": [{}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"thinking": {"type": "maybe"}}, "thinking.type"),
    ({"prompt": "a"}, "prompt"),
    ({"echo": True}, "echo"),
  )
  def test_refused(self, body, param):
    with self.assertRaises(refusal.Refusal) as caught:
      chat(**body)
    self.assertEqual(caught.exception.param, param)
    self.assertEqual(caught.exception.status, 400)


if __name__ == "__main__":
  absltest.main()
