"""What people see: reasoning apart, no escape sequences, a line of progress."""

import io
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.inference import terminal
from dsx.inference import thinking

_PARTS = [("why", ""), ("?", ""), ("", "so"), ("", ".")]


class _Screen(io.StringIO):
  def isatty(self):
    return True


def _printed(out, parts, **more):
  printer = terminal.Printer(out, **more)
  for part in parts:
    printer.part(thinking.Part(*part))
  printer.end()
  return out.getvalue()


class PrinterTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    environment = mock.patch.dict(os.environ, {"TERM": "xterm"})
    self.enter_context(environment)

  def test_reasoning_is_dim_on_a_screen(self):
    found = _printed(_Screen(), _PARTS)
    self.assertEqual(found, "\x1b[2mwhy?\x1b[0m\n\nso.\n")

  def test_reasoning_has_tags_in_a_pipe(self):
    found = _printed(io.StringIO(), _PARTS)
    self.assertEqual(found, "<think>\nwhy?\n</think>\n\nso.\n")
    with mock.patch.dict(os.environ, {"TERM": "dumb"}):
      self.assertEqual(_printed(_Screen(), _PARTS), found)

  def test_reasoning_is_hidden(self):
    self.assertEqual(_printed(io.StringIO(), _PARTS, shows=False), "so.\n")
    self.assertEqual(_printed(io.StringIO(), _PARTS[:2], shows=False), "\n")
    waiting = "\x1b[2mthinking ...\x1b[0m\r\x1b[K"
    found = _printed(_Screen(), _PARTS, shows=False)
    self.assertEqual(found, f"{waiting}so.\n")
    found = _printed(_Screen(), _PARTS[:2], shows=False)
    self.assertEqual(found, f"{waiting}\n")

  def test_an_answer_that_ends_in_its_reasoning(self):
    self.assertEqual(_printed(_Screen(), _PARTS[:2]), "\x1b[2mwhy?\x1b[0m\n")
    self.assertEqual(_printed(io.StringIO(), _PARTS[:2]), "<think>\nwhy?\n")

  def test_a_screen_gets_no_control_characters(self):
    text = "a\x1b]0;title\x07\x9b2J\r\x7f\tb\né\u2028"
    parts = [("", text)]
    self.assertEqual(
      _printed(_Screen(), parts),
      "a\ufffd]0;title\ufffd\ufffd2J\ufffd\ufffd\tb\né\u2028\n",
    )
    self.assertEqual(_printed(io.StringIO(), parts), text + "\n")
    self.assertEqual(
      _printed(_Screen(), [("\x1bc", "")]), "\x1b[2m\ufffdc\x1b[0m\n"
    )


class ProgressTest(parameterized.TestCase):
  def run_for(self, out, times):
    self.now = 0.0
    progress = terminal.Progress(9, out, clock=lambda: self.now)
    for i, self.now in enumerate(times):
      progress.update(i, 100 * i)
    progress.close()
    return out.getvalue()

  def test_on_a_screen_it_is_redrawn_and_goes(self):
    with mock.patch.dict(os.environ, {"TERM": "xterm"}):
      found = self.run_for(_Screen(), [0.01, 0.5, 0.55, 2.0])
    first = "1 of 9 texts, 100 tokens, 200 tokens/s"
    last = "3 of 9 texts, 300 tokens, 150 tokens/s"
    self.assertEqual(found, f"\r{first}\r{last}\r{' ' * len(last)}\r")

  def test_in_a_log_lines_come_seldom(self):
    times = [1.0, 11.0, 12.0, 22.0, 200.0, 215.0, 225.0]
    lines = self.run_for(io.StringIO(), times).splitlines()
    self.assertEqual([line[0] for line in lines], ["1", "3", "4", "6"])
    self.assertEqual(lines[0], "1 of 9 texts, 100 tokens, 9 tokens/s")


class LinesTest(parameterized.TestCase):
  def test_from_a_pipe(self):
    found = list(terminal.lines(io.StringIO("a \r\n\nb")))
    self.assertEqual(found, ["a ", "", "b"])

  def test_from_a_person(self):
    with mock.patch("builtins.input", side_effect=["a", "b", EOFError]) as ask:
      self.assertEqual(list(terminal.lines(_Screen())), ["a", "b"])
    ask.assert_called_with("> ")


if __name__ == "__main__":
  absltest.main()
