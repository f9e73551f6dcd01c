"""Answers on a screen or in a pipe, and a line that says how far one is."""

from collections.abc import Callable
from collections.abc import Iterator
import os
import time
from typing import TextIO

from dsx.inference import thinking

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_FIRST_INTERVAL = 10.0  # seconds between the lines of a log
_GROWTH = 0.1  # of the time since the start, later
_REDRAW = 0.1  # seconds, on a screen
_REPLACEMENT = "\ufffd"
_ERASE = "\r\x1b[K"  # the line that the cursor is on
_OPEN, _CLOSE = "<think>\n", "\n</think>\n\n"
_HIDDEN = "thinking ..."


def is_screen(stream: TextIO) -> bool:
  """Whether `stream` is a terminal that takes escape sequences."""
  return stream.isatty() and os.environ.get("TERM") != "dumb"


def harmless(text: str) -> str:
  """`text` without what would make a terminal do more than print it.

  >>> harmless("a\\x1b[2Jb\\tc\\n")
  'a�[2Jb\\tc\\n'
  """
  return "".join(
    _REPLACEMENT if _is_control(character) else character for character in text
  )


def _is_control(character: str) -> bool:
  code = ord(character)
  return (code < 32 and character not in "\n\t") or 127 <= code < 160


class Printer:
  """Prints answers as they come.

  Reasoning is dim on a screen, where a word stands for it while it comes and is
  not shown; elsewhere it has its tags. Control characters reach files and pipes
  only.

  Attributes:
    is_screen: whether it prints to a terminal.
  """

  def __init__(self, stream: TextIO, *, shows: bool = True):
    """Prints nothing yet.

    Args:
      stream: where to.
      shows: whether to print reasoning.
    """
    self._stream = stream
    self.is_screen = is_screen(stream)
    self._shows = shows
    self._reasons = False
    if self.is_screen:
      self._before, self._after, self._broken = _DIM, _PLAIN + "\n\n", _PLAIN
      if not shows:
        self._before += _HIDDEN + _PLAIN
        self._after = self._broken = _ERASE
    else:
      tags = (_OPEN, _CLOSE) if shows else ("", "")
      self._before, self._after, self._broken = *tags, ""

  def write(self, text: str) -> None:
    """Prints text as it is, or what a screen can take of it."""
    self._stream.write(harmless(text) if self.is_screen else text)

  def part(self, part: thinking.Part) -> None:
    """Prints a piece of an answer."""
    if part.reasoning:
      if not self._reasons:
        self._stream.write(self._before)
        self._reasons = True
      if self._shows:
        self.write(part.reasoning)
    if part.answer:
      if self._reasons:
        self._stream.write(self._after)
        self._reasons = False
      self.write(part.answer)
    self._stream.flush()

  def end(self) -> None:
    """Ends an answer."""
    if self._reasons:
      self._stream.write(self._broken)
      self._reasons = False
    self._stream.write("\n")
    self._stream.flush()


class Progress:
  """How many of several texts are there: one line, redrawn on a screen.

  In a log, lines come at growing intervals.
  """

  def __init__(
    self,
    total: int,
    stream: TextIO,
    *,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Draws nothing yet.

    Args:
      total: texts.
      stream: where to.
      clock: seconds; replaced in tests.
    """
    self._total = total
    self._stream = stream
    self._screen = is_screen(stream)
    self._clock = clock
    self._start = self._last = clock()
    self._width = 0

  def update(self, done: int, tokens: int) -> None:
    """Says how far it is, unless that was said just now.

    Args:
      done: texts that are complete.
      tokens: drawn so far, of all texts.
    """
    now = self._clock()
    elapsed = now - self._start
    interval = max(_FIRST_INTERVAL, _GROWTH * elapsed)
    if now - self._last < (_REDRAW if self._screen else interval):
      return
    self._last = now
    words = f"{done:,} of {self._total:,} texts, {tokens:,} tokens"
    words += f", {tokens / elapsed:,.0f} tokens/s"
    if self._screen:
      self._stream.write("\r" + words.ljust(self._width))
      self._width = len(words)
    else:
      self._stream.write(words + "\n")
    self._stream.flush()

  def close(self) -> None:
    """Takes the line off the screen."""
    if self._width:
      self._stream.write("\r" + " " * self._width + "\r")
      self._stream.flush()
      self._width = 0


def lines(stream: TextIO, mark: str = "> ") -> Iterator[str]:
  """Lines that a person types, or that come through a pipe, without ends.

  Args:
    stream: of a person if it is a terminal, who gets a mark and an editor.
    mark: asks for a line.
  """
  if not stream.isatty():
    for line in stream:
      yield line.rstrip("\r\n")
    return
  try:
    import readline  # noqa: F401, gives `input` its editor
  except ImportError:
    pass  # Windows has none
  while True:
    try:
      yield input(mark)
    except EOFError:
      return
