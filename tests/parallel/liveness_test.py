"""The watch over processes: every way to be lost, and everybody named."""

from concurrent import futures
import dataclasses
import json
import queue
import socket
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.parallel import lines
from dsx.parallel import liveness

_TOKEN = "what only processes of the run know"
# Nothing is lost by patience alone unless a test says so.
_PATIENT = liveness.Timing(
  beat_seconds=0.02,
  silence_seconds=60,
  hang_seconds=60,
  stall_seconds=60,
  join_seconds=60,
)
_LIMIT = 30


class WatchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.said = queue.Queue()

  def _watch(self, process, count, timing) -> liveness.Watch:
    return liveness.Watch(
      process,
      count,
      timing=timing,
      on_loss=lambda line: self.said.put((process, line)),
    )

  def _serve(self, count, **timing) -> liveness.Watch:
    """Process 0; the others find it at `self.address`."""
    timing = dataclasses.replace(_PATIENT, **timing)
    listener = socket.create_server(("127.0.0.1", 0))
    self.address = listener.getsockname()
    watch = self._watch(0, count, timing)
    watch.serve(listener, _TOKEN)
    self.addCleanup(watch.leave)
    return watch

  def _join(self, process, count, **timing) -> liveness.Watch:
    timing = dataclasses.replace(_PATIENT, **timing)
    watch = self._watch(process, count, timing)
    watch.join(socket.create_connection(self.address), _TOKEN, "host0 (pid 7)")
    self.addCleanup(watch.leave)
    return watch

  def _pretend(self, process, token=_TOKEN) -> lines.Connection:
    """A process that has joined and does nothing by itself."""
    connection = lines.Connection(socket.create_connection(self.address))
    connection.send({"token": token, "process": process, "host": "far (pid 3)"})
    self.addCleanup(connection.close)
    return connection

  def _lines(self, count) -> dict[int, str]:
    """What `count` processes said when they ended."""
    return dict(self.said.get(timeout=_LIMIT) for _ in range(count))

  def _greeted(self, connection: lines.Connection) -> None:
    """Waits until process 0 knows a process: it sends signs of life."""
    connection.stream.settimeout(_LIMIT)
    self.assertNotEmpty(connection.stream.recv(1))

  def _all_joined(self, watches) -> None:
    for watch in watches:
      self.assertTrue(watch.joined.wait(_LIMIT))

  def test_a_broken_connection_is_told_to_everybody(self):
    watches = [self._serve(4), self._join(1, 4), self._join(3, 4)]
    killed = self._pretend(2)
    self._all_joined(watches)
    killed.close()
    self.assertEqual(
      self._lines(3),
      {
        process: "process 2 on far (pid 3) is lost: its connection broke; "
        f"process {process} ends, at the start"
        for process in (0, 1, 3)
      },
    )

  def test_silence_is_a_loss(self):
    watches = [self._serve(3, silence_seconds=0.5), self._join(1, 3)]
    self._pretend(2)
    self._all_joined(watches)
    said = self._lines(2)
    for process in (0, 1):
      self.assertRegex(
        said[process],
        r"^process 2 on far \(pid 3\) is lost: nothing was heard of it for ",
      )

  def test_a_machine_that_slept_has_lost_nobody(self):
    clock, slept = time.monotonic, [0.0]
    self.enter_context(
      mock.patch.object(liveness.time, "monotonic", lambda: clock() + slept[0])
    )
    timing = {"silence_seconds": 5, "hang_seconds": 5, "stall_seconds": 5}
    watches = [self._serve(2, **timing), self._join(1, 2, **timing)]
    self._all_joined(watches)
    watches[0].arrived("step 1")  # waits for process 1
    time.sleep(0.2)
    slept[0] = 1000.0
    with self.assertRaises(queue.Empty):
      self.said.get(timeout=1)
    watches[1].leave()
    watches[0].leave()
    self.assertIsNone(watches[0].loss)
    self.assertIsNone(watches[1].loss)

  def test_a_lost_process_0_is_named_by_the_others(self):
    with socket.create_server(("127.0.0.1", 0)) as listener:
      self.address = listener.getsockname()
      watch = self._join(1, 3)
      watch.arrived("step 12")
      stream, _ = listener.accept()
      stream.close()
    self.assertEqual(
      self._lines(1),
      {
        1: "process 0 on host0 (pid 7) is lost: its connection broke; "
        "process 1 ends, at step 12"
      },
    )

  @parameterized.parameters(0, 1, 2)
  def test_who_fails_says_why(self, failing):
    watches = [self._serve(3), self._join(1, 3), self._join(2, 3)]
    self._all_joined(watches)
    watches[failing].failed("ValueError: a bad record")
    others = {0, 1, 2} - {failing}
    said = self._lines(2)
    self.assertEqual(said.keys(), others)
    for process in others:
      self.assertStartsWith(
        said[process],
        f"process {failing} on "
        + ("host0 (pid 7)" if failing == 0 and process else liveness.place())
        + " is lost: it failed: ValueError: a bad record; ",
      )
    self.assertIsNone(watches[failing].loss)

  def test_who_hangs_is_named_with_where_the_others_wait(self):
    watches = [self._serve(3, hang_seconds=0.3), self._join(1, 3)]
    watches.append(self._join(2, 3))
    self._all_joined(watches)
    for watch in watches:
      watch.arrived("step 4")
    for watch in watches[:2]:
      watch.arrived("step 5")
    for process, line in self._lines(3).items():
      self.assertRegex(
        line,
        rf"^process 2 on .* is lost: it hangs at step 4; process \d has "
        rf"waited for it at step 5 for \d+ s; process {process} ends, at step",
      )

  def test_a_collective_hangs_and_nobody_is_behind(self):
    watches = [self._serve(2, stall_seconds=0.3), self._join(1, 2)]
    self._all_joined(watches)
    for watch in watches:
      watch.arrived("step 9")
    for process, line in self._lines(2).items():
      self.assertEqual(
        line,
        "the run is lost: nobody came past step 9 for 0 s; process "
        f"{process} ends, at step 9",
      )

  def test_who_never_joins_is_named(self):
    self._serve(3, join_seconds=0.3)
    self._greeted(self._pretend(1))
    self.assertEqual(
      self._lines(1),
      {
        0: "process 2 on ? is lost: it did not join within 0 s; process 0 "
        "ends, at the start"
      },
    )

  def test_all_leave_in_peace(self):
    watches = [self._serve(3), self._join(1, 3), self._join(2, 3)]
    self._all_joined(watches)
    for watch in reversed(watches):
      watch.leave()
    for watch in watches:
      watch.wait_for_loss(_LIMIT)
      self.assertIsNone(watch.loss)
    self.assertTrue(self.said.empty())

  def test_who_has_left_is_not_waited_for(self):
    self._serve(3, silence_seconds=0.5)
    self._join(1, 3).leave()
    self._greeted(self._pretend(2))
    # Process 1 has been silent for longer.
    self.assertStartsWith(self._lines(1)[0], "process 2 on far (pid 3)")

  @parameterized.parameters(0, 1, 2)
  def test_all_stop_at_one_place(self, asked):
    watches = [self._serve(3), self._join(1, 3), self._join(2, 3)]
    self._all_joined(watches)

    def walk(watch):
      places = 1
      while not (why := watch.agreement.passed()):
        places += 1
      return places, why

    with futures.ThreadPoolExecutor(3) as pool:
      walks = [pool.submit(walk, watch) for watch in watches]
      for _ in range(3):
        watches[asked].ask_to_stop("a signal")
      (said,) = {each.result(_LIMIT) for each in walks}
    self.assertEqual(said[1], "a signal")

  def test_a_word_that_was_lost_is_said_again(self):
    watch = self._serve(2)
    other = self._pretend(1)
    self._all_joined([watch])
    watch.ask_to_stop("a signal")

    def hear(word):
      other.stream.setblocking(True)
      other.stream.settimeout(_LIMIT)
      with other.stream.makefile("rb") as said:
        while json.loads(said.readline()).get("stop") != word:
          pass

    for _ in range(2):
      hear({"hold": "a signal"})
    other.send({"at": 0, "where": "far", "stop": {"passed": 4}})
    for _ in range(2):
      hear({"place": 5, "why": "a signal"})

  @parameterized.named_parameters(
    ("wrong_token", b'{"token": "guessed", "process": 1, "host": "evil"}\n'),
    ("no_ascii", '{"token": "é", "process": 1}\n'.encode()),
    ("no_number", b'{"token": "%s", "process": [1]}\n' % _TOKEN.encode()),
    ("process_0", b'{"token": "%s", "process": 0}\n' % _TOKEN.encode()),
    ("no_json", b"GET / HTTP/1.1\r\n\r\n"),
    ("no_object", b"[1]\n"),
    ("no_end", b"x" * 2**17),
  )
  def test_strangers_are_turned_away(self, greeting):
    self._serve(2)
    with socket.create_connection(self.address, timeout=_LIMIT) as stranger:
      try:
        stranger.sendall(greeting)
        answer = stranger.recv(1)
      except ConnectionError:
        answer = b""
    self.assertEqual(answer, b"")
    real = self._pretend(1)
    self._greeted(real)
    real.close()
    self.assertStartsWith(self._lines(1)[0], "process 1 on far (pid 3) is lost")


if __name__ == "__main__":
  absltest.main()
