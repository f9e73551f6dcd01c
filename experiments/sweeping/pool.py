"""Trials as processes of this machine, some of them at a time.

What a trial prints goes into its folder. SIGTERM and Ctrl-C are passed on once,
so that every trial saves and stops; a second time they end it at once.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import concurrent.futures
import contextlib
import os
import queue
import subprocess
import threading
import time
from typing import NamedTuple

from experiments.bindings import search
from experiments.launching import group
from experiments.sweeping import trial as trial_lib

_LOOK_SECONDS = 0.2  # between looks at whether a stop was asked for


class Task(NamedTuple):
  """A trial and how it is run.

  Attributes:
    trial: the trial.
    record: its folder.
    command: what to run.
    bound: digest of what it binds.
  """

  trial: trial_lib.Trial
  record: trial_lib.Record
  command: Sequence[str]
  bound: str


class Pool:
  """Runs trials, `parallel` at a time.

  Args:
    parallel: how many at a time.
    environment: of every trial.
    gpus: how many GPUs each trial has to itself; None leaves all to all.
    report: is given one line for each trial that begins or ends.
  """

  def __init__(
    self,
    parallel: int,
    environment: Mapping[str, str],
    gpus: int | None,
    report: Callable[[str], None],
  ):
    self._parallel = parallel
    self._environment = dict(environment)
    self._gpus = gpus
    self._report = report
    self._processes: set[subprocess.Popen] = set()
    self._guard = threading.Lock()
    self._signals = 0
    self._places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(parallel):
      self._places.put(place)

  def run(self, tasks: Sequence[Task]) -> bool:
    """Runs all tasks; returns whether it was not asked to stop."""
    with (
      group.Stopping() as stopping,
      concurrent.futures.ThreadPoolExecutor(self._parallel) as threads,
    ):
      pending = {
        threads.submit(self._one, task, f"[{number}/{len(tasks)}]")
        for number, task in enumerate(tasks, 1)
      }
      while pending:
        done, pending = concurrent.futures.wait(
          pending, _LOOK_SECONDS, concurrent.futures.FIRST_COMPLETED
        )
        if stopping.asked > self._signals:
          self._stop(stopping.asked)
        for future in done:
          future.result()
    return not stopping.asked

  def _stop(self, asked: int) -> None:
    with self._guard:
      self._signals = asked
      for process in self._processes:
        process.terminate() if asked == 1 else process.kill()

  def _one(self, task: Task, count: str) -> None:
    """Runs one trial, unless a stop was asked for or it runs already."""
    if self._signals:
      return
    task.record.claim(task.trial, task.bound)
    label = f"{count} {task.trial.label()}"
    with self._place() as place, task.record.lock() as descriptor:
      if descriptor is None:
        self._report(f"{label}: another process runs it")
        return
      self._report(f"{label}: begins")
      began = time.monotonic()
      code = self._process(task, place, descriptor)
      if code is None:
        return
      # What ends a trial that was asked to stop is no failure of it.
      code = 0 if self._signals else code
      task.record.ended(code)
    seconds = time.monotonic() - began
    how = "finished" if task.record.finished else "stopped"
    if code:
      how = f"failed with exit code {code}: {task.record.last_line()}"
    self._report(f"{label}: {how} after {seconds:.0f} s")

  @contextlib.contextmanager
  def _place(self) -> Iterator[int]:
    """One of the places, which no other trial has at the same time."""
    place = self._places.get()
    try:
      yield place
    finally:
      self._places.put(place)

  def _process(self, task: Task, place: int, lock: int) -> int | None:
    """Runs a trial's process; None if a stop came first."""
    with (task.record.folder / trial_lib.LOG).open("ab") as log:
      with self._guard:
        if self._signals:
          return None
        process = subprocess.Popen(
          task.command,
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=subprocess.STDOUT,
          env=self._variables(place),
          pass_fds=[lock],
          # A terminal's Ctrl-C is for this process, which passes it on.
          start_new_session=True,
        )
        self._processes.add(process)
      code = process.wait()
      with self._guard:
        self._processes.remove(process)
    return code if code >= 0 else 128 - code

  def _variables(self, place: int) -> dict[str, str]:
    root = str(search.ROOT)
    path = self._environment.get("PYTHONPATH")
    more = {"PYTHONPATH": os.pathsep.join([root, *([path] if path else [])])}
    more["PYTHONUNBUFFERED"] = "1"
    if self._gpus is not None:
      first = place * self._gpus
      own = map(str, range(first, first + self._gpus))
      more["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return {**self._environment, **more}
