"""Types as annotated in the sources.

Only what can be told from the text is resolved: numbers, strings, None,
unions, literals, tuples, lists, mappings, callables and the classes of our own
packages. Everything else becomes `Anything`.
"""

import ast
import dataclasses
from typing import Any

from experiments.bindings import module_text
from experiments.bindings import sources

_PLAIN = frozenset({"int", "float", "str", "bool", "bytes"})
_DEPTH = 20


class Type:
  """An annotation that could be resolved, or `Anything`."""


@dataclasses.dataclass(frozen=True)
class Anything(Type):
  """A type that the sources do not tell."""

  def __str__(self):
    return "anything"


@dataclasses.dataclass(frozen=True)
class Plain(Type):
  """int, float, str, bool, bytes or None."""

  name: str

  def __str__(self):
    return self.name


@dataclasses.dataclass(frozen=True)
class OneOf(Type):
  """The options of a `Literal` or of an enumeration."""

  options: tuple[Any, ...]

  def __str__(self):
    return "one of " + ", ".join(map(repr, self.options))


@dataclasses.dataclass(frozen=True)
class AnyOf(Type):
  """A union."""

  types: tuple[Type, ...]

  def __str__(self):
    return " or ".join(map(str, self.types))


@dataclasses.dataclass(frozen=True)
class Items(Type):
  """A tuple, a list or, if either will do, a sequence.

  Attributes:
    kind: 'tuple', 'list' or 'sequence'.
    types: type of each item; of all of them where `repeated`.
    repeated: whether the number of items is free.
  """

  kind: str
  types: tuple[Type, ...]
  repeated: bool

  def __str__(self):
    inner = ", ".join(map(str, self.types)) + ", ..." * self.repeated
    return f"{self.kind} of ({inner})"


@dataclasses.dataclass(frozen=True)
class Table(Type):
  """A mapping."""

  key: Type
  item: Type

  def __str__(self):
    return f"dict of {self.key} to {self.item}"


@dataclasses.dataclass(frozen=True)
class Instance(Type):
  """An object of one of our classes, by full dotted name."""

  name: str

  def __str__(self):
    return ".".join(self.name.split(".")[-2:])


@dataclasses.dataclass(frozen=True)
class Callable(Type):
  """A function or class, passed and not called."""

  def __str__(self):
    return "a function or class"


def resolve(
  index: sources.Sources, module: str, annotation: ast.expr | None
) -> Type:
  """Returns the type that `annotation`, written in `module`, stands for."""
  return _resolve(index, index.module(module), annotation, _DEPTH)


def of_field(index: sources.Sources, field: module_text.Field) -> Type:
  """Returns the type of a parameter."""
  return resolve(index, field.module, field.annotation)


def _resolve(index, module, annotation, depth) -> Type:
  def inner(part):
    return _resolve(index, module, part, depth - 1)

  if depth == 0 or annotation is None:
    return Anything()
  if isinstance(annotation, ast.Constant):
    if annotation.value is None:
      return Plain("None")
    if isinstance(annotation.value, str):  # a forward reference
      return inner(module_text.expression(annotation.value))
    return Anything()
  if isinstance(annotation, ast.BinOp):
    if not isinstance(annotation.op, ast.BitOr):
      return Anything()
    return _union(inner(annotation.left), inner(annotation.right))
  if isinstance(annotation, ast.Subscript):
    outer = module.expand(annotation.value) or ""
    arguments = annotation.slice
    parts = arguments.elts if isinstance(arguments, ast.Tuple) else [arguments]
    return _subscript(outer.rpartition(".")[-1], parts, inner)
  return _named(index, module.expand(annotation), depth)


def _subscript(outer: str, parts: list[ast.expr], inner) -> Type:
  if outer == "Literal":
    if all(isinstance(part, ast.Constant) for part in parts):
      return OneOf(tuple(part.value for part in parts))
    return Anything()
  if outer == "Optional":
    return _union(inner(parts[0]), Plain("None"))
  if outer == "Union":
    return _union(*map(inner, parts))
  if outer in ("Annotated", "Final"):
    return inner(parts[0])
  if outer in ("tuple", "Tuple"):
    last = parts[-1]
    repeated = isinstance(last, ast.Constant) and last.value is ...
    kept = parts[:-1] if repeated else parts
    return Items("tuple", tuple(map(inner, kept)), repeated)
  if outer in ("list", "List"):
    return Items("list", (inner(parts[0]),), True)
  if outer in ("Sequence", "Iterable", "Collection"):
    return Items("sequence", (inner(parts[0]),), True)
  if outer in ("dict", "Dict", "Mapping") and len(parts) == 2:
    return Table(inner(parts[0]), inner(parts[1]))
  if outer in ("Callable", "type", "Type"):
    return Callable()
  return Anything()


def _named(index, name: str | None, depth: int) -> Type:
  if name is None:
    return Anything()
  if name in _PLAIN:
    return Plain(name)
  last = name.rpartition(".")[-1]
  if name in ("tuple", "list"):
    return Items(name, (Anything(),), True)
  if name == "dict":
    return Table(Anything(), Anything())
  if last == "Callable":
    return Callable()
  definition = index.definition(name)
  if definition is not None:
    if index.kind(name) == "enum":
      return OneOf(definition.members) if definition.members else Anything()
    return Instance(name) if definition.kind != "function" else Anything()
  module = name.rpartition(".")[0]
  if index.exists(module):
    alias = index.module(module).aliases.get(last)
    return _resolve(index, index.module(module), alias, depth - 1)
  return Anything()


def _union(*types: Type) -> Type:
  flat = []
  for type_ in types:
    flat.extend(type_.types if isinstance(type_, AnyOf) else [type_])
  if any(isinstance(type_, Anything) for type_ in flat):
    return Anything()
  return AnyOf(tuple(dict.fromkeys(flat)))
