"""The relay: it passes on what is said, and one kind of end."""

import socket

from absl.testing import absltest

from dsx.parallel import relay

_LIMIT = 30


class RelayTest(absltest.TestCase):
  def _pair(self):
    """A relay, and the two ends of a connection through it."""
    listener = socket.create_server(("127.0.0.1", 0))
    self.addCleanup(listener.close)
    relayed = relay.Relay(*listener.getsockname())
    near = self._connect(relayed)
    far, _ = listener.accept()
    self.addCleanup(far.close)
    far.settimeout(_LIMIT)
    return relayed, near, far

  def _connect(self, relayed: relay.Relay) -> socket.socket:
    host, port = relayed.address.split(":")
    near = socket.create_connection((host, int(port)), timeout=_LIMIT)
    self.addCleanup(near.close)
    return near

  def _receive(self, stream: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (piece := stream.recv(size)):
      found += piece
    return found

  def test_passes_on_both_ways(self):
    _, near, far = self._pair()
    large = bytes(range(256)) * 4096
    near.sendall(b"question")
    self.assertEqual(self._receive(far, 8), b"question")
    far.sendall(large)
    self.assertEqual(self._receive(near, len(large)), large)

  def test_an_end_is_passed_on_until_all_have_joined(self):
    _, near, far = self._pair()
    far.close()
    self.assertEqual(near.recv(1), b"")

  def test_afterwards_the_near_end_stays_open(self):
    relayed, near, far = self._pair()
    relayed.joined()
    far.close()
    near.sendall(b"x" * 2**22)  # more than the buffers in between hold
    near.settimeout(0.1)
    with self.assertRaises(TimeoutError):
      near.recv(1)

  def test_the_near_end_is_the_one_to_go(self):
    relayed, near, far = self._pair()
    relayed.joined()
    near.close()
    self.assertEqual(far.recv(1), b"")

  def test_a_coordinator_that_is_not_there_yet(self):
    with socket.create_server(("127.0.0.1", 0)) as listener:
      address = listener.getsockname()
    relayed = relay.Relay(*address)
    self.assertEqual(self._connect(relayed).recv(1), b"")
    with socket.create_server(address) as listener:
      near = self._connect(relayed)
      far, _ = listener.accept()
      near.sendall(b"again")
      self.assertEqual(self._receive(far, 5), b"again")
      far.close()


if __name__ == "__main__":
  absltest.main()
