"""The configuration of a run: checked, then built by gin, then written down.

gin is handed the statements that the preflight checked and nothing else, as
one text without includes that imports only the modules taking part. So what
was checked is what is run, and preparing data from a run's gin file does not
import the model.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import importlib
import re
from typing import Any

import gin

from experiments import preflight
from experiments import provenance
from experiments import screen
from experiments.bindings import problems
from experiments.bindings import program as program_lib
from experiments.bindings import values

FILE = "config.gin"


@dataclasses.dataclass
class _State:
  """What was checked, and what was built of it."""

  program: program_lib.Program | None = None
  built: list[Any] = dataclasses.field(default_factory=list)


_state = _State()


def prepare(
  target: str,
  files: Sequence[str] = (),
  bindings: Sequence[str] = (),
  *,
  also: Sequence[str] = (),
  seed: int | None = None,
) -> None:
  """Checks gin files and bindings for the following `build`.

  Binaries need not call it; notebooks and tests do.

  Raises:
    problems.Refused: a mistake was found (a ValueError).
  """
  _state.program = preflight.check(
    files, bindings, target=target, also=also, seed=seed
  )
  _state.built = []
  gin.clear_config()


def build(target: str) -> Any:
  """Returns the object that the gin files describe.

  Args:
    target: full dotted name of its class, imported here.

  Raises:
    ValueError: the class refuses its values.
  """
  program = _checked()
  # Only checked statements reach gin, and of those what `target` needs.
  gin.parse_config(program.text([target]))
  module, _, name = target.rpartition(".")
  cls = getattr(importlib.import_module(module), name)
  try:
    built = _configurable(cls)()
  except ValueError as error:
    place = _place(program, target, error)
    if place is None or screen.explanation(error) is None:
      raise
    raise ValueError(f"{place}: {screen.message(error)}") from error
  _state.built.append(built)
  return built


def requested(target: str) -> str:
  """Returns what files and flags bind, and where, as one gin file."""
  return _checked().text([target])


def operative() -> str:
  """Returns every value in use as a gin file that binds the same again.

  Comments at its head say where it comes from, and those at its end what the
  defaults of the code are where gin built nothing. Written into a workdir as
  `FILE` it is what a run without `--gin_file` takes.
  """
  program = _checked()
  lines = [
    f"# {key}: {value}" for key, value in provenance.provenance().items()
  ]
  lines += ["", gin.operative_config_str().rstrip(), ""]
  by_gin = {
    name
    for built in _state.built
    for _, name in program.walk([_name(built)], strict=True).built
  }
  for built in _state.built:
    lines += _defaults(built, by_gin)
  return "\n".join(map(_without_controls, lines)) + "\n"


def _checked() -> program_lib.Program:
  if _state.program is None:
    raise ValueError(
      "nothing was checked; call cli.run or configuration.prepare first"
    )
  return _state.program


def _configurable(cls: type) -> Callable[[], Any]:
  """Returns `cls` as gin calls it, whether or not anything binds it."""
  try:
    return gin.get_configurable(cls)
  except ValueError:
    gin.register(cls, module=cls.__module__)
    return gin.get_configurable(cls)


def _place(program, target: str, error: ValueError) -> problems.Place | None:
  """Returns where the value was bound that a class of ours refuses.

  Our messages begin with the name of the field.
  """
  field = re.match(r"\w+", str(error))
  for binding in program.walk([target], strict=True).bindings.values():
    if binding.name.rpartition(".")[-1] != screen.raised_in(error):
      continue
    if field is None or binding.parameter != field[0]:
      continue
    if isinstance(binding.value, values.Macro):
      return program.macros[binding.value.name][-1].place
    return binding.place
  return None


def _name(built: Any) -> str:
  return f"{type(built).__module__}.{type(built).__qualname__}"


def _defaults(built: Any, by_gin: set[str]) -> list[str]:
  """Returns comments on the dataclasses in `built` that gin did not build."""
  lines = []
  for field in dataclasses.fields(built):
    value = getattr(built, field.name, None)
    nested = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if _name(built) not in by_gin and not nested:
      short = program_lib.short(_name(built))
      lines.append(f"# default: {short}.{field.name} = {value!r}")
    if nested:
      lines += _defaults(value, by_gin)
  return lines


def _without_controls(line: str) -> str:
  """Returns gin text in which no comment can end early."""
  return line if not line.startswith("# ") else problems.printable(line)
