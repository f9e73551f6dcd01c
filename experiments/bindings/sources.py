"""The classes and functions of our own packages, read from their sources.

A mistake in a gin file must be found before JAX is imported, which takes
seconds. So the names and types that gin may bind are taken from the text of
the modules, parsed and never imported; a module is parsed when first asked
for. What the text alone cannot tell (a base class of another library) makes a
class open: then any field is accepted and left for Python to judge.
"""

import ast
from collections.abc import Iterable
from collections.abc import Iterator
import functools
import importlib.util
import pathlib

from experiments.bindings import module_text
from experiments.bindings import problems

# Bases that add no field.
_PLAIN_BASES = frozenset(
  {"object", "abc.ABC", "typing.Protocol", "typing.Generic", "Exception"}
)


class Sources:
  """The modules of a few packages.

  Args:
    packages: top-level packages, importable but not imported.
  """

  def __init__(self, packages: Iterable[str]):
    self._roots = {}
    for package in packages:
      spec = importlib.util.find_spec(package)
      if spec is None or not spec.submodule_search_locations:
        raise ValueError(
          f"packages={package!r}: expected an importable package; install it"
        )
      self._roots[package] = pathlib.Path(spec.submodule_search_locations[0])
    self.module = functools.cache(self._module)
    self.fields = functools.cache(self._fields)

  @property
  def packages(self) -> tuple[str, ...]:
    """Names of the packages."""
    return tuple(self._roots)

  def _path(self, name: str) -> pathlib.Path | None:
    package, *rest = name.split(".")
    if package not in self._roots:
      return None
    path = self._roots[package].joinpath(*rest)
    for candidate in (path / "__init__.py", path.with_name(f"{path.name}.py")):
      try:
        if candidate.is_file():
          return candidate
      except OSError:  # a name longer than the file system's longest
        return None
    return None

  def exists(self, name: str) -> bool:
    """Whether `name` is a module or package."""
    return self._path(name) is not None

  def submodules(self, name: str) -> list[str]:
    """Names of the modules directly inside package `name`."""
    path = self._path(name)
    if path is None or path.name != "__init__.py":
      return []
    names = {
      entry.stem
      for entry in path.parent.iterdir()
      if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    }
    return sorted(n for n in names if not n.startswith("_"))

  def _module(self, name: str) -> module_text.Module:
    path = self._path(name)
    if path is None:
      raise KeyError(name)
    try:
      tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
      place = problems.Place(str(path), error.lineno or 1)
      message = f"not Python: {error.msg}; mend the module"
      raise problems.Refused([problems.Problem(place, message)]) from None
    return module_text.read(name, tree)

  def definition(self, name: str | None) -> module_text.Definition | None:
    """Returns the class or function of this full dotted name, or None."""
    module, _, last = (name or "").rpartition(".")
    if not self.exists(module):
      return None
    return self.module(module).definitions.get(last)

  def ancestors(self, name: str) -> Iterator[str]:
    """Yields `name` and all its base classes, ours and others'."""
    pending, seen = [name], set()
    while pending:
      current = pending.pop(0)
      if current in seen:
        continue
      seen.add(current)
      yield current
      definition = self.definition(current)
      pending.extend(definition.bases if definition else ())

  def kind(self, name: str) -> str | None:
    """Returns 'dataclass', 'linen', 'enum', 'function', 'class' or None."""
    definition = self.definition(name)
    if definition is None or definition.kind == "function":
      return definition and "function"
    kind = "class"
    for ancestor in self.ancestors(name):
      if ancestor == module_text.LINEN:
        return "linen"
      if ancestor in module_text.ENUMS:
        return "enum"
      base = self.definition(ancestor)
      if base is not None and base.kind == "dataclass":
        kind = "dataclass"
    return kind

  def product(self, name: str) -> str | None:
    """Returns the class of what calling `name` gives, where that is ours."""
    definition = self.definition(name)
    if definition is None or definition.kind != "function":
      return name if definition else None
    returns = definition.returns
    if isinstance(returns, ast.Constant) and isinstance(returns.value, str):
      returns = module_text.expression(returns.value)
    result = self.module(definition.module).expand(returns)
    return result if self.definition(result) else None

  def bindable(self, name: str) -> bool:
    """Whether gin may build `name`: a dataclass, a Linen module or a factory.

    A factory is a function annotated to return one of those. Other functions
    do things, and a gin file must not be able to have things done.
    """
    product = self.product(name)
    return product is not None and self.kind(product) in ("dataclass", "linen")

  def is_open(self, name: str) -> bool:
    """Whether some parameters of `name` cannot be known from the sources."""
    definition = self.definition(name)
    if definition is None or definition.kind == "function":
      return definition is None or definition.takes_any
    known = _PLAIN_BASES | module_text.ENUMS | {module_text.LINEN}
    return any(
      ancestor not in known and self.definition(ancestor) is None
      for ancestor in self.ancestors(name)
    )

  def _fields(self, name: str) -> dict[str, module_text.Field]:
    """Returns the parameters of `name`, inherited ones first."""
    definition = self.definition(name)
    if definition is None:
      return {}
    if definition.kind == "function":
      return {field.name: field for field in definition.fields}
    linen = self.kind(name) == "linen"
    fields: dict[str, module_text.Field] = {}
    for ancestor in reversed(list(self.ancestors(name))):
      base = self.definition(ancestor)
      if base is not None and (linen or base.kind == "dataclass"):
        fields.update((field.name, field) for field in base.fields)
    if linen:
      fields["name"] = module_text.Field("name", None, definition.module, False)
    return fields
