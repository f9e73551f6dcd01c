"""All processes of a run stop after the same step, whoever was asked to.

Every process counts the places at which it could stop: its calls of `passed`.
Whoever is asked tells process 0. That bids all to hold: from then on nobody
passes such a place, and each says how many it has passed. The place after the
furthest is one that nobody has passed and everybody comes to, because what one
has begun the others have to take part in; there all stop, and until then they
go on.

Only the calls of `passed` wait, for as long as a message takes to go round, and
no message waits for a main thread: it may be compiling, or in a collective with
one that holds. Nothing here knows of signals or sockets. `liveness` carries the
words, between two and with every sign of life, so that none is missed for good.
"""

import threading


class Agreement:
  """One process's part."""

  def __init__(self, process: int, count: int):
    """Nobody has asked yet.

    Args:
      process: this process's index.
      count: how many there are.
    """
    self._process, self._count = process, count
    self._changed = threading.Condition()
    self._asked: str | None = None
    self._passed = 0
    self._held = False
    # What all have agreed on: why, and the number of the place.
    self._why = ""
    self._place: int | None = None
    self._counts: dict[int, int] = {}  # process 0 alone: who holds, and where

  def ask(self, why: str) -> None:
    """Asks all to stop; a handler of signals may call it at any time."""
    # No lock: the main thread, which handles signals, may have it.
    self._asked = why

  def passed(self) -> str | None:
    """Counts a place, and says whether all stop there.

    Every process calls it at the same places. It waits while they agree.

    Returns:
      Why all stop here, or have before; None to go on.
    """
    with self._changed:
      self._changed.wait_for(lambda: not self._held)
      self._passed += 1
      stop = self._place is not None and self._passed >= self._place
      return self._why if stop else None

  @property
  def held(self) -> bool:
    """Whether `passed` would wait."""
    return self._held

  def word(self) -> dict | None:
    """What is to be said now: to process 0, or by it to all.

    It may be said again and again.
    """
    with self._changed:
      if self._process == 0:
        if self._asked is not None:
          self._hold(self._asked)
        if self._place is not None:
          return {"place": self._place, "why": self._why}
        return {"hold": self._why} if self._held else None
      if self._place is not None:
        return None
      if self._held:
        return {"passed": self._passed}
      return None if self._asked is None else {"ask": self._asked}

  def heed(self, process: int, word: dict) -> None:
    """Takes the word of another process."""
    with self._changed:
      if "ask" in word:
        self._hold(word["ask"])
      elif "hold" in word:
        self._held = True
      elif "passed" in word:
        self._counts[process] = word["passed"]
        if len(self._counts) == self._count - 1:
          furthest = max(self._passed, *self._counts.values())
          self._stop_at(furthest + 1, self._why)
      elif "place" in word:
        self._stop_at(word["place"], word["why"])

  def _hold(self, why: str) -> None:
    """Begins to agree, if process 0 has not yet; only the first why counts."""
    if self._place is None and not self._held:
      self._held, self._why = True, why

  def _stop_at(self, place: int, why: str) -> None:
    if self._place is None:
      self._place, self._why, self._held = place, why, False
      self._changed.notify_all()
