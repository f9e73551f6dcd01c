"""What a person sees: lines of a log, the line on a terminal, the summary."""

import io
import os
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.training import progress

_FULL = {
  "kind": "train",
  "step": 120,
  "tokens": 120 * 4096,
  "loss": 1.5231,
  "bits_per_byte": 2.1973,
  "grad_norm": 0.5249,
  "tokens_per_second": 12345.0,
  "mfu": 0.231,
  "data_wait": 0.004,
  "skipped": 0,
}


class _Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _frames(output):
  """The lines that a terminal showed, without colours and cursor movements."""
  plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
  return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, "0"),
    (7, "7"),
    (999, "999"),
    (999.7, "1.00k"),
    (12345, "12.3k"),
    (16000, "16.0k"),
    (9_830_400, "9.83M"),
    (671_026_419_200, "671B"),
    (14.8e12, "14.8T"),
    (5e16, "50000T"),
    (float("nan"), "?"),
  )
  def test_count(self, number, expected):
    self.assertEqual(progress.count(number), expected)

  @parameterized.parameters(
    (0.2, "0s"),
    (59.6, "1m00s"),
    (200, "3m20s"),
    (5 * 3600 + 120, "5h02m"),
    (12 * 86400 + 3 * 3600, "12d03h"),
    (-3, "0s"),
    (float("inf"), "?"),
  )
  def test_duration(self, seconds, expected):
    self.assertEqual(progress.duration(seconds), expected)


class LogTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.clock, self.stream = _Clock(), io.StringIO()

  def _progress(self, total_steps=1200, **kwargs):
    return progress.Progress(
      total_steps, self.stream, clock=self.clock, **kwargs
    )

  def _lines(self):
    return self.stream.getvalue().splitlines()

  def test_whole_line(self):
    with self._progress(total_tokens=1200 * 4096) as bar:
      bar.update({"kind": "validation", "step": 100, "bits_per_byte": 2.21})
      bar.update({**_FULL, "skipped": 2})
    self.assertEqual(
      self._lines(),
      [
        "step   100/1,200  validation  2.210 bits/byte",
        "step   120/1,200  loss 1.523  2.197 bits/byte  val 2.210  grad 0.52"
        "  12.3k tok/s  MFU 23.1%  data 0.4%  ETA 5m58s  skipped 2",
      ],
    )
    self.assertLess(max(map(len, self._lines())), 150)

  def test_nan_loss_is_shown_and_unknown_rates_are_not(self):
    nan = float("nan")
    with self._progress(2) as bar:
      record = {"kind": "train", "step": 1, "loss": nan, "grad_norm": nan}
      bar.update({**record, "mfu": None, "tokens_per_second": nan})
    self.assertEqual(self._lines(), ["step 1/2  loss nan  grad nan"])

  def test_lines_grow_rarer_and_the_last_is_never_lost(self):
    with self._progress(100_000) as bar:
      for step in range(1, 100_001):
        self.clock.now += 1.0
        bar.update({"kind": "train", "step": step, "loss": 1.0})
    steps = [
      int(line.split("/")[0].removeprefix("step").replace(",", ""))
      for line in self._lines()
    ]
    self.assertEqual(steps[:4], [1, 11, 21, 31])
    self.assertEqual(steps[-1], 100_000)
    self.assertEqual(steps[-2] - steps[-3], 300)
    self.assertLess(len(steps), 600)  # of 28 hours

  def test_an_interrupted_run_prints_where_it_was(self):
    with self._progress() as bar:
      for step in (1, 2, 3):
        bar.update({"kind": "train", "step": step, "loss": 1.0})
    self.assertEqual(
      [line.split("/")[0] for line in self._lines()],
      ["step     1", "step     3"],
    )

  def test_time_left_follows_steps_without_a_total_of_tokens(self):
    with self._progress(10) as bar:
      for step in (4, 5):
        self.clock.now += 12.0
        bar.update({"kind": "train", "step": step})
    self.assertEqual(self._lines(), ["step  4/10", "step  5/10  ETA 1m00s"])

  def test_time_left_follows_tokens_while_the_batch_grows(self):
    with self._progress(10, total_tokens=1000) as bar:
      bar.update(
        {"kind": "train", "step": 5, "tokens": 100, "tokens_per_second": 10.0}
      )
    self.assertEndsWith(self._lines()[0], "ETA 1m30s")

  def test_says_and_does(self):
    with self._progress() as bar:
      bar.doing("compiling")
      bar.say("a note with [brackets]")
      bar.update({"kind": "load", "step": 1})
    self.assertEqual(self._lines(), ["compiling ...", "a note with [brackets]"])


class TerminalTest(parameterized.TestCase):
  @parameterized.parameters(60, 80, 100, 150, 220)
  def test_fits_every_width(self, columns):
    stream = _Terminal()
    environ = {"COLUMNS": str(columns), "TERM": "xterm", "LINES": "40"}
    with mock.patch.dict(os.environ, environ):
      with progress.Progress(1200, stream, total_tokens=1200 * 4096) as bar:
        bar.doing("compiling")
        bar.update(_FULL)
        bar.say("checkpoint saved")
    frames = _frames(stream.getvalue())
    self.assertLessEqual(max(map(len, frames)), columns)
    self.assertIn("checkpoint saved", [frame.strip() for frame in frames])
    last = frames[-1]
    for words in ("step   120/1,200", "loss 1.523", "ETA 5m58s"):
      self.assertIn(words, last)
    self.assertEqual("MFU 23.1%" in last, columns >= 150)
    self.assertEqual("data 0.4%" in last, columns >= 150)

  def test_a_dumb_terminal_gets_plain_lines(self):
    stream = _Terminal()
    with mock.patch.dict(os.environ, {"TERM": "dumb"}):
      with progress.Progress(2, stream) as bar:
        bar.update({"kind": "train", "step": 1, "loss": 1.0})
    self.assertEqual(stream.getvalue(), "step 1/2  loss 1.000\n")


class SummaryTest(absltest.TestCase):
  def test_table(self):
    stream = io.StringIO()
    command = "python -m experiments.pretrain " + "--gin_file=[a b] " * 20
    command = command.rstrip()
    progress.summary(
      {
        "resume_command": command,
        "validation_bits_per_byte": 2.0105,
        "steps": 1200,
        "wall_seconds": 301.4,
        "mfu": None,
        "report": "runs/v3_tiny/report",
      },
      stream,
    )
    self.assertEqual(
      stream.getvalue().splitlines(),
      [
        "",
        "steps       1,200",
        "validation  2.010 bits/byte",
        "time        5m01s",
        "report      runs/v3_tiny/report",
        f"to resume: {command}",
      ],
    )


if __name__ == "__main__":
  absltest.main()
