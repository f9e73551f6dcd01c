"""Tables of measurements: printed, and kept with date and hardware."""

import datetime
import os
import pathlib
import platform
import subprocess

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


def commit() -> str:
  """The commit that is checked out, with `+` if files differ from it."""
  described = subprocess.run(
    ["git", "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"],
    cwd=RESULTS.parents[1],
    capture_output=True,
    text=True,
  )
  return described.stdout.strip() or "unknown"


def record(title: str, body: str) -> None:
  """Appends a section to docs/benchmarks.md, with date, hardware and commit.

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
    results.write(
      f"\n## {title}\n\n{today}, {processor()}, commit {commit()}.\n\n{body}\n"
    )
