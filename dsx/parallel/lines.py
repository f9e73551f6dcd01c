"""Messages between processes: a JSON object a line, over a socket."""

import json
import socket

_LONGEST = 2**16  # bytes of a message, and of what may wait to be sent
_PIECE = 2**12


class Connection:
  """A socket that is never waited for.

  Attributes:
    stream: the socket.
    closed: whether the other end, or an error, has closed it.
  """

  def __init__(self, stream: socket.socket):
    """Takes over a connected socket."""
    stream.setblocking(False)
    self.stream = stream
    self.closed = False
    self._read = b""
    self._unsent = b""

  def send(self, message: dict) -> None:
    """Sends what the other end takes; the rest goes with the next message.

    Messages for somebody who has not read for long are left out.
    """
    if len(self._unsent) < _LONGEST:
      self._unsent += json.dumps(message).encode() + b"\n"
    try:
      sent = self.stream.send(self._unsent)
      self._unsent = self._unsent[sent:]
    except BlockingIOError:
      pass
    except OSError:
      self.closed = True

  def receive(self) -> list[dict]:
    """What has come, without waiting; sets `closed` when no more will."""
    try:
      while piece := self.stream.recv(_PIECE):
        self._read += piece
        if len(self._read) > _LONGEST:
          break
      self.closed = True
    except BlockingIOError:
      pass
    except OSError:
      self.closed = True
    *lines, self._read = self._read.split(b"\n")
    return [message for line in lines if (message := self._parsed(line))]

  def _parsed(self, line: bytes) -> dict | None:
    try:
      message = json.loads(line)
    except ValueError:
      message = None
    if not isinstance(message, dict):
      self.closed = True  # somebody else's protocol
      return None
    return message

  def end(self) -> None:
    """Tells the other end that nothing more comes; it may go on."""
    try:
      self.stream.shutdown(socket.SHUT_WR)
    except OSError:
      self.closed = True

  def close(self) -> None:
    """Closes the socket."""
    self.closed = True
    self.stream.close()
