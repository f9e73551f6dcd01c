"""What the names in a gin file stand for, and which may be named at all.

With gin's dynamic registration a name is an attribute walk from an imported
module, so that `loop.subprocess.run` would reach any library that our code
imports. Here a name must be a module of our packages and then one class or
function that this module itself defines: nothing else can be spelt.
"""

from collections.abc import Iterable

from gin import config_parser

from experiments.bindings import annotations
from experiments.bindings import module_text
from experiments.bindings import problems
from experiments.bindings import sources

_FEATURE = "__gin__.dynamic_registration"


class Unknown(ValueError):
  """A name that stands for nothing, or for nothing that gin may reach.

  Its message is empty where an earlier one says why.
  """


def _ours(index: sources.Sources) -> str:
  return " and ".join(index.packages)


def _split(index: sources.Sources, dotted: str) -> tuple[str, list[str]]:
  """Returns the longest module that `dotted` starts with, and the rest."""
  parts = dotted.split(".")
  for count in range(len(parts), 0, -1):
    module = ".".join(parts[:count])
    if index.exists(module):
      return module, parts[count:]
  return "", parts


def locate(
  index: sources.Sources, dotted: str, shown: str
) -> module_text.Definition:
  """Returns the class or function of a full dotted name.

  Args:
    index: our packages.
    dotted: full name, from the top-level package on.
    shown: what the gin file says, for messages.

  Raises:
    Unknown: nothing of ours is called so.
  """
  module, rest = _split(index, dotted)
  if not module:
    raise Unknown(
      f"{shown} is nothing of {_ours(index)}, and gin may name nothing else;"
      " bind a class of those"
    )
  if not rest:
    raise Unknown(
      f"{shown} is a module, expected a class in it; write {shown}.NAME"
    )
  source = index.module(module)
  found = source.definitions.get(rest[0])
  if found is not None and len(rest) == 1 and not rest[0].startswith("_"):
    return found
  if found is not None:
    raise Unknown(
      f"{shown} reaches into {found.short}, expected a public class or"
      f" function of a module; bind {found.short} itself"
    )
  if rest[0] in source.imports:
    raise Unknown(
      f"{shown}: {module} does not define {rest[0]!r}, it only imports it;"
      f" gin may name only what {_ours(index)} define: import the defining"
      " module"
    )
  public = [n for n in source.definitions if not n.startswith("_")]
  public += index.submodules(module)
  raise Unknown(
    f"{shown}: {module} has no {rest[0]!r}; "
    + problems.suggestion(rest[0], public)
  )


class Imports:
  """The imports of one gin file.

  Attributes:
    names: full dotted name of the module that each imported name stands for.
  """

  def __init__(self, index: sources.Sources):
    self._index = index
    self._dynamic = False
    self._refused: set[str] = set()
    self.names: dict[str, str] = {}

  def add(self, statement: config_parser.ImportStatement) -> None:
    """Takes up one import.

    Raises:
      Unknown: it is not one that a gin file may make.
    """
    if statement.module.startswith("__gin__"):
      self._add_feature(statement)
      return
    name = statement.bound_name()
    self._refused.add(name)
    _importable(self._index, statement)
    if name == "gin":
      raise Unknown("the name 'gin' is taken; import it 'as' something else")
    self._refused.remove(name)
    whole = statement.is_from or statement.alias
    self.names[name] = statement.module if whole else name

  def _add_feature(self, statement) -> None:
    self._dynamic = True
    if statement.module != _FEATURE or statement.alias:
      raise Unknown(
        f"'{statement.format()}': expected 'from __gin__ import"
        " dynamic_registration'; write that"
      )
    if self.names:
      raise Unknown(
        "'from __gin__ import dynamic_registration' comes after other imports;"
        " make it the first line"
      )

  def locate(self, selector: str) -> module_text.Definition:
    """Returns what `selector` stands for in this file.

    Raises:
      Unknown: it stands for nothing.
    """
    if not self._dynamic:
      self._dynamic = True  # say it once
      raise Unknown(
        f"{selector} needs an import; make 'from __gin__ import"
        " dynamic_registration' the file's first line"
      )
    first, _, rest = selector.partition(".")
    if first not in self.names and first in self._refused:
      raise Unknown
    if first not in self.names:
      match = problems.nearest(first, self.names)
      advice = (
        f"did you mean '{match}'?" if match else f"import the module {first}"
      )
      raise Unknown(f"{selector}: {first!r} is not imported here; {advice}")
    return locate(
      self._index, ".".join(filter(None, (self.names[first], rest))), selector
    )


class CommandLine(Imports):
  """The names that `--gin_bindings` may use: any unambiguous ending.

  Args:
    index: our packages.
    files: imports of the gin files read before.
    modules: further modules whose classes may be named.
  """

  def __init__(
    self,
    index: sources.Sources,
    files: Iterable[Imports],
    modules: Iterable[str],
  ):
    super().__init__(index)
    self._dynamic = True
    self._modules = set(modules)
    self._files = list(files)

  def locate(self, selector: str) -> module_text.Definition:
    """Returns what `selector` stands for, whichever file imports it."""
    first, _, rest = selector.partition(".")
    known = self._known()
    found = {name for name in known if f".{name}".endswith(f".{selector}")}
    spelt = {first} if first in self._index.packages else set()
    spelt |= {t.names[first] for t in self._tables() if first in t.names}
    failure = None
    for start in sorted(spelt):
      try:
        full = ".".join(filter(None, (start, rest)))
        found.add(locate(self._index, full, selector).name)
      except Unknown as error:
        failure = error
    if len(found) == 1:
      definition = self._index.definition(found.pop())
      assert definition is not None
      return definition
    if found:
      raise Unknown(
        f"{selector} may be {' or '.join(sorted(found))}; write one of these"
      )
    if failure is not None:
      raise failure
    depth = selector.count(".") + 1
    endings = [
      ".".join(name.split(".")[-depth:])
      for name in known
      if self._index.bindable(name)
    ]
    raise Unknown(
      f"{selector} is not a class that the gin files know; "
      + problems.suggestion(selector, endings)
    )

  def _tables(self) -> list[Imports]:
    return [self, *self._files]

  def _known(self) -> list[str]:
    modules = set(self._modules)
    for table in self._tables():
      modules.update(table.names.values())
    return [
      definition.name
      for module in sorted(modules)
      if self._index.exists(module)
      for name, definition in self._index.module(module).definitions.items()
      if not name.startswith("_")
    ]


def _importable(index: sources.Sources, statement) -> None:
  name = statement.module
  if index.exists(name) and "._" not in name:
    return
  module, rest = _split(index, name)
  if not module:
    match = problems.nearest(rest[0], index.packages)
    hint = f"; did you mean '{match}'?" if match else "; remove the import"
    raise Unknown(
      f"'{statement.format()}' is refused: a gin file may import only modules"
      f" of {_ours(index)}{hint}"
    )
  if rest[0] in index.module(module).definitions:
    parent, _, last = module.rpartition(".")
    raise Unknown(
      f"'{statement.format()}': {rest[0]} is no module, and gin imports"
      f" modules; write 'from {parent} import {last}' and {last}.{rest[0]}"
    )
  raise Unknown(
    f"'{statement.format()}': there is no module {name}; "
    + problems.suggestion(
      ".".join((module, rest[0])),
      [f"{module}.{child}" for child in index.submodules(module)],
    )
  )


def related(index: sources.Sources, names: Iterable[str]) -> set[str]:
  """Returns the modules of `names` and of the classes in their fields."""
  pending, seen = list(names), set()
  while pending:
    name = pending.pop()
    if name in seen or index.definition(name) is None:
      continue
    seen.add(name)
    for field in index.fields(name).values():
      pending.extend(instances(annotations.of_field(index, field)))
  return {name.rpartition(".")[0] for name in seen}


def instances(type_: annotations.Type) -> list[str]:
  """Returns the names of our classes that a value of `type_` may hold."""
  if isinstance(type_, annotations.Instance):
    return [type_.name]
  if isinstance(type_, (annotations.AnyOf, annotations.Items)):
    return [name for part in type_.types for name in instances(part)]
  if isinstance(type_, annotations.Table):
    return instances(type_.item)
  return []
