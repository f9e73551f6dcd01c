"""Functions called in processes that can be killed.

A reward may hang (a grader that simplifies for ever), crash, or eat all memory;
none of that may stop a training run or pass for a wrong answer. Every call has
a deadline, after which its process is killed and another takes its place, and
every call has an outcome: a value, or what went wrong.
"""

from collections.abc import Callable
from collections.abc import Sequence
import ctypes
import dataclasses
import multiprocessing
from multiprocessing import connection
from multiprocessing import process as process_lib
import os
import resource
import signal
import sys
import time
from typing import Any

_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a call.

  Attributes:
    value: what the function returned; None if it failed.
    error: why there is no value, in one line; empty if there is one.
  """

  value: Any = None
  error: str = ""


class Pool:
  """Processes that wait for work; a context manager.

  Calls are handed out in order; results come in the order of the calls,
  whichever ends first.
  """

  def __init__(
    self,
    processes: int,
    *,
    seconds: float,
    memory_bytes: int | None = None,
    start_seconds: float = 60.0,
  ):
    """Starts nothing yet: processes begin with the first call.

    Args:
      processes: how many calls run at a time.
      seconds: for each call.
      memory_bytes: of address space for each process; None for no limit.
      start_seconds: for a process to begin and import what it needs.
    """
    for name, value in (("processes", processes), ("seconds", seconds)):
      if not value > 0:
        raise ValueError(f"{name}={value!r}: expected more than 0; raise it")
    self._seconds = seconds
    self._start_seconds = start_seconds
    self._memory_bytes = memory_bytes
    self._workers = [_Worker(memory_bytes) for _ in range(processes)]

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Kills all processes. Calls start them again."""
    for worker in self._workers:
      worker.kill()

  def map(
    self,
    function: Callable[..., Any],
    arguments: Sequence[tuple],
    *,
    seconds: float | None = None,
  ) -> list[Outcome]:
    """Calls `function(*arguments[i])` for all i.

    Args:
      function: defined at the top of a module, so that a process can import
        it.
      arguments: picklable.
      seconds: for each of these calls; None for what the pool allows.
    """
    allowed = self._seconds if seconds is None else seconds
    outcomes: list[Outcome] = [Outcome(error="not run")] * len(arguments)
    waiting = list(range(len(arguments)))[::-1]
    busy: dict[Any, _Worker] = {}
    idle = list(self._workers)
    while waiting or busy:
      while waiting and idle:
        worker, call = idle.pop(), waiting.pop()
        limit = allowed + (0 if worker.alive else self._start_seconds)
        worker.begin(call, function, arguments[call], limit)
        busy[worker.results] = worker
      deadline = min(worker.deadline for worker in busy.values())
      left = max(0.0, deadline - time.monotonic())
      for results in connection.wait(list(busy), left):
        worker = busy[results]
        outcome = worker.result()
        if outcome is None:  # the process is there, and begins
          worker.deadline = time.monotonic() + allowed
          continue
        outcomes[worker.call] = outcome
        idle.append(busy.pop(results))
      now = time.monotonic()
      for results, worker in list(busy.items()):
        if worker.deadline <= now:
          worker.kill()
          outcomes[worker.call] = Outcome(error=f"took more than {allowed:g} s")
          idle.append(busy.pop(results))
    return outcomes


class _Worker:
  """One process, or the place for one."""

  def __init__(self, memory_bytes: int | None):
    self._memory_bytes = memory_bytes
    self._process: process_lib.BaseProcess | None = None
    self.results: Any = None
    self.call = -1
    self.deadline = 0.0

  @property
  def alive(self) -> bool:
    """Whether it has a process that takes work."""
    return self._process is not None and self._process.is_alive()

  def begin(self, call: int, function, arguments, limit: float) -> None:
    """Hands work to the process, which is started if it must be."""
    if not self.alive:
      self._start()
    self.call, self.deadline = call, time.monotonic() + limit
    self.results.send((function, arguments))

  def _start(self) -> None:
    self.kill()
    context = multiprocessing.get_context("spawn")
    self.results, theirs = context.Pipe()
    self._process = context.Process(
      target=_work, args=(theirs, self._memory_bytes, os.getpid()), daemon=True
    )
    self._process.start()
    theirs.close()

  def result(self) -> Outcome | None:
    """What the process said, None as it begins; or how it ended."""
    try:
      return self.results.recv()
    except (EOFError, OSError):
      process, self._process = self._process, None
      assert process is not None
      process.join()
      code = process.exitcode or 0
      how = f"signal {-code}" if code < 0 else f"exit code {code}"
      return Outcome(error=f"its process ended with {how}")

  def kill(self) -> None:
    """Ends the process, if there is one."""
    if self._process is not None:
      self._process.kill()
      self._process.join()
      self._process = None
    if self.results is not None:
      self.results.close()


def _end_with(parent: int) -> None:
  """Has the kernel kill this process when the one that asks is gone.

  A call that hangs would never notice: not even in a thread, if it hangs in C.
  """
  if sys.platform != "linux":
    return
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  if os.getppid() != parent:  # it was gone before
    os._exit(1)


def _work(calls, memory_bytes: int | None, parent: int) -> None:
  """What a process does: answers calls until nobody asks."""
  _end_with(parent)
  if memory_bytes is not None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
  while True:
    try:
      function, arguments = calls.recv()
    except EOFError:
      return
    calls.send(None)
    try:
      outcome = Outcome(value=function(*arguments))
    except Exception as error:
      text = " ".join(str(error).split())[:300]
      outcome = Outcome(error=f"{type(error).__name__}: {text}".rstrip(": "))
    calls.send(outcome)
