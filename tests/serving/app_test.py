"""The application as clients see it, with an engine that needs no model."""

import json

from absl.testing import absltest
from absl.testing import parameterized
from starlette import testclient

from dsx.serving import app as app_lib
from dsx.serving import settings
from dsx.serving import worker as worker_lib
from tests.serving import fake_engine

_VOCABULARY = fake_engine.VOCABULARY
_BOS = _VOCABULARY.special["bos"]
_HELLO = [{"role": "user", "content": "hi"}]


def events(response):
  """The JSON objects of a stream, which ends as it should."""
  lines = [line for line in response.text.split("\n\n") if line]
  assert all(line.startswith("data: ") for line in lines), response.text
  assert lines[-1] == "data: [DONE]", response.text
  return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class AppTest(parameterized.TestCase):
  def serve(self, answer="spam", *, api_key=None, context=64, **fields):
    self.engine = fake_engine.FakeEngine(answer, context=context)
    worker = worker_lib.Worker(lambda: self.engine)
    worker.start()
    self.addCleanup(worker.stop, 30)
    self.addCleanup(self.engine.gate.set)
    serving = settings.Serving(model_name="fake", **fields)
    self.service = app_lib.Service(worker, _VOCABULARY, serving)
    return testclient.TestClient(
      self.service.application(api_key), base_url="http://127.0.0.1"
    )

  def error(self, response, status, *, param=None, code=None):
    self.assertEqual(response.status_code, status, response.text)
    error = response.json()["error"]
    self.assertEqual(set(error), {"message", "type", "param", "code"})
    self.assertEqual(error["param"], param)
    self.assertEqual(error["code"], code)
    return error["message"]

  def test_completion(self):
    client = self.serve("spam")
    body = {"model": "fake", "prompt": "ab", "max_tokens": 6, "seed": 9}
    said = client.post("/v1/completions", json=body).json()
    self.assertEqual(said["object"], "text_completion")
    self.assertEqual(said["model"], "fake")
    self.assertStartsWith(said["id"], "cmpl-")
    self.assertEqual(
      said["choices"],
      [
        {
          "index": 0,
          "text": "spamsp",
          "logprobs": None,
          "finish_reason": "length",
        }
      ],
    )
    self.assertEqual(
      said["usage"],
      {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9},
    )
    (asked,) = self.engine.seen
    self.assertEqual(asked.prompt, (_BOS, ord("a"), ord("b")))
    self.assertEqual(asked.sampling.seed, 9)

  def test_many_prompts_and_answers(self):
    client = self.serve()
    body = {"prompt": [[1, 2], [3]], "max_tokens": 3, "n": 2}
    said = client.post("/v1/completions", json=body).json()
    self.assertEqual([c["index"] for c in said["choices"]], [0, 1, 2, 3])
    self.assertEqual({c["text"] for c in said["choices"]}, {"spa"})
    self.assertEqual(said["usage"]["prompt_tokens"], 3)
    self.assertEqual(said["usage"]["completion_tokens"], 12)
    prompts = [request.prompt for request in self.engine.seen]
    self.assertEqual(prompts, [(1, 2), (1, 2), (3,), (3,)])
    seeds = [request.sampling.seed for request in self.engine.seen]
    # What a prompt is answered does not depend on those beside it.
    self.assertEqual(seeds[:2], seeds[2:])
    self.assertNotEqual(seeds[0], seeds[1])

  @parameterized.parameters(False, True)
  def test_stop_string(self, stream):
    most = 10**6  # more than it can say before it is told to stop
    client = self.serve("spam", context=2 * most)
    body = {"prompt": "ab", "max_tokens": most, "stop": "ms", "stream": stream}
    response = client.post("/v1/completions", json=body)
    if stream:
      choices = [event["choices"][0] for event in events(response)]
      text = "".join(choice["text"] for choice in choices)
      finish = choices[-1]["finish_reason"]
    else:
      (choice,) = response.json()["choices"]
      text, finish = choice["text"], choice["finish_reason"]
      self.assertEqual(response.json()["usage"]["completion_tokens"], 5)
    self.assertEqual((text, finish), ("spa", "stop"))
    while self.engine.busy:
      pass
    self.assertEqual(self.engine.cancelled, [1])

  def test_end_of_text(self):
    client = self.serve([ord("a"), fake_engine.EOS])
    body = {"prompt": "ab", "max_tokens": 9, "logprobs": 0}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    self.assertEqual((choice["text"], choice["finish_reason"]), ("a", "stop"))
    # lm-eval counts on an entry for every token that was drawn.
    self.assertLen(choice["logprobs"]["tokens"], 2)

  def test_echo_and_logprobs(self):
    client = self.serve("spam")
    body = {"prompt": "ab", "max_tokens": 1, "echo": True, "logprobs": 1}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    self.assertEqual(choice["text"], "abs")
    logprobs = choice["logprobs"]
    self.assertEqual(logprobs["tokens"][1:], ["a", "b", "s"])
    self.assertEqual(logprobs["text_offset"], [0, 0, 1, 2])
    self.assertEqual(
      logprobs["token_logprobs"],
      [None, *(fake_engine.logprob(ord(c)) for c in "abs")],
    )
    self.assertEqual(
      logprobs["top_logprobs"][1],
      {"\x00": fake_engine.logprob(0), "a": fake_engine.logprob(ord("a"))},
    )
    # Scored alone, as ids, and in a stream.
    body |= {"prompt": [97, 98], "max_tokens": 0}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    self.assertEqual(choice["text"], "ab")
    self.assertEqual(choice["logprobs"]["tokens"], ["a", "b"])
    self.assertEqual(choice["finish_reason"], "length")
    body |= {"max_tokens": 3, "stream": True}
    pieces = [
      event["choices"][0]
      for event in events(client.post("/v1/completions", json=body))
    ]
    self.assertEqual("".join(p["text"] for p in pieces), "abspa")
    offsets = [o for p in pieces for o in p["logprobs"]["text_offset"]]
    self.assertEqual(offsets, [0, 1, 2, 3, 4])
    # Without log-probabilities the prompt is only text.
    body = {"prompt": "ab", "max_tokens": 0, "echo": True}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    self.assertEqual((choice["text"], choice["logprobs"]), ("ab", None))

  def test_stream(self):
    client = self.serve("spam")
    body = {
      "prompt": ["ab", "c"],
      "max_tokens": 5,
      "stream": True,
      "stream_options": {"include_usage": True},
    }
    response = client.post("/v1/completions", json=body)
    self.assertStartsWith(response.headers["content-type"], "text/event-stream")
    said = events(response)
    for index in range(2):
      texts = [
        event["choices"][0]["text"]
        for event in said[:-1]
        if event["choices"][0]["index"] == index
      ]
      self.assertEqual(texts, ["sp", "am", "s"])
    self.assertEqual({event["usage"] is None for event in said[:-1]}, {True})
    self.assertEqual(said[-1]["choices"], [])
    self.assertEqual(said[-1]["usage"]["completion_tokens"], 10)
    self.assertLen({event["id"] for event in said}, 1)

  def reasoned(self):
    close = _VOCABULARY.special["/think"]
    answer = [*_VOCABULARY.encode("why"), close, *_VOCABULARY.encode("so")]
    return self.serve([*answer, fake_engine.EOS])

  def test_chat(self):
    client = self.reasoned()
    said = client.post("/v1/chat/completions", json={"messages": _HELLO}).json()
    self.assertEqual(said["object"], "chat.completion")
    (choice,) = said["choices"]
    self.assertEqual(
      choice["message"],
      {"role": "assistant", "content": "so", "reasoning_content": "why"},
    )
    self.assertEqual(choice["finish_reason"], "stop")
    self.assertEqual(said["usage"]["completion_tokens"], 7)
    details = said["usage"]["completion_tokens_details"]
    self.assertEqual(details, {"reasoning_tokens": 4})
    think = _VOCABULARY.special["think"]
    self.assertEqual(self.engine.seen[0].prompt[-2:], (think, ord("\n")))
    # Asked not to reason, the prompt closes the reasoning that it opens.
    client.post(
      "/v1/chat/completions",
      json={"messages": _HELLO, "thinking": {"type": "disabled"}},
    )
    self.assertNotIn(think, self.engine.seen[1].prompt)

  def test_chat_stream(self):
    client = self.reasoned()
    body = {"messages": _HELLO, "stream": True, "n": 2, "logprobs": True}
    said = events(client.post("/v1/chat/completions", json=body))
    for index in range(2):
      choices = [
        event["choices"][0]
        for event in said
        if event["choices"][0]["index"] == index
      ]
      deltas = [choice["delta"] for choice in choices]
      self.assertEqual(deltas[0], {"role": "assistant", "content": ""})
      join = "".join
      self.assertEqual(
        join(d.get("reasoning_content", "") for d in deltas), "why"
      )
      self.assertEqual(join(d.get("content", "") for d in deltas), "so")
      self.assertEqual(choices[-1]["finish_reason"], "stop")
      tokens = [
        entry["token"]
        for choice in choices
        for part in ("reasoning_content", "content")
        for entry in (choice["logprobs"] or {part: []})[part]
      ]
      self.assertEqual(
        tokens, ["w", "h", "y", "</think>", "s", "o", "<｜end▁of▁sentence｜>"]
      )

  def test_chat_that_is_none(self):
    client = self.serve()
    body = {"messages": [{"role": "assistant", "content": "hi"}]}
    response = client.post("/v1/chat/completions", json=body)
    self.assertIn("user", self.error(response, 400, param="messages"))

  def test_models(self):
    client = self.serve()
    (model,) = client.get("/v1/models").json()["data"]
    self.assertEqual(model["id"], "fake")
    self.assertEqual(model["max_model_len"], 64)
    self.assertEqual(client.get("/v1/models/fake").json(), model)
    self.error(
      client.get("/v1/models/gpt"), 404, param="model", code="model_not_found"
    )
    response = client.post(
      "/v1/completions", json={"model": "gpt", "prompt": "a"}
    )
    message = self.error(response, 404, param="model", code="model_not_found")
    self.assertIn("'fake'", message)

  def test_tokens(self):
    client = self.serve()
    said = client.post("/tokenize", json={"prompt": "é"}).json()
    self.assertEqual(said["tokens"], [_BOS, 0xC3, 0xA9])
    self.assertEqual(said["count"], 3)
    bare = {"add_special_tokens": False}
    info = client.get("/tokenizer_info").json()
    for name in ("bos", "eos"):
      text = info[f"{name}_token"]
      said = client.post("/tokenize", json={"prompt": text, **bare}).json()
      self.assertEqual(said["tokens"], [_VOCABULARY.special[name]])
      # Within a text it is only text.
      said = client.post("/tokenize", json={"prompt": f"a{text}", **bare})
      self.assertNotIn(_VOCABULARY.special[name], said.json()["tokens"])
    said = client.post("/tokenize", json={"messages": _HELLO}).json()
    self.assertEqual(said["tokens"][0], _BOS)
    said = client.post("/detokenize", json={"tokens": [97, fake_engine.EOS]})
    self.assertEqual(said.json(), {"prompt": "a<｜end▁of▁sentence｜>"})
    self.error(
      client.post("/detokenize", json={"tokens": [320]}), 400, param="tokens"
    )

  def test_what_is_not_there(self):
    client = self.serve()
    self.assertIn("docs/serving.md", self.error(client.get("/v2"), 404))
    self.error(client.get("/v1/completions"), 405)
    self.error(client.post("/v1/completions/"), 404)

  @parameterized.parameters(
    (b"{", "application/json", 400),
    (b"{}", "text/plain", 415),
    (b"{}", "application/x-www-form-urlencoded", 415),
    (b'{"prompt": "a"}', "application/json; charset=utf-8", 200),
    (b'{"prompt": "' + b"a" * 900 + b'"}', "application/json", 413),
  )
  def test_bodies(self, body, kind, status):
    client = self.serve(max_body_bytes=500)
    response = client.post(
      "/v1/completions", content=body, headers={"Content-Type": kind}
    )
    self.assertEqual(response.status_code, status, response.text)

  def test_a_large_body_in_pieces(self):
    client = self.serve(max_body_bytes=500)
    response = client.post(
      "/v1/completions",
      content=(b" " * 100 for _ in range(9)),
      headers={"Content-Type": "application/json"},
    )
    self.error(response, 413)

  def test_prompts_that_are_too_long(self):
    client = self.serve(context=8)
    for prompt, message in (
      ("a" * 8, "prompt of 9 tokens: expected at most 7"),
      ("a" * 90, "prompt: 90 characters"),
    ):
      response = client.post("/v1/completions", json={"prompt": prompt})
      self.assertIn(
        message,
        self.error(
          response, 400, param="prompt", code="context_length_exceeded"
        ),
      )
    response = client.post(
      "/v1/chat/completions", json={"messages": _HELLO * 9}
    )
    self.error(response, 400, param="messages", code="context_length_exceeded")

  @parameterized.parameters(False, True)
  def test_a_refusal_and_a_failure_of_the_engine(self, stream):
    client = self.serve()
    body = {"prompt": [299], "stream": stream}
    self.error(client.post("/v1/completions", json=body), 400)
    with self.assertLogs(level="ERROR"):
      body = {"prompt": [298], "stream": stream}
      response = client.post("/v1/completions", json=body)
    self.error(response, 500, code="engine_failed")
    health = client.get("/health")
    self.assertEqual(health.status_code, 200)
    self.assertEqual(health.json()["failures"], 1)
    self.assertEqual(
      health.json()["last_failure"], "RuntimeError: 298 broke it"
    )

  def test_a_failure_in_the_middle_of_a_stream(self):
    client = self.serve()
    take, self.engine._advance = self.engine._advance, None

    def advance(number):
      update = take(number)
      self.engine.broken = RuntimeError("lost")
      return update

    self.engine._advance = advance
    body = {"prompt": "a", "stream": True}
    with self.assertLogs(level="ERROR"):
      text = client.post("/v1/completions", json=body).text
    first, last = (json.loads(e[6:]) for e in text.strip().split("\n\n"))
    self.assertEqual(first["choices"][0]["text"], "sp")
    self.assertEqual(last["error"]["code"], "engine_failed")

  def test_time_limit(self):
    client = self.serve(request_seconds=0.05)
    self.engine.gate.clear()
    response = client.post("/v1/completions", json={"prompt": "a"})
    self.assertIn("0.05 s", self.error(response, 504, code="timeout"))
    self.engine.gate.set()

  def test_too_much_at_once(self):
    client = self.serve(max_sequences=4)
    body = {"prompt": "a", "n": 5}
    self.error(client.post("/v1/completions", json=body), 400)

  def test_names_and_keys(self):
    client = self.serve(api_key="secret")
    self.error(client.get("/v1/models"), 401, code="invalid_api_key")
    for wrong in ("Bearer other", "Basic secret", "secret", "Bearer sécret"):
      response = client.get(
        "/v1/models", headers={"Authorization": wrong.encode()}
      )
      self.error(response, 401, code="invalid_api_key")
    right = {"Authorization": "Bearer secret"}
    self.assertEqual(client.get("/v1/models", headers=right).status_code, 200)
    self.assertEqual(client.get("/health").status_code, 200)
    self.error(client.get("/metrics"), 401, code="invalid_api_key")
    # A web page that calls this machine by a name of its own.
    stranger = {"Host": "evil.example:8000", **right}
    self.error(client.get("/v1/models", headers=stranger), 421)
    for name in ("localhost:1", "[::1]:1", "127.0.0.1"):
      response = client.get("/v1/models", headers={"Host": name, **right})
      self.assertEqual(response.status_code, 200)

  def test_draining(self):
    client = self.serve()
    self.service.drain()
    response = client.post("/v1/completions", json={"prompt": "a"})
    self.error(response, 503, code="stopping")
    self.assertIn("Retry-After", response.headers)
    self.assertEqual(client.get("/health").status_code, 503)
    self.assertEqual(client.get("/health").json()["status"], "stopping")

  def test_metrics(self):
    client = self.serve()
    client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 5})
    client.post("/v1/completions", json={"prompt": "ab", "max_tokens": -1})
    client.get("/a/path/of/ones/own")
    response = client.get("/metrics")
    self.assertStartsWith(response.headers["content-type"], "text/plain")
    samples = dict(
      line.rsplit(" ", 1)
      for line in response.text.splitlines()
      if not line.startswith("#")
    )
    route = 'route="/v1/completions"'
    for name, value in {
      f'dsx_requests_total{{{route},status="200"}}': 1,
      f'dsx_requests_total{{{route},status="400"}}': 1,
      'dsx_requests_total{route="other",status="404"}': 1,
      "dsx_prompt_tokens_total": 3,
      "dsx_generated_tokens_total": 5,
      f"dsx_request_seconds_count{{{route}}}": 2,
      "dsx_first_token_seconds_count": 1,
      "dsx_token_seconds_count": 1,
      "dsx_up": 1,
      "dsx_running": 0,
      "dsx_waiting": 0,
      "dsx_cache_tokens": 0,
      "dsx_cache_capacity_tokens": 1000,
      "dsx_acceptance_rate": 0.5,
      "dsx_engine_failures_total": 0,
      "dsx_disconnected_total": 0,
    }.items():
      self.assertEqual(float(samples[name]), value, name)


if __name__ == "__main__":
  absltest.main()
