"""Lines of a log and the bar of a terminal."""

import io

from absl.testing import absltest
from absl.testing import parameterized

from dsx.convert import byte_progress


class _Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


class ByteProgressTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e15, "2000.0 TB")
  )
  def test_size(self, n_bytes, shown):
    self.assertEqual(byte_progress.size(n_bytes), shown)

  def test_lines_of_a_log(self):
    """Ten seconds apart at least, and one at the end of each phase."""
    now = 0.0
    stream = io.StringIO()
    with byte_progress.ByteProgress(stream, clock=lambda: now) as progress:
      for phase in ("checking", "writing"):
        for done in range(0, 101, 4):
          progress(done * 10**6, 100 * 10**6, f"{phase} t{done}")
          now += 1.0
    self.assertEqual(
      stream.getvalue().splitlines(),
      [
        "40.0 MB of 100.0 MB, 40%, 4.0 MB/s, ETA 15 s: checking t40",
        "80.0 MB of 100.0 MB, 80%, 4.0 MB/s, ETA 5 s: checking t80",
        "100.0 MB of 100.0 MB, 100%, 4.0 MB/s: checking t100",
        "40.0 MB of 100.0 MB, 40%, 4.0 MB/s, ETA 15 s: writing t40",
        "80.0 MB of 100.0 MB, 80%, 4.0 MB/s, ETA 5 s: writing t80",
        "100.0 MB of 100.0 MB, 100%, 4.0 MB/s: writing t100",
      ],
    )

  def test_a_brief_log_has_no_line_about_what_takes_no_time(self):
    now, stream = 0.0, io.StringIO()
    with byte_progress.ByteProgress(
      stream, brief=True, clock=lambda: now
    ) as progress:
      for done in range(0, 101, 10):
        progress(done, 100, f"reading t{done}")
        now += 0.5
      for done in range(0, 101, 50):
        progress(done, 100, f"again t{done}")
        now += 12.0
    self.assertEqual(
      [line.split(": ")[1] for line in stream.getvalue().splitlines()],
      ["again t50", "again t100"],
    )

  def test_bar_of_a_terminal(self):
    stream = _Terminal()
    with absltest.mock.patch.dict(
      "os.environ", {"TERM": "xterm", "COLUMNS": "120"}
    ):
      with byte_progress.ByteProgress(stream) as progress:
        progress(50, 100, "checking [a]")
        progress(100, 100, "checking [b]")
    self.assertIn("100/100 bytes", stream.getvalue())
    self.assertIn("checking [b]", stream.getvalue())

  def test_nothing_to_do(self):
    stream = io.StringIO()
    with byte_progress.ByteProgress(stream, clock=lambda: 0.0) as progress:
      progress(0, 0, "writing x")
    self.assertEqual(stream.getvalue(), "0 B of 0 B, 0%: writing x\n")


if __name__ == "__main__":
  absltest.main()
