"""How many tokens came how fast, and why the texts ended: one line."""

import collections
from collections.abc import Callable
import time

from dsx.inference import continuation

_WHY = {
  "model": "the model ended the text",
  "stop_string": "a stop string came",
  "max_new_tokens": "as many as asked for",
  "context": "the context is full",
}


class Tally:
  """Counts while texts are generated.

  Attributes:
    tokens: drawn.
    texts: that are complete.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts the clock.

    Args:
      clock: seconds; replaced in tests.
    """
    self._clock = clock
    self._start = clock()
    self._first: float | None = None
    self._ends: collections.Counter[str] = collections.Counter()
    self.tokens = 0

  @property
  def texts(self) -> int:
    """Texts that are complete."""
    return self._ends.total()

  def add(self, news: continuation.News) -> None:
    """Counts what came."""
    if news.drawn and self._first is None:
      self._first = self._clock() - self._start
    self.tokens += news.drawn
    if news.done:
      self._ends[news.done.end] += 1

  def line(self, *, drafted: int = 0, accepted: int = 0) -> str:
    """Says it all.

    Args:
      drafted: tokens that MTP modules proposed.
      accepted: how many of them the model agreed with.
    """
    seconds = self._clock() - self._start
    rate = self.tokens / seconds if seconds else 0.0
    words = f"{self.tokens:,} token" + "s" * (self.tokens != 1)
    if self.texts == 1:
      words += f", {_WHY[next(iter(self._ends))]}"
    elif self.texts:
      ends = [f"{n:,}: {_WHY[end]}" for end, n in self._ends.most_common()]
      words += f" in {self.texts:,} texts ({'; '.join(ends)})"
    words += f", {seconds:.1f} s"
    if self._first is not None:
      words += f" ({self._first:.1f} s to the first), {rate:,.1f} tokens/s"
    if drafted:
      share = accepted / drafted
      words += f", {accepted:,} of {drafted:,} drafts accepted ({share:.0%})"
    return words
