"""Where a result comes from: versions, machine, commit and command line."""

from importlib import metadata
import pathlib
import platform
import shlex
import subprocess
import sys

_PACKAGES = (
  "dsx",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "gin-config",
  "numpy",
)
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def provenance() -> dict[str, str]:
  """Returns what to write beside a checkpoint, one short text a name.

  `commit` is the repository's commit, followed by `+changes` where files that
  git tracks were edited, or `unknown` outside a repository. Packages that are
  not installed are left out.
  """
  found = {
    "python": platform.python_version(),
    "platform": platform.platform(),
    "command": shlex.join([sys.executable, *sys.argv]),
    "commit": commit(_ROOT),
  }
  for package in _PACKAGES:
    try:
      found[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      continue
  return found


def commit(folder: pathlib.Path) -> str:
  """Returns the git commit of the repository at `folder`, or 'unknown'.

  A package that lies in a folder of somebody's own repository, such as a
  virtual environment, is not of that repository's commit.
  """
  if not (folder / ".git").exists():
    return "unknown"
  head = _git(folder, "rev-parse", "HEAD")
  if not head:
    return "unknown"
  changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
  return f"{head}+changes" if changes else head


def _git(folder: pathlib.Path, *arguments: str) -> str:
  try:
    result = subprocess.run(
      ["git", "-C", str(folder), *arguments],
      capture_output=True,
      text=True,
      timeout=10,
      check=False,
    )
  except (OSError, subprocess.SubprocessError):
    return ""
  return result.stdout.strip() if result.returncode == 0 else ""
