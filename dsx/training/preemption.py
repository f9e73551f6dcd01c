"""Stopping on request, at the same step on every process.

SIGTERM (a cluster's warning) and Ctrl-C ask for a stop; the loop finishes its
step, saves and leaves. With several processes JAX's preemption notifier
agrees on the step; with one, a flag is enough.
"""

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
  """A context in which a request to stop is noted instead of obeyed.

  Attributes:
    signal: the signal that asked, or None.
  """

  def __init__(self):
    """Changes nothing until entered."""
    self.signal: signal.Signals | None = None
    self._previous: dict[int, Any] = {}

  def _note(self, number, unused_frame) -> None:
    self.signal = signal.Signals(number)
    # A second Ctrl-C is obeyed at once.
    if number == signal.SIGINT:
      signal.signal(number, signal.default_int_handler)

  def __enter__(self) -> "Preemption":
    numbers = [signal.SIGINT]
    if jax.process_count() == 1:
      numbers.append(signal.SIGTERM)
    for number in numbers:
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused_error) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def requested(self, step: int) -> bool:
    """Whether all processes are to stop after `step`; call it every step."""
    if jax.process_count() == 1:
      return self.signal is not None
    if multihost_utils.reached_preemption_sync_point(step):
      self.signal = signal.SIGTERM
      return True
    return False
