"""One Python source file, as far as gin is concerned with it.

What is read: the classes and functions at the top of the file with their
fields or parameters, the names it imports, and the names it gives to types.
Nothing is imported or run.
"""

import ast
import dataclasses
from typing import NamedTuple

_DATACLASSES = frozenset(
  {"dataclasses.dataclass", "flax.struct.dataclass", "chex.dataclass"}
)
LINEN = "flax.linen.Module"
ENUMS = frozenset({"enum.Enum", "enum.IntEnum", "enum.StrEnum"})
_FIELD_CALLS = frozenset({"dataclasses.field", "flax.struct.field"})


class Field(NamedTuple):
  """A parameter that gin may bind.

  Attributes:
    name: its name.
    annotation: its type as written, None where there is none.
    module: module whose names the annotation uses.
    required: whether it has no default.
  """

  name: str
  annotation: ast.expr | None
  module: str
  required: bool


@dataclasses.dataclass(frozen=True)
class Definition:
  """A class or function at the top of a module.

  Attributes:
    name: full dotted name.
    module: dotted name of its module.
    kind: 'dataclass', 'enum', 'class' or 'function'; of Linen modules and
      of subclasses only what their own lines say.
    fields: own fields or parameters, in order.
    bases: full dotted names of the base classes, '?' where unknown.
    takes_any: whether a function has `**kwargs`.
    returns: annotation of a function's result.
    members: values of an enumeration.
  """

  name: str
  module: str
  kind: str
  fields: tuple[Field, ...] = ()
  bases: tuple[str, ...] = ()
  takes_any: bool = False
  returns: ast.expr | None = None
  members: tuple[object, ...] = ()

  @property
  def short(self) -> str:
    """Last part of the module and name, as gin files usually say it."""
    return ".".join(self.name.split(".")[-2:])


@dataclasses.dataclass(frozen=True)
class Module:
  """One source file.

  Attributes:
    name: dotted name.
    definitions: classes and functions by their name in the module.
    imports: full dotted name of every imported name.
    aliases: expressions assigned to names, such as type aliases.
  """

  name: str
  definitions: dict[str, Definition]
  imports: dict[str, str]
  aliases: dict[str, ast.expr]

  def expand(self, expression: ast.expr | None) -> str | None:
    """Returns the full dotted name that `expression` spells, or None."""
    if isinstance(expression, ast.Name):
      if expression.id in self.definitions or expression.id in self.aliases:
        return f"{self.name}.{expression.id}"
      return self.imports.get(expression.id, expression.id)
    if isinstance(expression, ast.Attribute):
      parent = self.expand(expression.value)
      return parent and f"{parent}.{expression.attr}"
    return None


def expression(text: str) -> ast.expr | None:
  """Returns the expression that `text` is, None where it is none."""
  try:
    return ast.parse(text, mode="eval").body
  except SyntaxError:
    return None


def read(name: str, tree: ast.Module) -> Module:
  """Returns what the file of module `name`, parsed as `tree`, defines."""
  module = Module(name, {}, {}, {})
  for node in tree.body:
    if isinstance(node, ast.Import):
      for imported in node.names:
        if imported.asname:
          module.imports[imported.asname] = imported.name
        else:
          top = imported.name.split(".")[0]
          module.imports[top] = top
    elif isinstance(node, ast.ImportFrom) and not node.level:
      for imported in node.names:
        bound = imported.asname or imported.name
        module.imports[bound] = f"{node.module}.{imported.name}"
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      module.aliases[node.targets[0].id] = node.value
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      if node.value is not None:
        module.aliases[node.target.id] = node.value
  # A second pass, because a class may use a name that is defined further down.
  for node in tree.body:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      module.definitions[node.name] = Definition("", "", "")
  for node in tree.body:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      module.definitions[node.name] = _function(module, node)
    elif isinstance(node, ast.ClassDef):
      module.definitions[node.name] = _class(module, node)
  return module


def _function(module: Module, node) -> Definition:
  arguments = node.args
  positional = arguments.args
  optional = len(arguments.defaults)
  required = {argument.arg for argument in positional[: -optional or None]}
  required.update(
    argument.arg
    for argument, default in zip(
      arguments.kwonlyargs, arguments.kw_defaults, strict=True
    )
    if default is None
  )
  return Definition(
    name=f"{module.name}.{node.name}",
    module=module.name,
    kind="function",
    fields=tuple(
      Field(
        argument.arg,
        argument.annotation,
        module.name,
        argument.arg in required,
      )
      for argument in (*positional, *arguments.kwonlyargs)
    ),
    takes_any=arguments.kwarg is not None,
    returns=node.returns,
  )


def _class(module: Module, node: ast.ClassDef) -> Definition:
  decorators = {
    module.expand(d.func if isinstance(d, ast.Call) else d)
    for d in node.decorator_list
  }
  bases = []
  for base in node.bases:
    if isinstance(base, ast.Subscript):  # Generic[T]
      base = base.value
    bases.append(module.expand(base) or "?")
  is_enum = not ENUMS.isdisjoint(bases)
  fields, members = [], []
  for statement in node.body:
    if isinstance(statement, ast.AnnAssign):
      field = _field(module, statement)
      if field is not None:
        fields.append(field)
    elif is_enum and isinstance(statement, ast.Assign):
      if isinstance(statement.value, ast.Constant):
        members.append(statement.value.value)
  kind = "dataclass" if not _DATACLASSES.isdisjoint(decorators) else "class"
  return Definition(
    name=f"{module.name}.{node.name}",
    module=module.name,
    kind="enum" if is_enum else kind,
    fields=tuple(fields),
    bases=tuple(bases),
    members=tuple(members),
  )


def _field(module: Module, node: ast.AnnAssign) -> Field | None:
  if not isinstance(node.target, ast.Name):
    return None
  annotation = node.annotation
  if isinstance(annotation, ast.Subscript):
    outer = module.expand(annotation.value)
    if outer == "typing.ClassVar":
      return None
    if outer == "dataclasses.InitVar":
      annotation = annotation.slice
  name = module.expand(annotation)
  if name in ("typing.ClassVar", "dataclasses.KW_ONLY"):
    return None
  required = node.value is None
  value = node.value
  if isinstance(value, ast.Call) and module.expand(value.func) in _FIELD_CALLS:
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    init = given.get("init")
    if isinstance(init, ast.Constant) and init.value is False:
      return None
    required = "default" not in given and "default_factory" not in given
  return Field(node.target.id, annotation, module.name, required)
