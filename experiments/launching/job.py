"""What is to be started, whatever starts it.

A renderer writes a job into the language of a scheduler, in which a value must
remain a value. What stands inside a name, a number or a path is therefore held
to a few characters here; all else is quoted where it is written (`shell.py`,
`jobset.py`). What is wrong is refused before anything is written.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import NoReturn

from experiments.bindings import problems

# Also the host name of a pod, to which a scheduler adds numbers of its own.
_LONGEST_NAME = 39
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_NODES = 100_000


def refuse(flag: str, message: str) -> NoReturn:
  """Ends with exit code 2 and one line.

  Raises:
    problems.Refused: always.
  """
  place = problems.Place(f"--{flag}", 1)
  raise problems.Refused([problems.Problem(place, message)])


def check(flag: str, value: str, pattern: str, expected: str) -> None:
  """Refuses a value that is not wholly of a pattern.

  Args:
    flag: where it came from.
    value: what came.
    pattern: a regular expression of ASCII characters.
    expected: it in words, with an example.
  """
  if not re.fullmatch(pattern, value, re.ASCII):
    refuse(flag, f"{value!r}: expected {expected}")


def check_text(flag: str, value: str) -> None:
  """Refuses what no process can be given: NUL, and what is not UTF-8."""
  if "\0" in value:
    refuse(flag, f"{value!r}: expected no NUL character; leave it out")
  try:
    value.encode()
  except UnicodeEncodeError:
    refuse(flag, f"{value!r}: expected UTF-8; write it anew")


def check_path(flag: str, value: str) -> None:
  """Refuses a path that means something else on another machine."""
  check_text(flag, value)
  if not value.startswith("/"):
    refuse(
      flag,
      f"{value!r}: expected an absolute path, the same on all machines; write"
      f" --{flag}=/shared/...",
    )


def check_count(flag: str, value: int, least: int = 1) -> None:
  """Refuses a number of things that cannot be."""
  if not least <= value <= _MOST_NODES:
    refuse(flag, f"{value}: expected {least} to {_MOST_NODES}; change it")


def check_variable(name: str, value: str) -> None:
  """Refuses what no shell could export."""
  if not _VARIABLE.fullmatch(name):
    refuse(
      "env",
      f"{name!r}: expected a name of letters, digits and '_'; write"
      " --env=NAME=VALUE",
    )
  check_text("env", value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One run on some machines.

  Attributes:
    name: what the scheduler calls it, a DNS-1123 label that begins with a
      letter, so that it can be a host's name.
    program: the Python interpreter there, and the module to run.
    arguments: flags of the module, without those that tell processes apart.
    workdir: of the run, on a file system that all machines share.
    folder: of the checkout, on every machine.
    environment: variables of every process.
    nodes: machines.
    devices_per_node: accelerators of each.
    max_restarts: how many times in a row it is started again without having
      saved a further checkpoint.
  """

  name: str
  program: tuple[str, ...]
  arguments: tuple[str, ...]
  workdir: str
  folder: str
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  nodes: int = 1
  devices_per_node: int = 8
  max_restarts: int = 3

  def __post_init__(self):
    if len(self.name) > _LONGEST_NAME or not _NAME.fullmatch(self.name):
      refuse(
        "name",
        f"{self.name!r}: expected at most {_LONGEST_NAME} of a to z, 0 to 9 and"
        " '-', beginning with a letter and not ending with '-', as host names"
        " do (DNS-1123); give --name",
      )
    for argument in self.arguments:
      flag = argument.partition("=")[0].lstrip("-")
      check_text(flag if flag.isidentifier() else "gin_bindings", argument)
    check_text("python", self.program[0])
    if not self.program[0] or self.program[0].startswith("-"):
      refuse("python", f"{self.program[0]!r}: expected a program; name one")
    check_path("workdir", self.workdir)
    check_path("folder", self.folder)
    for name, value in self.environment.items():
      check_variable(name, value)
    check_count("nodes", self.nodes)
    check_count("devices_per_node", self.devices_per_node)
    check_count("max_restarts", self.max_restarts, least=0)

  @property
  def command(self) -> tuple[str, ...]:
    """Program and arguments."""
    return (*self.program, *self.arguments)

  @property
  def own_command(self) -> tuple[str, ...]:
    """The command that sets the variables as well.

    A script has variables of its own, and bash some that cannot be set; what
    the program `env` sets is in nobody's way.
    """
    variables = (f"{name}={value}" for name, value in self.environment.items())
    before = ("env", *variables) if self.environment else ()
    return (*before, *self.command)


def name_of(text: str) -> str:
  """The nearest name that a job may bear.

  >>> name_of("v3_small.gin")
  'v3-small-gin'
  """
  name = re.sub(r"[^a-z0-9]+", "-", text.lower(), flags=re.ASCII).strip("-")
  name = name if name[:1].isalpha() else f"run-{name}"
  return name[:_LONGEST_NAME].strip("-")
