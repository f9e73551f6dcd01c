"""Stopping on request, at the same step on every process.

SIGTERM (a cluster's warning) and Ctrl-C ask for a stop; the loop finishes its
step, saves and leaves. With one process a flag is enough. Several agree through
`parallel.agreement`, over the connections on which they watch each other.

JAX has `multihost_utils.reached_preemption_sync_point` for this, which can
block a run for good. A thread of XLA holds a lock while it tells the
coordinator how far this process is and meets the others there. Who asks
meanwhile waits for that lock in C++, with Python's: no other Python thread
runs, not the one that shows the others that this process lives, and not the
relay through which all that is said to the coordinator goes, that of XLA's
thread included (`parallel.relay`). A slow machine got there within a few runs.
Nobody waits for XLA here, and nobody's main thread for another's.
"""

import signal
from typing import Any

import jax

from dsx.parallel import distributed


class Preemption:
  """A context in which a request to stop is noted instead of obeyed.

  Attributes:
    signal: the signal that asked, or None; with several processes, only once
      all have agreed to stop.
  """

  def __init__(self):
    """Changes nothing until entered."""
    self.signal: signal.Signals | None = None
    self._previous: dict[int, Any] = {}

  def _note(self, number, unused_frame) -> None:
    if jax.process_count() == 1:
      self.signal = signal.Signals(number)
    else:
      distributed.ask_to_stop(signal.Signals(number).name)
    # A second Ctrl-C is obeyed at once.
    if number == signal.SIGINT:
      signal.signal(number, signal.default_int_handler)

  def __enter__(self) -> "Preemption":
    numbers = [signal.SIGINT]
    # With several, `distributed` takes SIGTERM, and not only while in here.
    if jax.process_count() == 1:
      numbers.append(signal.SIGTERM)
    for number in numbers:
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused_error) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def requested(self) -> bool:
    """Whether all processes are to stop here; all call it after every step.

    They may be in different steps, and it may wait for as long as a message
    takes; all stop after the same one.
    """
    if jax.process_count() > 1 and (why := distributed.stop_agreed()):
      self.signal = signal.Signals[why]
    return self.signal is not None
