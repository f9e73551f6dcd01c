"""What the scripts share that try bad inputs: processes, disks and the page.

A case is a name and a function that gives a binary something bad and returns
how the process ended. docs/bad_inputs.md has a section for each script.
"""

from collections.abc import Callable
from collections.abc import Iterable
import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

from benchmarks import report
from experiments import provenance

HEADER = ("input", "what it printed", "exit code", "seconds")
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "docs" / "bad_inputs.md"
_LIMIT = 300  # seconds that any one process may take
_INTRODUCTION = """\
# Bad inputs

Every bad input tried, what it printed on standard error (one line, no
traceback), and its exit code. `DIR` stands for a temporary folder,
`REPOSITORY` for this one; exit code 2 is a mistake found before JAX is
imported. Seconds are those of a busy machine.
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a command ended.

  Attributes:
    code: exit code.
    lines: of standard error.
    output: standard output, or what was found afterwards.
    seconds: how long it took.
  """

  code: int
  lines: list[str]
  output: str
  seconds: float


def call(
  binary: str,
  arguments: Iterable[str],
  *,
  compiled: pathlib.Path,
  limit: float = _LIMIT,
  **environment: str,
) -> Outcome:
  """Runs `python -m experiments.<binary>` on the CPU.

  Args:
    binary: which.
    arguments: its flags.
    compiled: folder that keeps compiled programs.
    limit: seconds that it may take.
    **environment: further variables.

  Raises:
    subprocess.TimeoutExpired: it took longer; it is killed.
  """
  variables = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    **environment,
  }
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-m", f"experiments.{binary}", *arguments],
    cwd=_ROOT,
    env=variables,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=limit,
    check=False,
  )
  seconds = time.monotonic() - start
  lines = [line for line in done.stderr.splitlines() if line.strip()]
  return Outcome(done.returncode, lines, done.stdout, seconds)


@contextlib.contextmanager
def tmpfs(folder: pathlib.Path, size: str, options: str = ""):
  """Mounts a small file system; root alone may."""
  folder.mkdir(parents=True, exist_ok=True)
  options = f"size={size}{options and ','}{options}"
  mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
  subprocess.run(mount, check=True, capture_output=True)
  try:
    yield folder
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def make_read_only(mounted: pathlib.Path) -> None:
  """Lets nobody write to a `tmpfs` any more."""
  remount = ["mount", "-o", "remount,ro", str(mounted)]
  subprocess.run(remount, check=True)


def fill(mounted: pathlib.Path) -> None:
  """Leaves no room on a `tmpfs`."""
  (mounted / "ballast").write_bytes(b"\0" * shutil.disk_usage(mounted).free)


def mountable(names: Iterable[str], need_mount: Iterable[str]) -> list[str]:
  """The names of the cases that can be tried here."""
  names = list(names)
  with tempfile.TemporaryDirectory() as temporary:
    try:
      with tmpfs(pathlib.Path(temporary, "probe"), "1m"):
        return names
    except (OSError, subprocess.CalledProcessError):
      print("no mounts here: cases of small disks are left out")
      return [name for name in names if name not in need_mount]


def damage(folder: pathlib.Path) -> None:
  """Flips a bit of the largest file below a folder."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 16
  largest.write_bytes(content)


def is_one_line(outcome: Outcome) -> bool:
  """Whether a process failed and said why in one line."""
  told = len(outcome.lines) == 1 and "Traceback" not in outcome.lines[0]
  return outcome.code > 0 and told


def row(name: str, said: str, outcome: Outcome, folder) -> list[str]:
  """One line of the table, `said` with places that stay the same."""
  said = said.replace(str(folder), "DIR").replace(str(_ROOT), "REPOSITORY")
  said = said.replace("|", "\\|").replace("*", "\\*")
  return [name, said, str(outcome.code), f"{outcome.seconds:.0f}"]


def run(
  names: Iterable[str],
  attempt: Callable[[str, pathlib.Path], Outcome],
  passes: Callable[[str, Outcome], bool],
  shown: Callable[[str, Outcome, pathlib.Path], list[str]],
) -> tuple[list[list[str]], list[str]]:
  """Tries every case.

  Args:
    names: of the cases.
    attempt: tries one in a fresh folder; `compiled` in it outlives the case.
    passes: whether it ended as it should.
    shown: its row of the table.

  Returns:
    The rows, and the names of the cases that failed.
  """
  rows, failed = [], []
  with tempfile.TemporaryDirectory(prefix="dsx_bad_") as compiled:
    for name in names:
      with tempfile.TemporaryDirectory(prefix="dsx_bad_") as temporary:
        folder = pathlib.Path(temporary)
        (folder / "compiled").symlink_to(compiled)
        outcome = attempt(name, folder)
        rows.append(shown(name, outcome, folder))
      good = passes(name, outcome)
      failed += [] if good else [name]
      print(f"{'ok  ' if good else 'FAIL'} {rows[-1]}", flush=True)
      if not good:
        print("\n".join(outcome.lines[-12:]), flush=True)
  return rows, failed


def record(title: str, script: str, words: str, tables: str) -> None:
  """Writes a script's own section of docs/bad_inputs.md.

  Args:
    title: of the section.
    script: name of the module in `benchmarks`.
    words: what was tried.
    tables: Markdown.
  """
  versions = provenance.provenance()
  body = (
    f"## {title}\n\n{words}\n\n"
    f"`python -m benchmarks.{script} --record`, "
    f"{datetime.date.today().isoformat()}, {report.processor()}, Python "
    f"{versions['python']}, jax {versions['jax']}, commit "
    f"{versions['commit'][:10]}.\n\n{tables}\n"
  )
  old = re.split(r"^(?=## )", _PAGE.read_text(), flags=re.MULTILINE)[1:]
  sections = {section.partition("\n")[0]: section.strip() for section in old}
  sections[f"## {title}"] = body.strip()
  _PAGE.write_text(
    "\n\n".join([_INTRODUCTION.strip(), *sections.values()]) + "\n"
  )
