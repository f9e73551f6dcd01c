"""`python -m experiments.serve` as its clients meet it.

The official client and lm-eval's talk to a process that serves a random model;
what they are told is compared with the model's own forward pass.
"""

import asyncio
import concurrent.futures
import functools
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import tempfile
import urllib.error
import urllib.parse

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import openai

from dsx.inference import decoding as decoding_lib
from dsx.inference import engine as engine_lib
from dsx.inference import request as request_lib
from dsx.inference import sampling
from dsx.training import pretrained
from tests.serving import server_process

# lm-eval looks for nothing outside of this machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

_TOLERANCE = 1e-4
_state = {}


def setUpModule():
  folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
  _state["workdir"] = server_process.checkpoint(folder)
  _state["server"] = server_process.Server(_state["workdir"], "--drafts=1")


def tearDownModule():
  code, output, errors = _state["server"].stop()
  assert code == 0, errors
  assert output == "", output
  assert "Traceback" not in errors, errors
  assert errors.endswith("stopped\n"), errors


@functools.cache
def _model():
  """What was found, its variables, and a forward pass in this process."""
  found = pretrained.find(_state["workdir"])
  return found, found.read(layout="stacked"), jax.jit(found.model.apply)


def _logprobs(tokens) -> np.ndarray:
  """Log-probabilities [L, V] that the whole model gives."""
  _, variables, apply = _model()
  # Causality hides what comes after; one shape is compiled for all.
  padded = np.zeros((1, server_process.CONTEXT), np.int32)
  padded[0, : len(tokens)] = tokens
  logits, _ = apply(variables, padded)
  return np.asarray(jax.nn.log_softmax(logits[0, : len(tokens)]))


def _greedy(prompt: list[int], count: int) -> list[int]:
  """The best tokens, each from a forward pass over everything before it."""
  tokens = list(prompt)
  for _ in range(count):
    tokens.append(int(_logprobs(tokens)[-1].argmax()))
  return tokens[len(prompt) :]


def _encode(text: str) -> list[int]:
  vocabulary = _model()[0].vocabulary
  return [vocabulary.special["bos"], *vocabulary.encode(text)]


class ServeTestCase(parameterized.TestCase):
  @property
  def server(self) -> server_process.Server:
    return _state["server"]

  def client(self, kind=openai.OpenAI, **more):
    base = f"{self.server.address}/v1"
    return kind(base_url=base, api_key="none", max_retries=0, **more)


class OpenAiClientTest(ServeTestCase):
  def test_models(self):
    (model,) = self.client().models.list().data
    self.assertEqual(model.id, "toy")
    self.assertIn("model toy", self.server.line)

  def test_greedy_completions(self):
    prompts = ["def spam(", "a", "class Café:\n  pass\n"]
    said = self.client().completions.create(
      model="toy",
      prompt=prompts,
      max_tokens=12,
      temperature=0,
      logprobs=2,
      extra_body={"ignore_eos": True},
    )
    vocabulary = _model()[0].vocabulary
    for choice, prompt in zip(said.choices, prompts, strict=True):
      expected = _greedy(_encode(prompt), 12)
      self.assertEqual(choice.text, vocabulary.decode(expected))
      self.assertEqual(choice.finish_reason, "length")
      of_model = _logprobs(_encode(prompt) + expected)[-13:-1]
      np.testing.assert_allclose(
        choice.logprobs.token_logprobs, of_model.max(-1), atol=_TOLERANCE
      )
      for top, row in zip(choice.logprobs.top_logprobs, of_model, strict=True):
        best = np.sort(row)[:-3:-1]
        np.testing.assert_allclose(
          sorted(top.values(), reverse=True), best, atol=_TOLERANCE
        )
    self.assertEqual(said.usage.completion_tokens, 36)

  def test_seeds_and_streams(self):
    client = self.client()
    asked = {
      "model": "toy",
      "prompt": "def ",
      "max_tokens": 40,
      "seed": 11,
      "n": 3,
      "temperature": 0.9,
      "top_p": 0.95,
      "extra_body": {"top_k": 50, "ignore_eos": True},
    }
    whole = client.completions.create(**asked)
    texts = [choice.text for choice in whole.choices]
    self.assertLen(set(texts), 3)
    streamed = ["", "", ""]
    pieces = 0
    stream = client.completions.create(
      **asked, stream=True, stream_options={"include_usage": True}
    )
    for event in stream:
      for choice in event.choices:
        streamed[choice.index] += choice.text
        pieces += 1
    self.assertEqual(streamed, texts)
    self.assertGreater(pieces, 3)
    self.assertEqual(event.usage, whole.usage)
    self.assertEqual(event.usage.completion_tokens, 120)

  def test_the_engine_says_the_same(self):
    found, *_ = _model()
    engine = engine_lib.Engine(
      found.config,
      found.read(layout="layers", mtp=True),
      dtypes=found.dtypes,
      decoding=decoding_lib.Decoding(context=server_process.CONTEXT, drafts=1),
      vocab_size=found.vocabulary.size,
    )
    how = sampling.Sampling(max_new_tokens=20, temperature=0.8, seed=5)
    prompt = tuple(_encode("def "))
    engine.submit(request_lib.Request(prompt=prompt, sampling=how))
    drawn = []
    while engine.busy:
      for update in engine.step():
        drawn += [d.token for d in update.drawn]
    said = self.client().completions.create(
      model="toy",
      prompt=list(prompt),
      max_tokens=20,
      temperature=0.8,
      seed=5,
      extra_body={"ignore_eos": True, "skip_special_tokens": False},
    )
    expected = found.vocabulary.decode(drawn, specials=True)
    self.assertEqual(said.choices[0].text, expected)

  def test_stop(self):
    client = self.client()
    asked = {"model": "toy", "prompt": "def ", "max_tokens": 30, "seed": 3}
    text = client.completions.create(**asked).choices[0].text
    stop = text[4:6]
    (choice,) = client.completions.create(**asked, stop=[stop]).choices
    self.assertEqual(choice.text, text[: text.index(stop)])
    self.assertEqual(choice.finish_reason, "stop")

  def test_chat(self):
    client = self.client()
    asked = {
      "model": "toy",
      "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
      ],
      "max_completion_tokens": 30,
      "seed": 4,
      "logprobs": True,
      "top_logprobs": 2,
    }
    said = client.chat.completions.create(**asked)
    message = said.choices[0].message
    tokens = said.usage.completion_tokens
    details = said.usage.completion_tokens_details
    self.assertLessEqual(details.reasoning_tokens, tokens)
    logprobs = said.choices[0].logprobs
    entries = logprobs.reasoning_content + logprobs.model_dump()["content"]
    self.assertLen(entries, tokens)
    self.assertTrue(all(len(e["top_logprobs"]) == 2 for e in entries))
    content = reasoning = ""
    with client.chat.completions.create(**asked, stream=True) as stream:
      for event in stream:
        delta = event.choices[0].delta
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning_content", None) or ""
    self.assertEqual(content, message.content)
    self.assertEqual(reasoning, message.reasoning_content or "")
    self.assertNotEmpty(content + reasoning)

  @parameterized.parameters(
    ({"model": "gpt"}, openai.NotFoundError, "model"),
    ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
    ({"prompt": "a" * 127}, openai.BadRequestError, "prompt"),
    ({"prompt": [320]}, openai.BadRequestError, "prompt"),
    ({"suffix": "x"}, openai.BadRequestError, "suffix"),
    ({"stream": True, "n": 0}, openai.BadRequestError, "n"),
  )
  def test_errors(self, fields, kind, param):
    asked = {"model": "toy", "prompt": "a"} | fields
    with self.assertRaises(kind) as caught:
      self.client().completions.create(**asked)
    self.assertEqual(caught.exception.param, param)


class LmEvalTest(ServeTestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    from lm_eval.api import instance
    from lm_eval.models import openai_completions

    cls.instance = instance.Instance
    # It finds the server's own tokenizer by itself.
    cls.lm = openai_completions.LocalCompletionsAPI(
      base_url=f"{_state['server'].address}/v1/completions",
      model="toy",
      max_length=server_process.CONTEXT,
      num_concurrent=4,
    )

  def instances(self, kind, *arguments):
    return [self.instance(kind, {}, one, i) for i, one in enumerate(arguments)]

  def score(self, context: list[int], continuation: list[int]):
    logprobs = _logprobs(context + continuation)[len(context) - 1 : -1]
    rows = np.arange(len(continuation))
    greedy = (logprobs.argmax(-1) == continuation).all()
    return logprobs[rows, continuation].sum(), bool(greedy)

  def test_it_uses_the_servers_tokenizer(self):
    self.assertEqual(self.lm.tokenizer_backend, "remote")
    special = _model()[0].vocabulary.special
    self.assertEqual(self.lm.prefix_token_id, special["bos"])
    self.assertEqual(self.lm.eot_token_id, special["eos"])
    self.assertEqual(self.lm.tok_encode("ab"), [97, 98])

  def test_loglikelihood(self):
    vocabulary = _model()[0].vocabulary
    # lm-eval itself moves spaces from the end of a context to what follows.
    pairs = [
      ("def", " spam"),
      ("", "eggs"),
      ("a", " longer é text"),
      ("x", "y"),
    ]
    scored = self.lm.loglikelihood(self.instances("loglikelihood", *pairs))
    for (context, continuation), (logprob, greedy) in zip(
      pairs, scored, strict=True
    ):
      before = vocabulary.encode(context) or [vocabulary.special["bos"]]
      expected = self.score(before, vocabulary.encode(continuation))
      self.assertAlmostEqual(logprob, expected[0], delta=_TOLERANCE * 20)
      self.assertEqual(greedy, expected[1])
    # What the model itself would say.
    context = vocabulary.encode("def ")
    best = _greedy(context, 3)
    ((logprob, greedy),) = self.lm._loglikelihood_tokens(
      [(None, context, best)]
    )
    expected = self.score(context, best)
    self.assertAlmostEqual(logprob, expected[0], delta=_TOLERANCE * 20)
    self.assertTrue(greedy and expected[1])

  def test_chats(self):
    from lm_eval.models import api_models
    from lm_eval.models import openai_completions

    lm = openai_completions.LocalChatCompletion(
      base_url=f"{self.server.address}/v1/chat/completions", model="toy"
    )
    messages = [{"role": "user", "content": "hi"}]
    how = {"until": [], "max_gen_toks": 20, "temperature": 0}
    asked = api_models.JsonChatStr(json.dumps(messages))
    (said,) = lm.generate_until(self.instances("generate_until", (asked, how)))
    (choice,) = self.server.post(
      "/v1/chat/completions", messages=messages, max_tokens=20, temperature=0
    )["choices"]
    self.assertEqual(said, choice["message"]["content"])

  def test_loglikelihood_rolling(self):
    text = "def spam(eggs):\n  return eggs\n"
    (scored,) = self.lm.loglikelihood_rolling(
      self.instances("loglikelihood_rolling", (text,))
    )
    vocabulary = _model()[0].vocabulary
    bos = [vocabulary.special["bos"]]
    expected, _ = self.score(bos, vocabulary.encode(text))
    self.assertAlmostEqual(scored, expected, delta=_TOLERANCE * 40)

  def test_generate_until(self):
    vocabulary = _model()[0].vocabulary
    contexts = ["def ", "class Café", "z"]
    texts = []
    for context in contexts:
      tokens = _greedy(vocabulary.encode(context), 10)
      if vocabulary.special["eos"] in tokens:
        tokens = tokens[: tokens.index(vocabulary.special["eos"])]
      texts.append(vocabulary.decode(tokens))
    how = {"until": ["never said"], "max_gen_toks": 10, "temperature": 0}
    said = self.lm.generate_until(
      self.instances("generate_until", *((c, how) for c in contexts))
    )
    self.assertEqual(said, texts)
    # Ended by a string.
    how = how | {"until": [texts[0][3]]}
    said = self.lm.generate_until(
      self.instances("generate_until", (contexts[0], how))
    )
    self.assertEqual(said, [texts[0].partition(texts[0][3])[0]])


_MALFORMED = (
  b"",
  b"{",
  b"null",
  b'{"prompt": NaN}',
  b'{"prompt": "\\ud800"}',
  b'{"prompt": "a", "max_tokens": 1e999}',
  b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
  b'{"prompt": "a", "seed": -1e400}',
  b"[" * 100_000,
  b'{"prompt":' * 50_000,
  b"\xff\xfe\x00",
  b'{"prompt": [1e308, 2]}',
  b'{"prompt": [[[1]]]}',
  b'{"prompt": "a", "stop": [[]]}',
  b'{"prompt": "a", "logit_bias": {"1": 5}}',
  b'{"prompt": {"a": "b"}}',
  b'{"\\ud800": 1}',
)


class HostileTest(ServeTestCase):
  """The worst comes; then a normal request is answered as before."""

  def setUp(self):
    super().setUp()
    self.before = self.answers()

  def tearDown(self):
    self.assertEqual(self.answers(), self.before)
    # Cut connections may still be on their way out.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      metrics = pool.submit(self.idle).result(60)
    self.assertEqual(metrics["dsx_engine_failures_total"], 0)
    self.assertEqual(metrics["dsx_up"], 1)
    self.assertEqual(metrics["dsx_cache_tokens"], 0)
    super().tearDown()

  def idle(self):
    while True:
      metrics = self.server.metrics()
      if metrics["dsx_running"] == metrics["dsx_waiting"] == 0:
        return metrics

  def answers(self):
    said = self.server.post(
      "/v1/completions", prompt="def ", max_tokens=10, seed=1, logprobs=1
    )
    return said["choices"]

  def connect(self, head: bytes) -> socket.socket:
    address = urllib.parse.urlsplit(self.server.address)
    open_ = socket.create_connection((address.hostname, address.port), 60)
    open_.sendall(head)
    return open_

  def request(self, body: bytes, *, length: int | None = None) -> bytes:
    head = (
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
      "Content-Type: application/json\r\nConnection: close\r\n"
      f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body

  def test_two_hundred_at_once(self):
    async def ask(client, seed):
      said = await client.completions.create(
        model="toy", prompt="x" * seed, max_tokens=8 + seed, seed=seed
      )
      return said.choices[0].text

    async def crowd():
      async with self.client(openai.AsyncOpenAI, timeout=200) as client:
        seeds = [1 + i % 10 for i in range(200)]
        return await asyncio.gather(*(ask(client, seed) for seed in seeds))

    texts = asyncio.run(crowd())
    alone = [
      self.server.post(
        "/v1/completions", prompt="x" * s, max_tokens=8 + s, seed=s
      )["choices"][0]["text"]
      for s in range(1, 11)
    ]
    self.assertEqual(texts, alone * 20)
    metrics = self.server.metrics()
    answered = 'dsx_requests_total{route="/v1/completions",status="200"}'
    self.assertGreaterEqual(metrics[answered], 210)
    self.assertGreater(metrics["dsx_drafted_tokens_total"], 0)
    self.assertBetween(metrics["dsx_acceptance_rate"], 0, 1)

  def test_cut_connections(self):
    left = self.server.metrics()["dsx_disconnected_total"]
    body = {"prompt": "a", "max_tokens": 120, "ignore_eos": True, "n": 4}
    for i in range(24):
      body["stream"] = bool(i % 3)
      cut = self.connect(self.request(json.dumps(body).encode()))
      if i % 3 == 2:
        self.assertStartsWith(cut.recv(12), b"HTTP/1.1 200")
      if i % 2:  # with a reset instead of a farewell
        linger = struct.pack("ii", 1, 0)
        cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
      cut.close()
    for half in (b"POST /v1/comp", self.request(b'{"prompt"', length=99)):
      self.connect(half).close()
    metrics = self.idle()
    self.assertGreater(metrics["dsx_disconnected_total"], left)

  @parameterized.parameters(range(len(_MALFORMED)))
  def test_malformed_bodies(self, i):
    with self.connect(self.request(_MALFORMED[i])) as connection:
      answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    self.assertStartsWith(head, b"HTTP/1.1 400 ")
    error = json.loads(body)["error"]
    self.assertEqual(error["type"], "invalid_request_error")
    self.assertNotEmpty(error["message"])
    self.assertLess(len(error["message"]), 300)

  def test_a_body_too_large_is_told_so(self):
    with self.connect(self.request(b" " * 5_000_000)) as connection:
      answer = connection.makefile("rb").read()
    self.assertStartsWith(answer, b"HTTP/1.1 413 ")
    self.assertIn(b"at most 4194304 bytes", answer)

  @parameterized.parameters(
    b"GET /health\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: -5\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
  )
  def test_what_is_no_http(self, head):
    with self.connect(head) as connection:
      connection.shutdown(socket.SHUT_WR)
      try:
        answer = connection.makefile("rb").read()
      except ConnectionResetError:
        answer = b""
    self.assertIn(answer[:12], (b"", b"HTTP/1.1 400", b"HTTP/1.1 431"))


class ProcessTest(ServeTestCase):
  def call(self, *arguments):
    return subprocess.run(
      server_process.command(_state["workdir"], *arguments),
      cwd=server_process.ROOT,
      capture_output=True,
      text=True,
      check=False,
      timeout=200,
    )

  def test_sigterm_lets_answers_finish(self):
    server = server_process.Server(
      _state["workdir"], "--model_name=my model", "--api_key=secret"
    )
    self.addCleanup(server.stop)
    client = openai.OpenAI(
      base_url=f"{server.address}/v1", api_key="secret", max_retries=0
    )
    stream = client.completions.create(
      model="my model",
      prompt="a",
      max_tokens=100,
      stream=True,
      extra_body={"ignore_eos": True, "skip_special_tokens": False},
    )
    finishes = [next(stream).choices[0].finish_reason]
    with self.assertRaises(openai.AuthenticationError):
      openai.OpenAI(base_url=f"{server.address}/v1", api_key="x").models.list()
    server.signal(signal.SIGTERM)
    finishes += [event.choices[0].finish_reason for event in stream]
    self.assertEqual(finishes[-1], "length")
    code, output, errors = server.stop()
    self.assertEqual((code, output), (0, ""), errors)
    self.assertNotIn("Traceback", errors)

  def test_an_answer_that_takes_too_long_to_wait_for(self):
    server = server_process.Server(
      _state["workdir"], "--gin.Serving.grace_seconds=1.0"
    )
    self.addCleanup(server.stop)
    body = {"prompt": "a", "max_tokens": 120, "n": 100, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      answer = pool.submit(server.post, "/v1/completions", **body)
      while not server.metrics()["dsx_running"]:
        pass  # it is compiling by now
      code, _, errors = server.stop(signal.SIGINT)
      try:
        self.assertLen(answer.result()["choices"], 100)  # it was quick
      except urllib.error.HTTPError as error:
        self.assertEqual(error.code, 503)
        self.assertIn(b"the server is stopping", error.read())
    self.assertEqual(code, 0, errors)
    self.assertNotIn("Traceback", errors)

  def test_dry_run(self):
    done = self.call("--dry_run", "--drafts=1", "--slots=3")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn(f"step 4 of {_state['workdir']}", done.stdout)
    self.assertIn("slots=3", done.stdout)
    self.assertIn("max_requests=512", done.stdout)

  def test_errors_in_one_line(self):
    port = urllib.parse.urlsplit(self.server.address).port
    for arguments, message in (
      (
        (f"--port={port}",),
        f"port={port} on 127.0.0.1: Address already in use",
      ),
      (("--drafts=2",), "drafts=2: expected at most 1"),
      (
        ("--window=129",),
        "window=129: expected 2 to max_position_embeddings=128",
      ),
    ):
      done = self.call(*arguments)
      self.assertEqual(done.returncode, 1, done.stderr)
      self.assertEqual(done.stdout, "")
      self.assertLen(done.stderr.splitlines(), 1, done.stderr)
      self.assertIn(message, done.stderr)


if __name__ == "__main__":
  absltest.main()
