"""Finds the mistakes in gin files and flags before anything is imported.

JAX takes seconds to import and a pod takes minutes to start; a misspelt name
should cost neither. `check` reads the gin files with gin's own parser and our
modules as text, runs nothing of either, and refuses with one line per mistake:
unknown names (with the nearest valid one), values of the wrong type, macros
and bindings that nothing uses, required values left unset, files that are
missing, include each other or are not gin.

It is also where a gin file stops being a program. With gin's dynamic
registration a config can import any module and call any function in it; here
it may import only our own packages, name only classes and functions that they
define, and build only dataclasses and Linen modules.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import itertools

from experiments.bindings import annotations
from experiments.bindings import fitting
from experiments.bindings import names
from experiments.bindings import problems
from experiments.bindings import program as program_lib
from experiments.bindings import reader as reader_lib
from experiments.bindings import search
from experiments.bindings import sources
from experiments.bindings import values

PACKAGES = ("dsx", "experiments")


def check(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  *,
  target: str,
  also: Sequence[str] = (),
  seed: int | None = None,
  index: sources.Sources | None = None,
  path: search.SearchPath | None = None,
) -> program_lib.Program:
  """Reads and checks what a run binds.

  Files take effect in order, then the bindings; the last one wins.

  Args:
    files: gin files, relative to the current folder or the repository.
    bindings: gin statements, such as `Pretraining.steps = 10`.
    target: full dotted name of the class to be built. All its required
      fields must be bound.
    also: names of further classes whose bindings are no mistake.
    seed: value for the target's field `seed`.
    index: the packages that may be named, by default `PACKAGES`.
    path: where files are looked for.

  Returns:
    The checked statements.

  Raises:
    problems.Refused: anything is wrong.
    ValueError: `target` or `also` name no class.
  """
  index = index or sources.Sources(PACKAGES)
  path = path or search.SearchPath()
  for root in (target, *also):
    if not index.bindable(root):
      raise ValueError(
        f"target={root!r}: expected a dataclass or Linen module of"
        f" {' or '.join(index.packages)}; give its full dotted name"
      )
  reader = reader_lib.Reader(index, path)
  for number, name in enumerate(files, 1):
    reader.read_file(name, number)
  known = names.related(index, (target, *also))
  table = names.CommandLine(index, reader.tables, known)
  for number, text in enumerate(bindings, 1):
    reader.read_binding(text, number, table)
  found = list(reader.problems)
  statements = list(reader.statements)
  if seed is not None:
    place = problems.Place("--seed", 1)
    statements.append(reader_lib.Binding((), target, "seed", seed, place))
    if "seed" not in index.fields(target):
      message = f"{program_lib.short(target)} has no seed; leave the flag out"
      raise problems.Refused([problems.Problem(place, message)])
  program = program_lib.Program(statements, index)
  try:
    mistakes = _check_bindings(program, known)
    found.extend(itertools.islice(mistakes, reader_lib.MOST_PROBLEMS))
    # With statements missing, all that leads to them would seem unused.
    if reader.complete:
      mistakes = _check_whole(program, target, also)
      found.extend(itertools.islice(mistakes, reader_lib.MOST_PROBLEMS))
  except RecursionError:
    place = problems.Place("--gin_file", 1)
    found.append(
      problems.Problem(place, "values refer to each other too deeply; use less")
    )
  if found:
    raise problems.Refused(found)
  return program


def _check_bindings(
  program: program_lib.Program, known: Iterable[str]
) -> Iterable[problems.Problem]:
  """Yields what is wrong with single bindings: names and types."""
  index = program.index
  for binding in program.bindings:
    fields = index.fields(binding.name)
    short = program_lib.short(binding.name)
    field = fields.get(binding.parameter)
    if field is None:
      if not index.is_open(binding.name):
        advice = _unknown_field(index, binding.parameter, fields, known)
        yield problems.Problem(
          binding.place, f"{short} has no field '{binding.parameter}'; {advice}"
        )
      continue
    try:
      value = program.value(binding.value)
    except ValueError as error:
      yield problems.Problem(binding.place, str(error))
      continue
    wanted = annotations.of_field(index, field)
    if any(isinstance(leaf, values.Macro) for leaf in values.leaves(value)):
      continue  # undefined or required: said elsewhere
    if fitting.fits(index, value, wanted):
      continue
    place, text = binding.place, values.shown(value)
    if isinstance(binding.value, values.Macro):
      place = program.macros[binding.value.name][-1].place
      text = f"{binding.value} = {text}"
    advice = fitting.remedy(index, value, wanted)
    yield problems.Problem(
      place,
      f"{short}.{binding.parameter} = {text}: expected {wanted}; {advice}",
    )


def _unknown_field(index, parameter, fields, known) -> str:
  elsewhere = sorted(
    definition.short
    for module in known
    for definition in index.module(module).definitions.values()
    if index.bindable(definition.name)
    and parameter in index.fields(definition.name)
  )
  if problems.nearest(parameter, fields) is None and elsewhere:
    return f"did you mean '{elsewhere[0]}.{parameter}'?"
  return problems.suggestion(parameter, fields)


def _check_whole(
  program: program_lib.Program, target: str, also: Sequence[str]
) -> Iterable[problems.Problem]:
  """Yields what only all statements together can tell."""
  lenient = program.walk((target, *also), strict=False)
  strict = program.walk((target, *also), strict=True)
  yield from strict.circles
  yield from _check_macros(program, target)
  yield from _check_unused(program, target, lenient)
  built = program.walk((target,), strict=True)
  yield from _check_required(program, built)


def _check_macros(program, target: str) -> Iterable[problems.Problem]:
  used: dict[str, problems.Place] = {}
  definitions = [d for history in program.macros.values() for d in history]
  for statement in (*program.bindings, *definitions):
    for leaf in values.leaves(statement.value):
      if isinstance(leaf, values.Macro):
        used.setdefault(leaf.name, statement.place)
  for name, place in used.items():
    if name not in program.macros and name != values.REQUIRED.name:
      match = problems.nearest(name, program.macros)
      advice = f"did you mean %{match}?" if match else f"add {name} = VALUE"
      yield problems.Problem(place, f"%{name} is not defined; {advice}")
  fields = program.index.fields(target)
  for name, history in program.macros.items():
    if name in used:
      continue
    match = problems.nearest(name, [n for n in used if n in program.macros])
    short = program_lib.short(target)
    if name in fields:
      advice = f"did you mean {short}.{name}?"
    elif match:
      advice = f"did you mean {match}?"
    else:
      advice = "remove it or write %" + name
    yield problems.Problem(
      history[-1].place, f"macro {name} is never used; {advice}"
    )


def _check_unused(program, target, walk) -> Iterable[problems.Problem]:
  unused: dict[tuple, list[reader_lib.Binding]] = {}
  for binding in program.bindings:
    if id(binding) not in walk.bindings:
      unused.setdefault((binding.scope, binding.name), []).append(binding)
  for (scope, name), group in unused.items():
    key = "/".join((*scope, program_lib.short(name)))
    what = f"{key}.{group[0].parameter} has no effect"
    if len(group) > 1:
      what += f" (nor have {len(group) - 1} more bindings of {key})"
    advice = _unused_remedy(program, target, walk, scope, name)
    yield problems.Problem(group[0].place, f"{what}: {advice}")


def _unused_remedy(program, target, walk, scope, name) -> str:
  reached = {n for _, n in (*walk.built, *walk.passed)}
  scopes = {"/".join(s) for s, _ in (*walk.built, *walk.passed) if s}
  if name in reached and scope:
    match = problems.nearest("/".join(scope), scopes)
    advice = f"did you mean '{match}'?" if match else "remove the scope"
    return f"nothing is built in scope '{'/'.join(scope)}'; {advice}"
  index = program.index
  product = index.product(name)
  selector = "/".join((*scope, program_lib.short(name)))
  for owner in sorted(reached):
    for field in index.fields(owner).values():
      type_ = annotations.of_field(index, field)
      if not set(names.instances(type_)).isdisjoint(index.ancestors(product)):
        return (
          "nothing builds it; bind"
          f" {program_lib.short(owner)}.{field.name} = @{selector}()"
        )
  return f"{program_lib.short(target)} never reaches it; remove it"


def _check_required(program, walk) -> Iterable[problems.Problem]:
  for binding in walk.bindings.values():
    try:
      value = program.value(binding.value)
    except ValueError:
      continue  # too large: said elsewhere
    if values.REQUIRED in list(values.leaves(value)):
      key = "/".join((*binding.scope, program_lib.short(binding.name)))
      key = f"{key}.{binding.parameter}"
      if isinstance(binding.value, values.Macro):
        key = binding.value.name if binding.value != values.REQUIRED else key
      yield problems.Problem(
        binding.place,
        f"{key} is required and nothing sets it; add --gin.{key}=VALUE",
      )
  for (scope, name), place in walk.built.items():
    bound = program.bound(scope, name, strict=True)
    missing = [
      field
      for field in program.index.fields(name).values()
      if field.required and field.name not in bound
    ]
    if missing:
      key = "/".join((*scope, program_lib.short(name)))
      what = ", ".join(field.name for field in missing)
      type_ = annotations.of_field(program.index, missing[0])
      built = isinstance(type_, annotations.Instance)
      value = f"@{type_}()" if built else "VALUE"
      advice = f"add {key}.{missing[0].name} = {value}"
      if not program.bindings:
        advice = "give --gin_file one that does, as in gin_configs/runs"
      yield problems.Problem(
        place, f"{key} needs {what}, which nothing sets; {advice}"
      )
