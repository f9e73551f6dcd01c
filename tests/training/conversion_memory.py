"""Converts a folder to a workdir and back, and prints what memory it took.

    python -m tests.training.conversion_memory FOLDER SOURCE...

A first, small conversion has everything loaded and compiled. The peak of the
second, above what the process held before it, is printed in bytes.
"""

import pathlib
import sys

from dsx.convert import conversion
from dsx.training import exported
from dsx.training import imported


def _status(field: str) -> int:
  """A number of bytes that Linux knows of this process."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  line = next(line for line in lines if line.startswith(f"{field}:"))
  return 1024 * int(line.split()[1])


def peak(run) -> int:
  """Bytes that `run()` takes at most, above what is held before."""
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  before = _status("VmRSS")
  run()
  return _status("VmHWM") - before


def main(folder: str, *sources: str) -> None:
  """Converts each source and prints the two peaks of the last one."""
  options = conversion.Conversion(target_format="hf")
  for source in sources:
    home = pathlib.Path(folder) / pathlib.Path(source).name
    run, back = home / "run", home / "back"
    one = peak(lambda source=source, run=run: imported.write(source, run))
    two = peak(lambda run=run, back=back: exported.write(run, back, options))
  print(one, two)


if __name__ == "__main__":
  main(*sys.argv[1:])
