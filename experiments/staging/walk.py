"""Going down a road: command after command, each in a process of its own.

A process of its own, because a stage is then what a person would have typed,
with its own devices, memory and resume; what ends one ends no other's work.
SIGTERM and Ctrl-C are passed on, so that the stage saves and stops.
"""

from collections.abc import Callable
from collections.abc import Sequence
import os
import signal
import subprocess
import sys
import threading
import time

from experiments.bindings import problems
from experiments.bindings import search
from experiments.launching import group
from experiments.staging import plan
from experiments.staging import record as record_lib

_LOOK_SECONDS = 0.1


class Failed(ValueError):
  """A stage that did not come to its end."""


def go(
  commands: Sequence[plan.Command],
  say: Callable[[str], None],
  after: Callable[[], None],
) -> bool:
  """Runs what is left.

  Args:
    commands: all, in order.
    say: is given every line.
    after: called when a command is done.

  Returns:
    Whether all are done; False if a stop was asked for.

  Raises:
    Failed: a command ended with an error, or another process runs it.
  """
  with group.Stopping() as stopping:
    for number, command in enumerate(commands, 1):
      record = record_lib.Record(command)
      label = f"[{number}/{len(commands)}] {command.label}"
      if record.done:
        seconds = record.outcome()["seconds"]
        say(f"{label}: done before, in {seconds:.0f} s")
        continue
      if stopping.asked:
        return False
      with record.lock() as descriptor:
        if descriptor is None:
          raise Failed(
            f"stage {command.label!r}: another process runs it in"
            f" {record.folder}; wait for it, or end it"
          )
        say(f"{label}: begins, in {record.folder}")
        began = time.monotonic()
        words = [sys.executable, "-m", f"experiments.{command.binary}"]
        words += command.arguments
        code = _Process(
          words, record, descriptor, command.stage.name, say
        ).wait(stopping)
        if stopping.asked:
          return False
        if code:
          raise Failed(
            f"stage {command.label!r} ended with exit code {code}; its log is"
            f" {record.log}; the same command goes on from there"
          )
        record.finish(time.monotonic() - began, words[1:])
      say(f"{label}: done in {time.monotonic() - began:.0f} s")
      after()
  return True


class _Process:
  """One command's process; what it prints is shown and kept."""

  def __init__(self, words, record, descriptor: int, name: str, say):
    self._name, self._say = name, say
    self._log = record.log.open("ab")
    path = os.environ.get("PYTHONPATH")
    root = str(search.ROOT)
    environment = {
      **os.environ,
      "PYTHONPATH": os.pathsep.join([root, *([path] if path else [])]),
      "PYTHONUNBUFFERED": "1",
    }
    self._process = subprocess.Popen(
      words,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      pass_fds=[descriptor],
      # A terminal's Ctrl-C is for this process, which passes on a SIGTERM.
      start_new_session=True,
      preexec_fn=group.die_with_parent,
    )
    self._reader = threading.Thread(target=self._show, daemon=True)
    self._reader.start()

  def _show(self) -> None:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      self._log.write(line)
      self._log.flush()
      text = problems.printable(line.decode(errors="replace").rstrip())
      self._say(f"  {self._name} | {text}")

  def wait(self, stopping: group.Stopping) -> int:
    """Its exit code."""
    told = 0
    while True:
      try:
        code = self._process.wait(_LOOK_SECONDS)
        break
      except subprocess.TimeoutExpired:
        if stopping.asked > told:
          told = stopping.asked
          self._process.send_signal(
            signal.SIGTERM if told == 1 else signal.SIGKILL
          )
    self._reader.join()
    self._log.close()
    assert self._process.stdout is not None
    self._process.stdout.close()
    return code if code >= 0 else 128 - code
