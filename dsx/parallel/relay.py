"""A connection to JAX's coordinator that survives the coordinator.

JAX aborts a process the moment its connection to the coordinator breaks,
without a name, and nothing can catch that. So a process connects to a port of
its own, and this passes on what is said; when the coordinator is gone, the near
end stays open and silent, and `liveness` has the time to say who is lost.
"""

import contextlib
import socket
import threading

_PIECE = 2**16


class Relay:
  """Passes connections to a local port on to another address.

  Attributes:
    address: host:port to connect to instead.
    reached: whether the coordinator has ever been.
  """

  def __init__(self, host: str, port: int):
    """Starts listening; it does so as long as the process lives.

    Args:
      host: where the coordinator is.
      port: its port.
    """
    self._target = host, port
    self._joined = False
    self.reached = False
    self._listener = socket.create_server(("127.0.0.1", 0))
    self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
    threading.Thread(target=self._accept, name="relay", daemon=True).start()

  def joined(self) -> None:
    """From now on a break is not passed on: who connects has no more to try.

    Before, a coordinator that is not there yet has to be tried again.
    """
    self._joined = True

  def _accept(self) -> None:
    while True:
      near, _ = self._listener.accept()
      try:
        far = socket.create_connection(self._target, timeout=10)
      except OSError:
        if not self._joined:
          near.close()
        continue
      self.reached = True
      far.settimeout(None)
      for passing in (self._outwards, self._inwards):
        threading.Thread(
          target=passing, args=(near, far), name="relay", daemon=True
        ).start()

  def _outwards(self, near: socket.socket, far: socket.socket) -> None:
    with contextlib.suppress(OSError):
      while piece := near.recv(_PIECE):
        try:
          far.sendall(piece)
        except OSError:
          if not self._joined:
            break
    _end(near, far)

  def _inwards(self, near: socket.socket, far: socket.socket) -> None:
    with contextlib.suppress(OSError):
      while piece := far.recv(_PIECE):
        near.sendall(piece)
    if not self._joined:
      _end(near, far)


def _end(*streams: socket.socket) -> None:
  for stream in streams:
    with contextlib.suppress(OSError):
      stream.shutdown(socket.SHUT_RDWR)
