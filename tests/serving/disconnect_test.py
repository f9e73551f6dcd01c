"""Clients who leave, and more of them than there is room for."""

import asyncio
import json

from absl.testing import absltest
from absl.testing import parameterized

from dsx.serving import app as app_lib
from dsx.serving import settings
from dsx.serving import worker as worker_lib
from tests.serving import fake_engine


class Client:
  """One connection, spoken to as uvicorn would."""

  def __init__(self, application, path="/v1/completions", **body):
    """Sends a request."""
    self._body = json.dumps(body).encode()
    self._asked = 0
    self.left = asyncio.Event()
    self.pieces: asyncio.Queue = asyncio.Queue()
    self.status = None
    self.headers = {}
    scope = {
      "type": "http",
      "asgi": {"version": "3.0", "spec_version": "2.3"},
      "http_version": "1.1",
      "method": "POST",
      "scheme": "http",
      "path": path,
      "raw_path": path.encode(),
      "query_string": b"",
      "root_path": "",
      "headers": [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
      ],
    }
    self.task = asyncio.ensure_future(
      application(scope, self._receive, self._send)
    )

  async def _receive(self):
    self._asked += 1
    if self._asked == 1:
      return {"type": "http.request", "body": self._body, "more_body": False}
    await self.left.wait()
    return {"type": "http.disconnect"}

  async def _send(self, message):
    if message["type"] == "http.response.start":
      self.status = message["status"]
      self.headers = dict(message["headers"])
    else:
      self.pieces.put_nowait(message.get("body", b""))


class DisconnectTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.engine = fake_engine.FakeEngine(context=10**7)
    self.worker = worker_lib.Worker(lambda: self.engine)
    self.worker.start()
    self.addCleanup(self.worker.stop, 30)
    self.addCleanup(self.engine.gate.set)

  def application(self, **fields):
    serving = settings.Serving(model_name="fake", **fields)
    vocabulary = fake_engine.VOCABULARY
    self.service = app_lib.Service(self.worker, vocabulary, serving)
    return self.service.application()

  async def answers(self, application):
    """Whether a normal request is answered."""
    client = Client(application, prompt="a", max_tokens=4)
    await client.task
    said = json.loads(client.pieces.get_nowait())
    self.assertEqual(client.status, 200)
    self.assertEqual(said["choices"][0]["text"], "spam")

  @parameterized.parameters(False, True)
  def test_whoever_leaves_is_forgotten(self, stream):
    async def leave():
      application = self.application()
      client = Client(
        application, prompt="a", max_tokens=10**6, n=3, stream=stream
      )
      if stream:  # in the middle of it
        await client.pieces.get()
        self.assertEqual(client.status, 200)
      else:
        while not self.engine.seen:
          await asyncio.sleep(0)
      client.left.set()
      await client.task
      await self.answers(application)

    asyncio.run(leave())
    self.assertCountEqual(self.engine.cancelled, [1, 2, 3])
    self.assertFalse(self.engine.busy)
    self.assertEqual(self.worker.health.running, 0)
    self.assertIn(b"dsx_disconnected_total 1.0", self.service._telemetry.page())

  def test_a_body_that_does_not_come(self):
    async def wait():
      application = self.application(body_seconds=0.05)
      client = Client(application, prompt="a")
      client._asked = 1  # it has sent its head, and nothing else
      client.left.clear()
      await client.task
      self.assertEqual(client.status, 408)
      # And one who leaves instead.
      client = Client(application, prompt="a")
      client._asked = 1
      client.left.set()
      await client.task
      await self.answers(application)

    asyncio.run(wait())

  @parameterized.parameters(
    ({"max_requests": 2}, {}),
    ({"max_sequences": 4}, {"n": 2}),
  )
  def test_more_than_there_is_room_for(self, fields, body):
    async def crowd():
      application = self.application(**fields)
      self.engine.gate.clear()
      n = body.get("n", 1)
      inside = [Client(application, prompt="a", **body) for _ in range(2)]
      # The engine sees what the others wait for: both are inside.
      while self.worker.health.queued + len(self.engine.seen) < 2 * n:
        await asyncio.sleep(0)
      late = Client(application, prompt="a", **body)
      await late.task
      self.assertEqual(late.status, 429)
      self.assertEqual(late.headers[b"retry-after"], b"1")
      self.engine.gate.set()
      for client in inside:
        await client.task
        self.assertEqual(client.status, 200)
      await self.answers(application)

    asyncio.run(crowd())

  def test_a_stream_that_takes_too_long(self):
    async def wait():
      application = self.application(request_seconds=0.2)
      client = Client(application, prompt="a", max_tokens=10**6, stream=True)
      await client.pieces.get()
      self.engine.gate.clear()
      await client.task
      left = b""
      while not client.pieces.empty():
        left = client.pieces.get_nowait()
      error = json.loads(left.removeprefix(b"data: "))["error"]
      self.assertEqual(error["code"], "timeout")
      self.engine.gate.set()
      await self.answers(application)

    asyncio.run(wait())

  @parameterized.parameters(False, True)
  def test_the_end_of_the_servers_patience(self, stream):
    async def stop():
      application = self.application()
      client = Client(application, prompt="a", max_tokens=10**6, stream=stream)
      if stream:
        await client.pieces.get()
      else:
        while not self.engine.seen:
          await asyncio.sleep(0)
      client.task.cancel()  # as uvicorn does when its time is over
      await client.task
      while not client.pieces.empty():
        last = client.pieces.get_nowait()
      error = json.loads(last.removeprefix(b"data: "))["error"]
      self.assertEqual(error["code"], "stopping")
      self.assertEqual(client.status, 200 if stream else 503)
      await self.answers(application)

    asyncio.run(stop())
    self.assertFalse(self.engine.busy)


if __name__ == "__main__":
  absltest.main()
