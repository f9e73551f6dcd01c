"""What a person sees while weights are read or written: bytes, rate, ETA.

On a terminal one bar is redrawn in place; in a log, lines are printed at
growing intervals. Work has phases (checking, verifying, writing), each with a
bar of its own: a phase begins when the bytes in all change or start over.
"""

from collections.abc import Callable
import os
import sys
import time
from typing import TextIO

from rich import console as rich_console
from rich import progress as rich_progress

_FIRST_INTERVAL = 10.0  # seconds between the lines of a log
_LAST_INTERVAL = 300.0
_GROWTH = 0.05  # of the time since the phase began, in between


def size(n_bytes: float) -> str:
  """Bytes in decimal units, as disks are sold.

  >>> size(950), size(1_234_567), size(688_586_727_753)
  ('950 B', '1.2 MB', '688.6 GB')
  """
  for unit in ("B", "kB", "MB", "GB"):
    if n_bytes < 1000:
      return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
    n_bytes /= 1000
  return f"{n_bytes:.1f} TB"


class ByteProgress:
  """Called with bytes done, bytes in all and what is being done."""

  def __init__(
    self,
    stream: TextIO | None = None,
    *,
    brief: bool = False,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Draws nothing yet.

    Args:
      stream: where to, by default standard error.
      brief: whether a log gets no line about what takes no time.
      clock: seconds; replaced in tests.
    """
    self._stream = sys.stderr if stream is None else stream
    self._brief = brief
    self._clock = clock
    self._total = -1
    self._done = 0
    self._began = self._last_line = 0.0
    self._bar: rich_progress.Progress | None = None
    self._task = rich_progress.TaskID(0)

  def __enter__(self) -> "ByteProgress":
    return self

  def __exit__(self, *unused_error) -> None:
    self._close()

  def __call__(self, done: int, total: int, words: str) -> None:
    """Shows that `done` of `total` bytes are done, the last of them `words`."""
    if total != self._total or done < self._done:
      self._begin(total)
    self._done = done
    if self._bar is not None:
      self._bar.update(self._task, completed=done, description=words)
      if done >= total:
        self._close()
    elif self._is_due():
      self._last_line = self._clock()
      print(self._line(words), file=self._stream, flush=True)

  def _begin(self, total: int) -> None:
    """Begins a phase."""
    self._close()
    self._total, self._done = total, 0
    self._began = self._last_line = self._clock()
    if self._stream.isatty() and os.environ.get("TERM") != "dumb":
      self._bar = rich_progress.Progress(
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.description}", markup=False),
        console=rich_console.Console(file=self._stream),
      )
      self._task = self._bar.add_task("", total=total)
      self._bar.start()

  def _close(self) -> None:
    if self._bar is not None:
      self._bar.stop()
      self._bar = None

  def _is_due(self) -> bool:
    interval = _GROWTH * (self._clock() - self._began)
    interval = min(max(interval, _FIRST_INTERVAL), _LAST_INTERVAL)
    late = self._clock() - self._last_line >= interval
    return late or (self._done >= self._total and not self._brief)

  def _line(self, words: str) -> str:
    """One line of a log."""
    share = self._done / max(self._total, 1)
    seconds = self._clock() - self._began
    parts = [f"{size(self._done)} of {size(self._total)}", f"{share:.0%}"]
    if seconds > 0:
      parts.append(f"{size(self._done / seconds)}/s")
      if 0 < self._done < self._total:
        left = seconds / self._done * (self._total - self._done)
        parts.append(f"ETA {left:.0f} s")
    return f"{', '.join(parts)}: {words}"
