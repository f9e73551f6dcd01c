"""Processes that live and die together, with what they print.

One thread reads all of them, so that starting a process never forks a program
with threads.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import ctypes
import dataclasses
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

from dsx.parallel import liveness

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Gloo greets once for every communicator, whatever the log level.
_NOISE = b"[Gloo] Rank "
_PATIENCE = 0.1  # seconds between looks at who still runs
_LAST = 5.0  # seconds that one whom all others have lost may take to end
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Stopping:
  """A context in which SIGTERM and Ctrl-C are noted.

  Attributes:
    asked: how often a stop was asked for.
  """

  def __init__(self):
    """Changes nothing until entered."""
    self.asked = 0
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "Stopping":
    for number in (signal.SIGINT, signal.SIGTERM):
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, unused_number, unused_frame) -> None:
    self.asked += 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
  """How the processes ended.

  Attributes:
    process: the number of the one that died first; None if all ended well.
    code: its exit code, or minus the signal that killed it; 0.
    seconds: from its death to the end of the last of the others.
    killed: the others that had to be killed, by number.
  """

  process: int | None
  code: int
  seconds: float
  killed: tuple[int, ...]

  def describe(self) -> str:
    """One line about a bad end."""
    how = f"ended with exit code {self.code}"
    if self.code < 0:
      how = f"was killed by {signal.Signals(-self.code).name}"
    others = f"all had ended {self.seconds:.1f} s later"
    if self.killed:
      others += f", {', '.join(map(str, self.killed))} because killed"
    return f"process {self.process} {how}; {others}"


class Group:
  """Processes that were started together.

  Attributes:
    members: the processes, in the order of their numbers.
  """

  def __init__(
    self,
    commands: Sequence[Sequence[str]],
    environment: Mapping[str, str],
    grace_seconds: float,
  ):
    """Starts all of them.

    Args:
      commands: one for each.
      environment: of all.
      grace_seconds: how long the others may take to end when one has died.
    """
    self._grace = grace_seconds
    self._selector = selectors.DefaultSelector()
    self._rest: dict[int, bytes] = {}  # lines that have not ended, by pipe
    self.members: list[subprocess.Popen] = []
    try:
      for number, command in enumerate(commands):
        self.members.append(self._start(number, command, environment))
    except BaseException:
      self._end()
      raise

  def _start(self, number: int, command, environment) -> subprocess.Popen:
    process = subprocess.Popen(
      command,
      cwd=_ROOT,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      # A terminal's Ctrl-C is for this process, which passes on a SIGTERM.
      start_new_session=True,
      preexec_fn=die_with_parent,
    )
    for pipe, to in (
      (process.stdout, sys.stdout),
      (process.stderr, sys.stderr),
    ):
      assert pipe is not None
      self._rest[pipe.fileno()] = b""
      self._selector.register(pipe, selectors.EVENT_READ, (number, to))
    return process

  def wait(self, stopping: Stopping) -> End:
    """Shows what the processes print until all have ended."""
    first: tuple[int, int] | None = None
    died: float | None = None
    killed: tuple[int, ...] = ()
    told = 0
    try:
      while running := self._running():
        self._show(_PATIENCE)
        if stopping.asked > told:
          told = stopping.asked
          self._signal(signal.SIGTERM if told == 1 else signal.SIGKILL)
        first = first or self._culprit()
        if died is None and any(process.returncode for process in self.members):
          died = time.monotonic()
        elif died is not None and (
          time.monotonic() - died > self._patience(running)
        ):
          killed = killed or tuple(running)
          self._signal(signal.SIGKILL)
      while self._show(0):  # what is left in the pipes
        pass
    finally:
      self._end()
    codes = [process.returncode for process in self.members]
    if not any(codes):
      return End(process=None, code=0, seconds=0.0, killed=())
    seconds = 0.0 if died is None else time.monotonic() - died
    first = first or self._culprit()
    if first is None and killed:  # whom the others have lost
      first = (killed[0], -signal.SIGKILL)
    elif first is None:
      first = next((i, code) for i, code in enumerate(codes) if code)
    others = tuple(number for number in killed if number != first[0])
    return End(process=first[0], code=first[1], seconds=seconds, killed=others)

  def _running(self) -> list[int]:
    return [
      number
      for number, process in enumerate(self.members)
      if process.poll() is None
    ]

  def _culprit(self) -> tuple[int, int] | None:
    """Who died, and its code, if anybody; not who says another one is lost."""
    codes = enumerate(process.returncode for process in self.members)
    own = [
      (i, code) for i, code in codes if code not in (None, 0, liveness.LOST)
    ]
    # A killed one is the cause where another has failed at the same moment.
    return min(own, key=lambda pair: pair[1] > 0, default=None)

  def _patience(self, running: list[int]) -> float:
    """How long those that still run may take to end."""
    codes = [process.returncode for process in self.members]
    # All others say that this one is lost; if it failed, it is on its way out.
    if len(running) == 1 and codes.count(liveness.LOST) == len(codes) - 1:
      return min(self._grace, _LAST)
    return self._grace

  def _show(self, seconds: float) -> bool:
    """Passes on what there is to read; returns whether there was anything."""
    events = self._selector.select(seconds)
    for key, _ in events:
      number, to = key.data
      data = os.read(key.fd, 65536)
      *lines, rest = (self._rest[key.fd] + data).split(b"\n")
      if not data:
        self._selector.unregister(key.fileobj)
        lines, rest = [rest] if rest else [], b""
      self._rest[key.fd] = rest
      for line in lines:
        if not line.startswith(_NOISE):
          text = line.decode(errors="replace").rstrip("\r")
          print(f"[{number}] {text}", file=to, flush=True)
    return bool(events)

  def _signal(self, number: int) -> None:
    for process in self.members:
      if process.poll() is None:
        process.send_signal(number)

  def _end(self) -> None:
    """Leaves no process and no pipe behind."""
    self._signal(signal.SIGKILL)
    for process in self.members:
      process.wait()
      for pipe in (process.stdout, process.stderr):
        if pipe is not None:
          pipe.close()
    self._selector.close()


def die_with_parent() -> None:
  """Has Linux end the process that is being started when this one dies."""
  if _libc is not None:
    _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
