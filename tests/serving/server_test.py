"""A port is taken before anything else, by one server."""

import contextlib
import os
import signal
import socket
import threading
import urllib.error
import urllib.request

from absl.testing import absltest
from absl.testing import parameterized

from dsx.serving import server
from dsx.serving import settings
from tests.serving import fake_engine


class BindTest(parameterized.TestCase):
  def test_nobody_can_connect_yet(self):
    with server.bind(settings.Serving(port=0)) as taken:
      with self.assertRaises(ConnectionRefusedError):
        socket.create_connection(taken.getsockname(), 5)

  def test_in_use(self):
    with socket.create_server(("127.0.0.1", 0)) as listening:
      port = listening.getsockname()[1]
      with self.assertRaisesRegex(
        ValueError, f"port={port} on 127.0.0.1: Address already in use; "
      ):
        server.bind(settings.Serving(port=port))

  @parameterized.parameters("192.0.2.1", "no such host")
  def test_not_an_address_of_this_machine(self, host):
    with self.assertRaisesRegex(ValueError, f"port=0 on {host}: .*--host=127"):
      server.bind(settings.Serving(host=host, port=0))


class RunTest(absltest.TestCase):
  def test_two_that_took_the_same_port(self):
    first = server.bind(settings.Serving(port=0))
    serving = settings.Serving(port=first.getsockname()[1], model_name="m")
    # Both were bound while neither listened.
    second = server.bind(serving)
    with contextlib.closing(first):
      first.listen()
      with self.assertRaisesRegex(ValueError, "Address already in use"):
        self.run_server(serving, second)

  def run_server(self, serving, taken):
    build = fake_engine.FakeEngine
    return server.run(serving, taken, build, fake_engine.VOCABULARY)

  def test_an_engine_that_cannot_be_made(self):
    serving = settings.Serving(port=0, model_name="m")

    def build():
      raise ValueError("slots=9: expected fewer")

    with self.assertRaisesRegex(ValueError, "slots=9"):
      server.run(serving, server.bind(serving), build, fake_engine.VOCABULARY)

  def test_signals_are_given_back(self):
    taken = server.bind(settings.Serving(port=0))
    serving = settings.Serving(host="0.0.0.0", model_name="m")
    address = f"http://127.0.0.1:{taken.getsockname()[1]}/health"

    def stop():
      while True:
        try:
          urllib.request.urlopen(address, timeout=30).close()
        except urllib.error.URLError:
          continue  # it does not listen yet
        os.kill(os.getpid(), signal.SIGTERM)
        return

    before = signal.getsignal(signal.SIGTERM)
    stopping = threading.Thread(target=stop)
    stopping.start()
    with self.assertLogs(level="WARNING") as logs:
      self.assertTrue(self.run_server(serving, taken))
    stopping.join()
    self.assertIs(signal.getsignal(signal.SIGTERM), before)
    self.assertIn("anybody may ask", logs.output[0])


if __name__ == "__main__":
  absltest.main()
