"""The thread that owns the engine, from the event loop's side."""

import asyncio
import contextlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.inference import request as request_lib
from dsx.inference import sampling
from dsx.serving import mailbox as mailbox_lib
from dsx.serving import refusal
from dsx.serving import worker as worker_lib
from tests.serving import fake_engine


def _request(*prompt, tokens=4):
  how = sampling.Sampling(max_new_tokens=tokens)
  return request_lib.Request(prompt=prompt, sampling=how)


async def _answer(mailbox):
  """All updates of a mailbox: by key, the tokens and the finish."""
  said = {}
  while mailbox.open:
    key, update = await mailbox.get()
    tokens, _ = said.get(key, ([], None))
    said[key] = tokens + [d.token for d in update.drawn], update.finish
  return said


class WorkerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.engines = []
    self.unbuildable = None
    self.worker = worker_lib.Worker(self.build)

  def tearDown(self):
    for engine in self.engines:
      engine.gate.set()
    self.assertTrue(self.worker.stop(30))
    super().tearDown()

  def build(self):
    if self.unbuildable is not None:
      raise self.unbuildable
    self.engines.append(fake_engine.FakeEngine([1, 2, 3]))
    return self.engines[-1]

  def test_answers_side_by_side(self):
    self.worker.start()

    async def ask():
      mailbox = self.worker.open()
      for key in range(9):
        mailbox.submit(key, _request(7, tokens=key + 1))
      return await _answer(mailbox)

    said = asyncio.run(ask())
    for key in range(9):
      self.assertEqual(
        said[key], ([1, 2, 3, 1, 2, 3, 1, 2, 3][: key + 1], "length")
      )
    health = self.worker.health
    self.assertTrue(health.alive and health.engine)
    self.assertEqual(
      (health.running, health.waiting, health.failures), (0,) * 3
    )

  def test_cancelled(self):
    self.worker.start()
    engine = self.engines[0]
    engine.gate.clear()

    async def ask():
      gone, mailbox = self.worker.open(), self.worker.open()
      for key in range(3):
        gone.submit(key, _request(7, tokens=50))
      gone.close()
      self.assertFalse(gone.open)
      mailbox.submit(0, _request(8))
      engine.gate.set()
      return await _answer(mailbox)

    self.assertEqual(asyncio.run(ask()), {0: ([1, 2, 3, 1], "length")})
    self.assertLen(engine.cancelled, 3)
    self.assertFalse(engine.busy)

  @parameterized.parameters(False, True)
  def test_whoever_hears_the_last_finds_nothing_running(self, broken):
    self.worker.start()
    if broken:
      self.engines[0].broken = RuntimeError("out of memory")
    running = []
    deliver = mailbox_lib.Mailbox.deliver

    def at_delivery(mailbox, news):
      running.append(self.worker.health.running)
      deliver(mailbox, news)

    async def ask():
      mailbox = self.worker.open()
      mailbox.submit(0, _request(7))
      while mailbox.open:
        with contextlib.suppress(refusal.Refusal):
          await mailbox.get()

    with mock.patch.object(mailbox_lib.Mailbox, "deliver", at_delivery):
      asyncio.run(ask())
    # Two steps of two tokens, or one that fails before any other.
    self.assertEqual(running, [0] if broken else [1, 0])

  def test_a_refused_request_is_the_clients_fault(self):
    self.worker.start()

    async def ask():
      mailbox = self.worker.open()
      mailbox.submit(0, _request(299))
      await mailbox.get()

    with self.assertRaises(refusal.Refusal) as caught:
      asyncio.run(ask())
    self.assertEqual(caught.exception.status, 400)
    self.assertIn("id 299", str(caught.exception))
    self.assertEqual(self.worker.health.failures, 0)

  def test_a_failing_step_fails_what_is_in_flight_and_no_more(self):
    self.worker.start()
    first = self.engines[0]
    first.gate.clear()
    first.broken = RuntimeError("out of memory\nand a long story")

    async def ask():
      mailbox, other = self.worker.open(), self.worker.open()
      mailbox.submit(0, _request(7))
      other.submit(5, _request(7))
      first.gate.set()
      for box in (mailbox, other):
        with self.assertRaises(refusal.Refusal) as caught:
          await box.get()
        self.assertEqual(caught.exception.status, 500)
        self.assertIn("RuntimeError: out of memory)", str(caught.exception))
        self.assertFalse(box.open)
      again = self.worker.open()
      again.submit(0, _request(7))
      return await _answer(again)

    self.assertEqual(asyncio.run(ask()), {0: ([1, 2, 3, 1], "length")})
    self.assertLen(self.engines, 2)
    health = self.worker.health
    self.assertTrue(health.engine)
    self.assertEqual(health.failures, 1)
    self.assertEqual(health.last_failure, "RuntimeError: out of memory")

  def test_a_failing_submit_keeps_the_orders_behind_it(self):
    self.worker.start()
    self.engines[0].gate.clear()

    async def ask():
      mailbox, other = self.worker.open(), self.worker.open()
      # Both are waiting when the thread comes back from its step.
      busy = self.worker.open()
      busy.submit(0, _request(7))
      mailbox.submit(0, _request(298))
      other.submit(0, _request(7))
      self.engines[0].gate.set()
      with self.assertRaises(refusal.Refusal) as caught:
        await mailbox.get()
      self.assertEqual(caught.exception.status, 500)
      return await _answer(other)

    said = asyncio.run(ask())
    self.assertEqual(said, {0: ([1, 2, 3, 1], "length")})

  def test_without_an_engine_the_next_request_makes_one(self):
    self.worker.start()
    self.unbuildable = MemoryError("no room")
    self.engines[0].broken = ValueError("a bug")

    async def ask(status):
      mailbox = self.worker.open()
      mailbox.submit(0, _request(7))
      if status is None:
        return await _answer(mailbox)
      with self.assertRaises(refusal.Refusal) as caught:
        await mailbox.get()
      self.assertEqual(caught.exception.status, status)
      return caught.exception

    asyncio.run(ask(500))
    refused = asyncio.run(ask(503))
    self.assertIn("MemoryError: no room", str(refused))
    self.assertEqual(refused.headers, {"Retry-After": "10"})
    self.assertFalse(self.worker.health.engine)
    self.assertEqual(self.worker.health.running, 0)
    self.unbuildable = None
    self.assertEqual(asyncio.run(ask(None)), {0: ([1, 2, 3, 1], "length")})

  def test_what_cannot_start_says_so(self):
    self.unbuildable = ValueError("slots=0: expected more")
    with self.assertRaisesRegex(ValueError, "slots=0"):
      self.worker.start()
    self.assertFalse(self.worker.health.engine)

  def test_a_loop_that_has_ended_harms_nobody(self):
    self.worker.start()
    self.engines[0].gate.clear()

    async def leave():
      self.worker.open().submit(0, _request(7))

    asyncio.run(leave())
    self.engines[0].gate.set()

    async def ask():
      mailbox = self.worker.open()
      mailbox.submit(0, _request(7))
      return await _answer(mailbox)

    self.assertEqual(asyncio.run(ask()), {0: ([1, 2, 3, 1], "length")})


if __name__ == "__main__":
  absltest.main()
