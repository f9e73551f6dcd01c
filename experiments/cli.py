"""What the binaries share: flags, gin and how a run ends.

A binary is a `main`, the dotted name of the class that its gin files describe,
and a call of `run`:

    from experiments import cli

    _TARGET = "dsx.training.pretraining.Pretraining"

    def main(argv):
      del argv
      pretraining = cli.build(_TARGET)
      ...

    if __name__ == "__main__":
      cli.run(main, target=_TARGET)

`run` checks flags and gin files before anything heavy is imported, so modules
that import JAX are imported inside `main`, or by `build`. Files take effect in
order, then bindings in order; the last one wins (t5x's convention).
`--gin.X=Y` is short for `--gin_bindings='X=Y'`.

Exit codes: 0 done, 1 an error that one line explains, 2 wrong flags or gin
files, 75 another process of the run was lost, 130 interrupted, 141 nobody reads
the output any more.
"""

from collections.abc import Callable
from collections.abc import Sequence
import os
import pathlib
import re
import shlex
import sys
import textwrap
from typing import Any
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging

from experiments import configuration
from experiments import provenance as provenance_lib
from experiments import screen
from experiments.bindings import problems

CONFIG_FILE = configuration.FILE

GIN_FILE = flags.DEFINE_multi_string(
  "gin_file", [], "Gin file; may be repeated, later ones win."
)
GIN_BINDINGS = flags.DEFINE_multi_string(
  "gin_bindings",
  [],
  "Gin binding, such as 'Pretraining.seed = 1'; may be repeated and wins over"
  " files. --gin.Pretraining.seed=1 is the same.",
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of checkpoints, metrics and the report; by default runs/ and the gin"
  f" file's name. Without --gin_file its {CONFIG_FILE} is used.",
)
SEED = flags.DEFINE_integer("seed", None, "Sets the field `seed`.")
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what would be run, and compute nothing."
)
PRINT_CONFIG = flags.DEFINE_bool(
  "print_config", False, "Print every binding in use, with defaults."
)

# Set by whoever started this process with flags that nobody types.
RESUME_VARIABLE = "DSX_RESUME_COMMAND"

_SHARED = ("gin_file", "gin_bindings", "workdir", "seed", "dry_run")
_SHARED += ("print_config",)
_MOST_PROBLEMS = 20
_HELP = """usage: python -m experiments.{name} --gin_file=FILE [flags]

{doc}

flags:
{flags}
"""


def run(
  main: Callable[[Sequence[str]], int | None],
  *,
  target: str,
  also: Sequence[str] = (),
  check: bool = True,
) -> None:
  """Runs a binary and exits.

  Args:
    main: called with the program's name once flags and gin files are checked.
    target: full dotted name of the class that the gin files describe.
    also: names of further classes whose bindings are no mistake.
    check: whether the gin files are to be checked as they are; without it
      `main` does so itself, with more bindings.
  """
  screen.hush()

  def guarded(argv):
    return _guarded(lambda: _start(main, argv, target, also, check))

  app.run(guarded, argv=_rewritten(sys.argv), flags_parser=_parse_flags)


def build(target: str) -> Any:
  """Returns the object that the gin files describe, ready to be used.

  With `--print_config` its configuration goes to standard output.

  Args:
    target: full dotted name of its class, imported here.

  Raises:
    ValueError: the class refuses its values.
  """
  built = configuration.build(target)
  if PRINT_CONFIG.value:
    print(f"# Bound by files and flags:\n{configuration.requested(target)}")
    print(f"# In use:\n{configuration.operative()}", flush=True)
  return built


def operative_config() -> str:
  """Returns every value in use as a gin file, to be saved as `CONFIG_FILE`."""
  return configuration.operative()


def provenance() -> dict[str, str]:
  """Returns versions, platform, commit and command line."""
  return provenance_lib.provenance()


def workdir() -> pathlib.Path:
  """Returns the folder of the run, absolute; it may not exist yet."""
  if WORKDIR.value:
    return pathlib.Path(WORKDIR.value).expanduser().absolute()
  name = pathlib.Path(GIN_FILE.value[0]).stem if GIN_FILE.value else "default"
  return pathlib.Path("runs", name).absolute()


def resume_command(module: str, folder: pathlib.Path | str) -> str:
  """What a person types to go on with this run.

  Args:
    module: the binary, `experiments.pretrain`.
    folder: the run's workdir, said even where it was not given.
  """
  words = ["python", "-m", module, *sys.argv[1:]]
  if not WORKDIR.value:
    words.append(f"--workdir={folder}")
  return os.environ.get(RESUME_VARIABLE) or shlex.join(words)


def _rewritten(argv: Sequence[str]) -> list[str]:
  """Returns `argv` with t5x's `--gin.X=Y` written out."""
  return [
    re.sub(r"^--?gin\.", "--gin_bindings=", argument) for argument in argv
  ]


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags; prints help or one line about a wrong flag and exits."""
  if {"--help", "-help", "-h", "--helpshort"}.intersection(argv[1:]):
    sys.exit(_guarded(lambda: print(_help()) or 0))
  try:
    left = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    known = [f"--{name}" for name in flags.FLAGS]
    advice = problems.suggestion(f"--{error.flagname}", known, quote="")
    _fail(f"--{error.flagname}: unknown flag; {advice}")
  except flags.Error as error:
    _fail(str(error))
  if left[1:]:
    _fail(f"{left[1]!r}: expected flags only; write --gin_file={left[1]}")
  return left


def _fail(message: str) -> NoReturn:
  print(problems.printable(message), file=sys.stderr)
  sys.exit(2)


def _help() -> str:
  main = sys.modules["__main__"]
  own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  names = list(dict.fromkeys((*_SHARED, *(flag.name for flag in own))))
  lines = []
  for name in names:
    flag = flags.FLAGS[name]
    text = textwrap.wrap(flag.help.partition(";\n")[0], 74)
    lines += [f"  --{name}", *(f"      {line}" for line in text)]
  spec = getattr(main, "__spec__", None)
  return _HELP.format(
    name=spec.name.rpartition(".")[-1] if spec else "NAME",
    doc=(main.__doc__ or "").strip(),
    flags="\n".join(lines),
  )


def _start(main, argv, target: str, also: Sequence[str], check: bool) -> int:
  """Checks what is asked for, then calls `main`."""
  screen.set_up_logging(everything=logging.get_verbosity() >= logging.DEBUG)
  if not check:
    return main(argv) or 0
  files = list(GIN_FILE.value)
  if not files and WORKDIR.value:
    saved = workdir() / CONFIG_FILE
    files = [str(saved)] if saved.is_file() else []
  configuration.prepare(
    target, files, GIN_BINDINGS.value, also=also, seed=SEED.value
  )
  return main(argv) or 0


def _unheard() -> int:
  """Gives what is left in buffers to nobody; returns the exit code for it."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, sys.stdout.fileno())
  return 141


def _guarded(action: Callable[[], int]) -> int:
  """Returns the exit code of `action`, having explained expected errors."""
  try:
    code = action()
    sys.stdout.flush()
    return code
  except problems.Refused as error:
    for problem in error.problems[:_MOST_PROBLEMS]:
      print(problem, file=sys.stderr)
    if len(error.problems) > _MOST_PROBLEMS:
      left = len(error.problems) - _MOST_PROBLEMS
      print(f"and {left} more; mend these first", file=sys.stderr)
    return 2
  except BrokenPipeError:
    return _unheard()
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  except (OSError, ValueError) as error:
    explanation = screen.explanation(error)
    if explanation is None:
      raise
    logging.debug("where it came from:", exc_info=True)
    print(explanation, file=sys.stderr)
    return 1
