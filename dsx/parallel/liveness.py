"""Who of the processes of a run still lives, and the end of those left over.

A collective whose partner is gone waits for ever, and JAX's own answer is to
abort after a while without a name. Here process 0 keeps a connection to every
other process; a thread on each side sends a line now and then. A process is
lost when its connection breaks (it was killed), when nothing is heard of it
(stopped, or its machine is gone), when it says that it failed, or when it does
not come to a step at which the others wait. What process 0 finds it tells all;
each says so in one line and ends with the exit code `LOST`, whatever its main
thread is waiting for.

What the processes have to say to each other about stopping goes the same way,
see `agreement`.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import hmac
import os
import selectors
import socket
import sys
import threading
import time

from dsx.parallel import agreement as agreement_lib
from dsx.parallel import lines

# The exit code of a process that ends because another one was lost: EX_TEMPFAIL
# of sysexits.h. Who starts the run may start it again.
LOST = 75
# How long process 0 goes on to read when it has told the others of a loss:
# closing a connection with unread lines could take its own last words back.
_FAREWELL_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """How patient the watch is.

  Attributes:
    beat_seconds: between signs of life.
    silence_seconds: without one a process is lost.
    hang_seconds: a process that does not come to a step for so long, while
      others wait there, is lost; 0 waits for ever.
    stall_seconds: when nobody has come any further for so long, all end; 0
      waits for ever. Compiling takes its time, too.
    join_seconds: a process that has not joined by then is lost.
    meet_seconds: how long processes wait for all others at the start.
  """

  beat_seconds: float = 2.0
  silence_seconds: float = 20.0
  hang_seconds: float = 300.0
  stall_seconds: float = 3600.0
  join_seconds: float = 60.0
  meet_seconds: float = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """A process that was lost.

  Attributes:
    process: its index; None if all hang and nobody knows for whom.
    host: the machine it ran on, if known, and its process id there.
    why: how it was noticed.
  """

  process: int | None
  host: str
  why: str

  def describe(self) -> str:
    """One line."""
    if self.process is None:
      return f"the run is lost: {self.why}"
    return f"process {self.process} on {self.host} is lost: {self.why}"


@dataclasses.dataclass(kw_only=True)
class _Peer:
  """What is known of a process at the other end of a connection."""

  process: int
  host: str
  heard: float  # when, on this process's clock
  at: int = 0  # how often it has arrived somewhere
  where: str = "the start"
  behind: float | None = None  # since when others wait for it


class Watch:
  """One process's part of the watch, in a thread of its own.

  Attributes:
    process: this process's index.
    loss: who was lost, or None.
    joined: set when all processes have joined, and all will be told of a loss.
    agreement: this process's part in where all stop.
  """

  def __init__(
    self,
    process: int,
    count: int,
    *,
    timing: Timing,
    on_loss: Callable[[str], None],
  ):
    """Starts nothing yet: see `serve` and `join`.

    Args:
      process: this process's index.
      count: how many processes there are.
      timing: how patient it is.
      on_loss: called once with a line that names who is lost, in the watch's
        thread.
    """
    self.process = process
    self.loss: Loss | None = None
    self.joined = threading.Event()
    self.agreement = agreement_lib.Agreement(process, count)
    self._timing = timing
    self._on_loss = on_loss
    self._myself = _Peer(process=process, host=place(), heard=0.0)
    self._missing = set(range(1, count)) if process == 0 else set()
    self._token = ""
    self._peers: dict[lines.Connection, _Peer | None] = {}
    self._selector = selectors.DefaultSelector()
    self._wakes, self._woken = socket.socketpair()
    self._wakes.setblocking(False)
    self._selector.register(self._woken, selectors.EVENT_READ, None)
    self._listener: socket.socket | None = None
    self._started = time.monotonic()
    self._furthest, self._moved = 0, self._started  # of all; since when
    self._last_words: dict | None = None
    self._thread = threading.Thread(
      target=self._run, name="liveness", daemon=True
    )

  # What the main thread calls.

  def serve(self, listener: socket.socket, token: str) -> None:
    """Starts process 0's part.

    Args:
      listener: where the others connect to.
      token: what they have to say first.
    """
    self._listener, self._token = listener, token
    listener.setblocking(False)
    self._selector.register(listener, selectors.EVENT_READ, None)
    self._thread.start()

  def join(self, stream: socket.socket, token: str, host: str) -> None:
    """Starts another process's part.

    Args:
      stream: connected to process 0.
      token: what process 0 wants to hear first.
      host: the place of process 0.
    """
    connection = lines.Connection(stream)
    hello = {"token": token, "process": self.process, "host": place()}
    connection.send(hello)
    self._add(connection, _Peer(process=0, host=host, heard=time.monotonic()))
    self._thread.start()

  def arrived(self, where: str) -> None:
    """Says that this process has come to a place where it needs the others."""
    self._myself.where = where
    self._myself.at += 1

  def ask_to_stop(self, why: str) -> None:
    """Asks all processes to stop at one place; fit for a signal's handler."""
    self.agreement.ask(why)
    self._wake()

  def failed(self, why: str) -> None:
    """Tells the others that this process ends, and stops watching them."""
    self._say_last({"failed": why})

  def leave(self) -> None:
    """Tells the others that this process is done, and stops watching them."""
    self._say_last({"bye": True})

  def wait_for_loss(self, seconds: float) -> None:
    """Gives the watch time to find why a collective has failed."""
    self._thread.join(seconds)

  def _say_last(self, words: dict) -> None:
    if not self._thread.is_alive():
      return
    self._last_words = words
    self._wake()
    self._thread.join(self._timing.silence_seconds)

  def _wake(self) -> None:
    """Has the thread look up now."""
    with contextlib.suppress(BlockingIOError):  # it is about to, then
      self._wakes.send(b"!")

  # What the thread does.

  def _run(self) -> None:
    beat, awake, word = 0.0, time.monotonic(), None
    while self.loss is None and self._last_words is None:
      for key, _ in self._selector.select(self._timing.beat_seconds / 4):
        self._read(key)
      now = time.monotonic()
      if now - awake > 2 * self._timing.beat_seconds:
        self._excuse(now - awake, now)
      awake = now
      before, word = word, self.agreement.word()
      if now - beat >= self._timing.beat_seconds or word != before:
        beat = now
        me = self._myself
        self._tell({"at": me.at, "where": me.where, "stop": word})
      if self.loss is None:
        self.loss = self._overdue(now) or self._hanging(now)
    if self.loss is not None:
      self._tell({"lost": dataclasses.asdict(self.loss)})
    elif self._last_words is not None:
      self._tell(self._last_words)
    self._part()
    if self.loss is not None:
      self._on_loss(
        f"{self.loss.describe()}; process {self.process} ends, at "
        f"{self._myself.where}"
      )

  def _tell(self, message: dict) -> None:
    for connection, peer in self._peers.items():
      if peer is not None:
        connection.send(message)

  def _add(self, connection: lines.Connection, peer: _Peer | None) -> None:
    self._peers[connection] = peer
    self._selector.register(connection.stream, selectors.EVENT_READ, connection)

  def _drop(self, connection: lines.Connection) -> _Peer | None:
    self._selector.unregister(connection.stream)
    connection.close()
    return self._peers.pop(connection)

  def _read(self, key: selectors.SelectorKey) -> None:
    if key.fileobj is self._listener and self._listener is not None:
      stream, _ = self._listener.accept()
      self._add(lines.Connection(stream), None)
    elif key.fileobj is self._woken:
      self._woken.recv(1)
    elif isinstance(key.data, lines.Connection):
      for message in key.data.receive():
        if key.data in self._peers:
          self._heed(key.data, message)
      if key.data.closed and key.data in self._peers:
        peer = self._drop(key.data)
        if peer is not None and self.loss is None:
          self.loss = self._lost(peer, "its connection broke")

  def _heed(self, connection: lines.Connection, message: dict) -> None:
    peer = self._peers[connection]
    if peer is None:
      self._greet(connection, message)
      return
    peer.heard = time.monotonic()
    if "lost" in message:
      self.loss = self.loss or Loss(**message["lost"])
    elif "failed" in message:
      self.loss = self.loss or self._lost(
        peer, f"it failed: {message['failed']}"
      )
    elif "all" in message:
      self.joined.set()
    elif "bye" in message:
      self._drop(connection)
    else:
      if message.get("at", peer.at) != peer.at:
        peer.at, peer.where, peer.behind = message["at"], message["where"], None
      if message.get("stop"):
        self.agreement.heed(peer.process, message["stop"])

  def _greet(self, connection: lines.Connection, hello: dict) -> None:
    """Takes a newcomer in, or turns a stranger away."""
    process = hello.get("process")
    if not isinstance(process, int):
      process = -1
    token = str(hello.get("token")).encode()
    right = hmac.compare_digest(token, self._token.encode())
    if not right or process not in self._missing:
      self._drop(connection)
      return
    self._missing.remove(process)
    self._peers[connection] = _Peer(
      process=process, host=str(hello.get("host")), heard=time.monotonic()
    )
    if not self._missing:
      self._tell({"all": True})
      self.joined.set()

  def _lost(self, peer: _Peer, why: str) -> Loss:
    return Loss(process=peer.process, host=peer.host, why=why)

  def _excuse(self, seconds: float, now: float) -> None:
    """Takes a time in which this process slept from everybody's silence.

    The machine may have been suspended, and its other processes with it: what
    nobody could have heard says nothing of a loss.
    """
    self._started += seconds
    self._moved += seconds
    for peer in filter(None, self._peers.values()):
      peer.heard = min(peer.heard + seconds, now)
      if peer.behind is not None:
        peer.behind = min(peer.behind + seconds, now)

  def _overdue(self, now: float) -> Loss | None:
    """A process of which nothing is heard."""
    for peer in self._peers.values():
      if peer is not None and now - peer.heard > self._timing.silence_seconds:
        return self._lost(
          peer, f"nothing was heard of it for {now - peer.heard:.0f} s"
        )
    if self._missing and now - self._started > self._timing.join_seconds:
      missing = _Peer(process=min(self._missing), host="?", heard=0.0)
      return self._lost(
        missing, f"it did not join within {self._timing.join_seconds:.0f} s"
      )
    return None

  def _hanging(self, now: float) -> Loss | None:
    """A process for which others wait too long; process 0 alone knows."""
    if self._listener is None:
      return None
    limit, all_limit = self._timing.hang_seconds, self._timing.stall_seconds
    everybody = [self._myself, *filter(None, self._peers.values())]
    first = max(everybody, key=lambda peer: peer.at)
    if first.at != self._furthest:
      self._furthest, self._moved = first.at, now
    elif first.at and all_limit and now - self._moved > all_limit:
      why = f"nobody came past {first.where} for {now - self._moved:.0f} s"
      return Loss(process=None, host="", why=why)
    for peer in everybody:
      if peer.at == first.at:
        peer.behind = None
      elif peer.behind is None:
        peer.behind = now
      elif limit and now - peer.behind > limit:
        return self._lost(
          peer,
          f"it hangs at {peer.where}; process {first.process} has waited for "
          f"it at {first.where} for {now - peer.behind:.0f} s",
        )
    return None

  def _part(self) -> None:
    """Closes the connections; what was said last has been heard by then."""
    deadline = time.monotonic() + _FAREWELL_SECONDS
    if self._listener is not None:
      self._selector.unregister(self._listener)
      self._listener.close()
    for connection in self._peers:
      connection.end()
    while self._peers and (left := deadline - time.monotonic()) > 0:
      for key, _ in self._selector.select(left):
        if isinstance(key.data, lines.Connection):
          key.data.receive()
          if key.data.closed:
            self._drop(key.data)
        else:
          self._woken.recv(1)
    for connection in list(self._peers):
      self._drop(connection)


def place() -> str:
  """This machine and this process on it, for a person to look for."""
  return f"{socket.gethostname()} (pid {os.getpid()})"


def end(line: str) -> None:
  """Ends this process at once, whatever its other threads wait for."""
  # The main thread may hold the lock of a stream that nobody reads.
  flush = threading.Thread(target=sys.stdout.flush, daemon=True)
  flush.start()
  flush.join(1.0)
  # A progress line may have hidden the cursor.
  shown = f"\n\x1b[?25h{line}\n" if os.isatty(2) else f"{line}\n"
  os.write(2, shown.encode())
  os._exit(LOST)
