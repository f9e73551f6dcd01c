"""Programs that a policy wrote, run where they can do no harm.

A program sees the Python installation read-only, an empty /tmp of its own and
nothing else: no network, no home, no other process, no privilege (`jail.py`
builds that from Linux namespaces). Time, memory, processes, files and output
are bounded. All that it started ends with it, or with this process.

Where the kernel allows no namespaces, nothing is run: `Unavailable` says why.
"""

import dataclasses
import functools
import json
import os
import pathlib
import selectors
import subprocess
import sys
import time
from typing import Literal

_JAIL = pathlib.Path(__file__).with_name("jail.py")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
_MEBIBYTE = 2**20
# To build the sandbox, on a busy machine, before the program's own time runs.
_PATIENCE_SECONDS = 30.0
_GRACE_SECONDS = 10.0


class Unavailable(RuntimeError):
  """There is no sandbox here, so nothing was run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What one program may use.

  Attributes:
    seconds: of wall time, from when it starts.
    memory_bytes: of address space, each process.
    processes: threads included.
    disk_bytes: in its /tmp, which lies in memory.
    output_bytes: written to standard output and standard error together.
  """

  seconds: float = 5.0
  memory_bytes: int = 512 * _MEBIBYTE
  processes: int = 16
  disk_bytes: int = 16 * _MEBIBYTE
  output_bytes: int = 2**16

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if not getattr(self, field.name) > 0:
        raise ValueError(
          f"{field.name}={getattr(self, field.name)!r}: expected more than 0;"
          " raise it"
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a program ended.

  Attributes:
    end: `exited`, or what it ran into: `time`, `output`.
    code: exit code, negative for a signal; None where it was stopped.
    stdout: as far as it was read.
    stderr: likewise.
    seconds: of wall time.
  """

  end: Literal["exited", "time", "output"]
  code: int | None
  stdout: str
  stderr: str
  seconds: float


def run(
  program: str, limits: Limits | None = None, *, stdin: str = ""
) -> Outcome:
  """Runs a Python program in the sandbox.

  Args:
    program: its text.
    stdin: what it reads from standard input.
    limits: what it may use.

  Raises:
    Unavailable: there is no sandbox on this machine.
  """
  limits = limits or Limits()
  if sys.platform != "linux":
    raise Unavailable(
      f"no sandbox on {sys.platform}: programs run on Linux alone"
    )
  ready, status = os.pipe()
  try:
    process = subprocess.Popen(
      [_python(), "-I", "-S", str(_JAIL), str(status)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      pass_fds=(status,),
      start_new_session=True,
      env=_ENVIRONMENT,
    )
  except BaseException:
    os.close(ready)
    raise
  finally:
    os.close(status)
  try:
    settings = _settings(program, stdin, limits)
    return _Watched(process, ready, limits).outcome(settings)
  finally:
    _end(process)
    os.close(ready)


def check() -> None:
  """Raises `Unavailable` where programs can't be run safely."""
  outcome = run("print(6 * 7)", Limits(seconds=30.0))
  if outcome.stdout != "42\n":
    raise Unavailable(
      f"a program in the sandbox printed {outcome.stdout!r} for 6 * 7, and"
      f" {outcome.stderr.strip()[-200:]!r}"
    )


def _end(process: subprocess.Popen) -> None:
  """Ends the sandbox, and waits until all that was in it is gone."""
  process.terminate()
  for stream in (process.stdin, process.stdout, process.stderr):
    if stream is not None:
      try:
        stream.close()
      except BrokenPipeError:
        pass
  try:
    process.wait(_GRACE_SECONDS)
  except subprocess.TimeoutExpired:
    process.kill()  # its processes have asked to be killed with it
    process.wait()


class _Watched:
  """A program that runs, and what has come of it so far."""

  def __init__(self, process: subprocess.Popen, ready: int, limits: Limits):
    self._process = process
    self._ready = ready
    self._limits = limits
    self._status = b""
    self._output: dict[int, bytearray] = {}

  def outcome(self, settings: dict) -> Outcome:
    """Starts it and waits."""
    process, limits = self._process, self._limits
    assert process.stdin and process.stdout and process.stderr
    try:
      process.stdin.write(json.dumps(settings).encode() + b"\n")
      process.stdin.close()
    except BrokenPipeError:
      pass  # it failed already: `status` says of what
    streams = [process.stdout.fileno(), process.stderr.fileno()]
    self._output = {stream: bytearray() for stream in streams}
    began = time.monotonic()
    deadline, started = began + _PATIENCE_SECONDS, False
    end = "exited"
    with selectors.DefaultSelector() as selector:
      for stream in (*streams, self._ready):
        selector.register(stream, selectors.EVENT_READ)
      while selector.get_map() and not self._ended:
        left = deadline - time.monotonic()
        if left <= 0:
          end = "time"
          break
        for key, _ in selector.select(left):
          self._read(selector, key.fd)
        if not started and self._status.startswith(b"ready"):
          started, began = True, time.monotonic()
          deadline = began + limits.seconds
        if sum(map(len, self._output.values())) > limits.output_bytes:
          end = "output"
          break
      seconds = time.monotonic() - began
      if not started:
        raise Unavailable(self._why(process))
      if end == "exited":
        self._drain(streams)
    stdout, stderr = (
      bytes(self._output[s][: limits.output_bytes]).decode("utf-8", "replace")
      for s in streams
    )
    code = self._code if end == "exited" else None
    return Outcome(end, code, stdout, stderr, seconds)

  @property
  def _ended(self) -> bool:
    return b"\nended " in self._status

  @property
  def _code(self) -> int | None:
    _, found, rest = self._status.partition(b"\nended ")
    return int(rest) if found and rest.strip() else None

  def _read(self, selector, stream: int) -> None:
    data = os.read(stream, 2**16)
    if not data:
      selector.unregister(stream)
    elif stream == self._ready:
      self._status += data
    else:
      self._output[stream] += data

  def _drain(self, streams: list[int]) -> None:
    """Reads what was written before the end and is still in the pipes."""
    for stream in streams:
      os.set_blocking(stream, False)
      room = self._limits.output_bytes
      while len(self._output[stream]) <= room:
        try:
          data = os.read(stream, 2**16)
        except BlockingIOError:
          break
        if not data:
          break
        self._output[stream] += data

  def _why(self, process: subprocess.Popen) -> str:
    said = self._status.decode("utf-8", "replace").removeprefix("failed ")
    own = bytes(next(reversed(self._output.values()))).decode(
      "utf-8", "replace"
    )
    why = said.strip() or own.strip()[-300:] or "it did not start in time"
    return (
      f"no sandbox here: {why}; programs need Linux with user namespaces"
      " (sysctl user.max_user_namespaces, and no container that forbids them)"
    )


def _settings(program: str, stdin: str, limits: Limits) -> dict:
  python = _python()
  return {
    "program": _text(program),
    "stdin": _text(stdin),
    "prefix": str(pathlib.Path(python).resolve().parents[1]),
    "python": python,
    "command": [python, "-I", "-S", "-B", "/tmp/main.py"],
    "environment": _ENVIRONMENT,
    "disk_bytes": limits.disk_bytes,
    "limits": {
      "AS": limits.memory_bytes,
      "CORE": 0,
      # The clock on the wall decides; this is for threads that share it.
      "CPU": int(limits.seconds * 4) + 1,
      "FSIZE": limits.disk_bytes,
      "MEMLOCK": 0,
      "MSGQUEUE": 0,
      "NOFILE": 64,
      "NPROC": limits.processes,
    },
  }


def _text(text: str) -> str:
  """Without halves of surrogate pairs, which no file can hold."""
  return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _python() -> str:
  """The interpreter itself, not a virtual environment's link to it."""
  return str(pathlib.Path(sys.executable).resolve())
