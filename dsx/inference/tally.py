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
    """Begins.

    Args:
      clock: seconds; replaced in tests.
    """
    self._clock = clock
    self._seconds = 0.0
    self._first: float | None = None
    self._ends: collections.Counter[str] = collections.Counter()
    self.tokens = 0
    self.begin()

  def begin(self) -> None:
    """Begins anew, with what is counted so far: time is of answers alone."""
    self._since = self._clock()

  @property
  def texts(self) -> int:
    """Texts that are complete."""
    return self._ends.total()

  def add(self, news: continuation.News) -> None:
    """Counts what came."""
    now = self._clock()
    self._seconds += now - self._since
    self._since = now
    if news.drawn and self._first is None:
      self._first = self._seconds
    self.tokens += news.drawn
    if news.done:
      self._ends[news.done.end] += 1

  def line(self, *, asked: int = 0, drafted: int = 0, accepted: int = 0) -> str:
    """Says it all.

    Args:
      asked: texts that were asked for, if that is known.
      drafted: tokens that MTP modules proposed.
      accepted: how many of them the model agreed with.
    """
    words = f"{self.tokens:,} token" + "s" * (self.tokens != 1)
    if self.texts == 1 and asked <= 1:
      words += f", {_WHY[next(iter(self._ends))]}"
    elif self.texts:
      ends = [f"{n:,}: {_WHY[end]}" for end, n in self._ends.most_common()]
      of = f" of {asked:,}" if asked > self.texts else ""
      words += f" in {self.texts:,}{of} texts ({'; '.join(ends)})"
    if self._first is not None:
      rate = self.tokens / self._seconds if self._seconds else 0.0
      words += f", {self._seconds:.1f} s ({self._first:.1f} s to the first)"
      words += f", {rate:,.1f} tokens/s"
    if drafted:
      share = accepted / drafted
      words += f", {accepted:,} of {drafted:,} drafts accepted ({share:.0%})"
    return words
