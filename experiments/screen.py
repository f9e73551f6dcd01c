"""What a run prints, and how it ends when something goes wrong.

A person should see the lines of this project and not those of its libraries:
their INFO lines are dropped, their warnings kept, and C++ is told to be quiet
before it is loaded. `--verbosity=1` shows everything.
"""

import logging
import os
import pathlib
import re
import sys
import traceback

from absl import logging as absl_logging

from experiments.bindings import problems

_PACKAGES = pathlib.Path(__file__).resolve().parents[1]
_OURS = (
  str(_PACKAGES / "dsx") + os.sep,
  str(_PACKAGES / "experiments") + os.sep,
)
# How gin ends the message of an exception that a class raised in its hands.
_GIN_SUFFIX = re.compile(r"\n  In call to configurable '(\w+)'")


def hush() -> None:
  """Quiets the libraries. Call it before JAX or TensorFlow is imported."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def set_up_logging(*, everything: bool) -> None:
  """Gives log lines a short form and drops INFO lines of libraries.

  Args:
    everything: keep also the libraries' INFO lines.
  """
  # absl's own handler writes past a progress line that redirects the stream.
  for handler in list(logging.root.handlers):
    logging.root.removeHandler(handler)
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(
    logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
  )
  if not everything:
    handler.addFilter(_Ours())
  logging.root.addHandler(handler)
  level = absl_logging.converter.absl_to_standard(absl_logging.get_verbosity())
  logging.root.setLevel(level)


class _Ours(logging.Filter):
  """Lets pass what this project logs, and warnings of anybody."""

  def filter(self, record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or is_ours(record.pathname)


def is_ours(filename: str) -> bool:
  """Whether a source file belongs to this project."""
  return os.path.abspath(filename).startswith(_OURS)


def explanation(error: Exception) -> str | None:
  """Returns one line about an expected error, None for an unexpected one.

  Expected are errors of the operating system, and a ValueError that a `raise`
  statement of this project raised: it says what came, what was expected and
  what to do, and a traceback would add nothing. All else is a mistake in the
  code, where the traceback is what one needs.
  """
  if isinstance(error, OSError):
    if error.strerror and error.filename:
      return problems.printable(f"{error.filename}: {error.strerror}")
    return problems.printable(str(error) or type(error).__name__)
  if not isinstance(error, ValueError):
    return None
  frames = traceback.extract_tb(error.__traceback__)
  if not frames or not is_ours(frames[-1].filename):
    return None
  if not (frames[-1].line or "").startswith("raise"):
    return None
  return problems.printable(message(error))


def message(error: Exception) -> str:
  """Returns the message of `error` without what gin added to it."""
  return _GIN_SUFFIX.split(str(error))[0]


def raised_in(error: Exception) -> str | None:
  """Returns the name of the class in whose construction `error` was raised."""
  match = _GIN_SUFFIX.search(str(error))
  return match[1] if match else None
