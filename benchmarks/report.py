"""Tables of measurements: printed, and kept with date and hardware."""

import datetime
import os
import pathlib
import platform

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "docs/benchmarks.md"


def table(header: list[str], rows: list[list[str]]) -> str:
  """A Markdown table whose columns also line up on a terminal.

  >>> print(table(["side", "s"], [["dsx", "0.1"]]))
  | side | s   |
  | ---- | --- |
  | dsx  | 0.1 |
  """
  columns = list(zip(header, *rows, strict=True))
  widths = [max(map(len, column)) for column in columns]
  lines = [header, ["-" * width for width in widths], *rows]
  return "\n".join(
    f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |"
    for line in lines
  )


def processor() -> str:
  """The processor's name and the number of cores this process may use."""
  name = platform.processor() or platform.machine()
  try:
    info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:
    info = ""
  for line in info.splitlines():
    if line.startswith("model name"):
      name = line.partition(":")[2].strip()
      break
  return f"{name}, {len(os.sched_getaffinity(0))} cores"


def record(title: str, body: str) -> None:
  """Appends a dated section to docs/benchmarks.md.

  Args:
    title: of the section.
    body: Markdown.
  """
  today = datetime.date.today().isoformat()
  RESULTS.parent.mkdir(exist_ok=True)
  if not RESULTS.exists():
    RESULTS.write_text(
      "# Measurements\n\nAppended by the scripts in `benchmarks/` with "
      "`--record`; newest last.\n",
      encoding="utf-8",
    )
  with RESULTS.open("a", encoding="utf-8") as results:
    results.write(f"\n## {title}\n\n{today}, {processor()}.\n\n{body}\n")
