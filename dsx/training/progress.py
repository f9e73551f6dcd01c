"""What a person sees while a model trains: one line, and at the end a table.

On a terminal the line is redrawn in place; in a log, lines are printed at
growing intervals, so that a run of five minutes and a run of a month both
leave a log that can be read. The words are the same in both.
"""

from collections.abc import Callable
from collections.abc import Mapping
import logging
import math
import os
import sys
import time
from typing import Any
from typing import TextIO

from rich import console as rich_console
from rich import live
from rich import progress_bar
from rich import table
from rich import text

_FIRST_INTERVAL = 10.0  # seconds between the lines of a log
_LAST_INTERVAL = 300.0
_GROWTH = 0.02  # of the time since the start, in between
_MIN_BAR = 10  # columns
_SMOOTHING = 0.8  # of the rate that the ETA is computed from, per update

# The order in which fields leave a line that is too narrow for all of them.
_DISPENSABLE = ("data", "MFU", "val", "grad", "bits/byte", "tok/s")


def count(number: float) -> str:
  """A number to three digits: 950, 12.3k, 9.83M, 671B, 14.8T.

  >>> count(12345), count(671026419200)
  ('12.3k', '671B')
  """
  if not math.isfinite(number):
    return "?"
  if abs(number) < 999.5:
    return f"{number:.3g}"
  for unit in ("k", "M", "B", "T"):
    number /= 1000
    if abs(number) < 999.5 or unit == "T":
      break
  places = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
  return f"{number:.{places}f}{unit}"


def duration(seconds: float) -> str:
  """Seconds in the two largest units: 41s, 3m20s, 5h02m, 12d03h.

  >>> duration(200), duration(41.2)
  ('3m20s', '41s')
  """
  if not math.isfinite(seconds):
    return "?"
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02d}s"
  minutes = seconds // 60
  if minutes < 24 * 60:
    return f"{minutes // 60}h{minutes % 60:02d}m"
  return f"{minutes // 1440}d{minutes % 1440 // 60:02d}h"


def _number(record: Mapping[str, Any], field: str) -> float | None:
  """A field as a float; None when the record has none, or has null."""
  value = record.get(field)
  return None if value is None else float(value)


def _fields(
  record: Mapping[str, Any], eta: float | None, validation: float | None
) -> dict[str, str]:
  """The words of a line, in reading order; absent numbers are left out."""
  values = {
    "loss": (_number(record, "loss"), "loss {:.3f}"),
    "bits/byte": (_number(record, "bits_per_byte"), "{:.3f} bits/byte"),
    "val": (validation, "val {:.3f}"),
    "grad": (_number(record, "grad_norm"), "grad {:.2f}"),
    "tok/s": (_number(record, "tokens_per_second"), "{} tok/s"),
    "MFU": (_number(record, "mfu"), "MFU {:.1%}"),
    "data": (_number(record, "data_wait"), "data {:.1%}"),
    "ETA": (eta, "ETA {}"),
    "skipped": (_number(record, "skipped") or None, "skipped {:.0f}"),
    "dropped": (_number(record, "dropped") or None, "dropped {:.2%}"),
  }
  written = {"tok/s": count, "ETA": duration}
  return {
    name: words.format(written[name](value) if name in written else value)
    for name, (value, words) in values.items()
    # A NaN loss must be seen; a rate that is not known need not.
    if value is not None
    and (math.isfinite(value) or name not in ("tok/s", "MFU", "data", "ETA"))
  }


def _redirect_logging(old: Any, new: Any) -> None:
  """Makes log messages go through the terminal line, not across it."""
  for handler in logging.getLogger().handlers:
    handler = getattr(handler, "python_handler", handler)  # absl wraps its own
    if isinstance(handler, logging.StreamHandler) and handler.stream is old:
      handler.setStream(new)


class Progress:
  """The progress of one run; a context manager.

  >>> with Progress(2) as progress:
  ...   progress.update({"kind": "train", "step": 1, "loss": 5.5})
  step 1/2  loss 5.500
  """

  def __init__(
    self,
    total_steps: int,
    stream: TextIO | None = None,
    *,
    total_tokens: int | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Draws nothing yet.

    Args:
      total_steps: steps of the whole run, those before a resumption included.
      stream: where to, by default standard output.
      total_tokens: tokens of the whole run. With it the time left is right
        while the batch size still grows; without it, it follows the steps.
      clock: seconds; replaced in tests.
    """
    self._total_steps = total_steps
    self._total_tokens = total_tokens
    self._stream = sys.stdout if stream is None else stream
    self._clock = clock
    self._start = clock()
    self._last_line = -math.inf
    self._last: tuple[float, int] | None = None  # time and step
    self._step = 0
    self._rate: float | None = None  # tokens or steps a second
    self._validation: float | None = None
    self._words: dict[str, str] = {}
    self._doing = "starting"
    self._unprinted = ""
    self._live: live.Live | None = None
    self._console = rich_console.Console(file=self._stream, highlight=False)

  def __enter__(self) -> "Progress":
    if self._stream.isatty() and os.environ.get("TERM") != "dumb":
      stderr = sys.stderr
      self._live = live.Live(
        get_renderable=self._render,
        console=self._console,
        refresh_per_second=4,
      )
      self._live.start(refresh=True)
      _redirect_logging(stderr, sys.stderr)
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def close(self) -> None:
    """Leaves the last line standing; a second call does nothing."""
    if self._unprinted:
      self.say(self._unprinted)
      self._unprinted = ""
    if self._live is not None:
      proxy = sys.stderr
      self._live.stop()
      self._live = None
      _redirect_logging(proxy, sys.stderr)

  def say(self, words: str) -> None:
    """Prints a line of its own, above the progress line."""
    if self._live is not None:
      self._console.print(text.Text(words), soft_wrap=True)
    else:
      print(words, file=self._stream, flush=True)

  def doing(self, words: str) -> None:
    """Says what takes time while no step is finished, as in `compiling`."""
    self._doing = words
    if self._live is None:
      self.say(f"{words} ...")

  def update(self, record: Mapping[str, Any]) -> None:
    """Shows a record as `metrics.Writer.write` takes it.

    Args:
      record: of kind `train` (the line) or `validation` (a line that stays);
        other kinds are ignored.
    """
    if record["kind"] == "validation":
      self._validation = _number(record, "bits_per_byte")
      words = _fields(record, None, None)
      self.say(
        "  ".join([self._position(record), "validation", *words.values()])
      )
    elif record["kind"] == "train":
      now = self._clock()
      eta = self._time_left(record, now)
      self._step = int(record["step"])
      self._words = _fields(record, eta, self._validation)
      if self._live is None:
        words = [self._position(record), *self._words.values()]
        self._unprinted = "  ".join(words)
        if self._is_due(now):
          self._last_line = now
          self.say(self._unprinted)
          self._unprinted = ""

  def _position(self, record: Mapping[str, Any]) -> str:
    total = f"{self._total_steps:,}"
    return f"step {int(record['step']):>{len(total)},}/{total}"

  def _is_due(self, now: float) -> bool:
    interval = _GROWTH * (now - self._start)
    interval = min(max(interval, _FIRST_INTERVAL), _LAST_INTERVAL)
    last = self._step >= self._total_steps
    return last or now - self._last_line >= interval

  def _time_left(self, record: Mapping[str, Any], now: float) -> float | None:
    """Seconds to the end at the smoothed rate, or None when not yet known."""
    if self._total_tokens is not None:
      rate = _number(record, "tokens_per_second")
      left = self._total_tokens - int(record["tokens"])
    else:
      last, self._last = self._last, (now, int(record["step"]))
      elapsed = now - last[0] if last else 0.0
      rate = (self._last[1] - last[1]) / elapsed if last and elapsed else None
      left = self._total_steps - int(record["step"])
    if rate is not None and math.isfinite(rate) and rate > 0:
      old = rate if self._rate is None else self._rate
      self._rate = _SMOOTHING * old + (1 - _SMOOTHING) * rate
    return None if self._rate is None else left / self._rate

  def _render(self) -> table.Table:
    """The line for a terminal: a bar, and as many words as fit."""
    width = self._console.width
    words = dict(self._words)
    position = self._position({"step": self._step})
    if not words:
      words = {
        "doing": self._doing,
        "for": duration(self._clock() - self._start),
      }
    for name in _DISPENSABLE:
      if len("  ".join([position, *words.values()])) + 1 + _MIN_BAR > width:
        words.pop(name, None)
    line = text.Text("  ".join([position, *words.values()]), no_wrap=True)
    grid = table.Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    bar = progress_bar.ProgressBar(self._total_steps, self._step)
    grid.add_row(bar, line)
    return grid


_SUMMARY = {
  "steps": ("steps", "{:,}".format),
  "tokens": ("tokens", count),
  "parameters": ("parameters", count),
  "train_loss": ("training loss", "{:.3f} nats/token".format),
  "validation_bits_per_byte": ("validation", "{:.3f} bits/byte".format),
  "bigram_bits_per_byte": ("a bigram model", "{:.3f} bits/byte".format),
  "max_violation": ("expert load, MaxVio", "{:.2f}".format),
  "tokens_per_second": ("throughput", lambda value: f"{count(value)} tok/s"),
  "mfu": ("MFU", "{:.1%}".format),
  "wall_seconds": ("time", duration),
  "state_digest": ("state", lambda value: f"sha256 {str(value)[:16]}"),
}


def summary(values: Mapping[str, Any], stream: TextIO | None = None) -> None:
  """Prints how a run ended.

  Args:
    values: the fields of `summary.json`. Strings of other names are printed
      below as they are; `resume_command` comes last, alone on its line and
      unwrapped, to be copied.
    stream: where to, by default standard output.
  """
  console = rich_console.Console(
    file=sys.stdout if stream is None else stream, highlight=False
  )
  rows = [
    (label, form(values[name]))
    for name, (label, form) in _SUMMARY.items()
    if values.get(name) is not None
  ]
  rows += [
    (name.replace("_", " "), str(value))
    for name, value in values.items()
    if name not in (*_SUMMARY, "resume_command") and value is not None
  ]
  width = max((len(label) for label, _ in rows), default=0)
  console.print()
  for label, value in rows:
    words = text.Text.assemble((label.ljust(width), "dim"), "  ", value)
    console.print(words, soft_wrap=True)
  if values.get("resume_command"):
    words = text.Text(f"to resume: {values['resume_command']}")
    console.print(words, soft_wrap=True)
