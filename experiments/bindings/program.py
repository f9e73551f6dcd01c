"""All bindings of a run together: what reaches what, what is never used.

gin builds an object by calling its class with the values bound to it, built
in turn. Walking the same way without building anything tells which bindings
take part. Two walks are needed. The strict one follows only the values that
win, and is what will be run. The lenient one also follows values that were
overridden later: a model file's details of YaRN are no mistake in a run that
switches YaRN off.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

from experiments.bindings import problems
from experiments.bindings import reader
from experiments.bindings import sources
from experiments.bindings import values

Scope = tuple[str, ...]
_MOST_VALUES = 10_000


@dataclasses.dataclass
class Walk:
  """What was met on the way from the objects asked for.

  Attributes:
    built: classes and factories by scope, with the place that asks for each.
    passed: classes and functions handed on without being called.
    bindings: the bindings met, by identity, in order.
    macros: names of the macros met, in order.
    circles: things that would have to be built before themselves.
  """

  built: dict[tuple[Scope, str], problems.Place] = dataclasses.field(
    default_factory=dict
  )
  passed: set[tuple[Scope, str]] = dataclasses.field(default_factory=set)
  bindings: dict[int, reader.Binding] = dataclasses.field(default_factory=dict)
  macros: dict[str, None] = dataclasses.field(default_factory=dict)
  circles: list[problems.Problem] = dataclasses.field(default_factory=list)


class Program:
  """The statements of all gin files and flags, last one winning.

  Args:
    statements: in the order in which they take effect.
    index: our packages.
  """

  def __init__(
    self,
    statements: Iterable[reader.Binding | reader.MacroDefinition],
    index: sources.Sources,
  ):
    self.index = index
    self.bindings: list[reader.Binding] = []
    self.macros: dict[str, list[reader.MacroDefinition]] = {}
    self._bound: dict[tuple[Scope, str], dict[str, list[reader.Binding]]] = {}
    for statement in statements:
      if isinstance(statement, reader.MacroDefinition):
        self.macros.setdefault(statement.name, []).append(statement)
      else:
        self.bindings.append(statement)
        fields = self._bound.setdefault((statement.scope, statement.name), {})
        fields.setdefault(statement.parameter, []).append(statement)

  def bound(
    self, scope: Scope, name: str, *, strict: bool
  ) -> dict[str, list[reader.Binding]]:
    """Returns the bindings that `name` gets in `scope`, by parameter.

    Args:
      scope: gin's scope, outermost name first; inner scopes win.
      name: full dotted name.
      strict: only the binding that wins, otherwise also those overridden.
    """
    merged: dict[str, list[reader.Binding]] = {}
    for depth in range(len(scope) + 1):
      fields = self._bound.get((scope[:depth], name), {})
      for parameter, history in fields.items():
        if strict:
          merged[parameter] = history[-1:]
        else:
          merged.setdefault(parameter, []).extend(history)
    return merged

  def walk(self, roots: Iterable[str], *, strict: bool) -> Walk:
    """Walks from `roots`, full dotted names of classes that will be built."""
    walk = Walk()
    for root in roots:
      place = next(
        (b.place for b in self.bindings if b.name == root),
        problems.Place("--gin_file", 1),
      )
      self._build(walk, (), root, place, [], strict)
    return walk

  def _build(self, walk, scope, name, place, above, strict) -> None:
    if (scope, name) in above:
      message = (
        f"@{'/'.join((*scope, name))}() needs itself to be built;"
        " bind something else"
      )
      walk.circles.append(problems.Problem(place, message))
      return
    if (scope, name) in walk.built:
      return
    walk.built[scope, name] = place
    self._follow_bindings(walk, scope, name, [*above, (scope, name)], strict)

  def _pass(self, walk, scope, name, strict) -> None:
    if (scope, name) not in walk.passed:
      walk.passed.add((scope, name))
      self._follow_bindings(walk, scope, name, [], strict)

  def _follow_bindings(self, walk, scope, name, above, strict) -> None:
    for history in self.bound(scope, name, strict=strict).values():
      for binding in history:
        walk.bindings[id(binding)] = binding
        self._follow(walk, scope, binding, above, strict)

  def _follow(self, walk, scope, statement, above, strict) -> None:
    """Follows the references in the value of a binding or macro."""
    for leaf in values.leaves(statement.value):
      if isinstance(leaf, values.Macro):
        self._expand(walk, leaf, statement.place, above, strict)
      elif isinstance(leaf, values.Reference):
        inner = leaf.scope or scope
        if leaf.call:
          place = statement.place
          self._build(walk, inner, leaf.name, place, above, strict)
        else:
          # Called later, by code that is in no scope of its own.
          self._pass(walk, inner, leaf.name, strict)
          self._pass(walk, leaf.scope, leaf.name, strict)

  def _expand(self, walk, macro, place, above, strict) -> None:
    if (macro.name,) in above:
      message = f"{macro} is defined by itself; give it a value"
      walk.circles.append(problems.Problem(place, message))
      return
    if macro.name in walk.macros or macro.name not in self.macros:
      return
    walk.macros[macro.name] = None
    history = self.macros[macro.name]
    for definition in history[-1:] if strict else history:
      # gin evaluates a macro in the scope of the macro's name.
      scope = tuple(macro.name.split("/"))
      self._follow(walk, scope, definition, [*above, (macro.name,)], strict)

  def value(self, value: Any) -> Any:
    """Returns `value` with macros replaced by what they stand for.

    Undefined and circular macros stay as they are.

    Raises:
      ValueError: the result would be too large to be meant.
    """
    left = _MOST_VALUES

    def expand(leaf, above=()):
      nonlocal left
      left -= 1
      if left < 0:
        raise ValueError(
          f"macros expand to more than {_MOST_VALUES} values; use fewer"
        )
      if not isinstance(leaf, values.Macro) or leaf.name in above:
        return leaf
      if leaf.name not in self.macros:
        return leaf
      inner = functools.partial(expand, above=(*above, leaf.name))
      return values.replace(self.macros[leaf.name][-1].value, inner)

    return values.replace(value, expand)

  def text(self, roots: Iterable[str]) -> str:
    """Returns gin text that binds what building `roots` takes, and no more.

    Each line names the place it comes from. The text needs no include and
    imports only the modules that take part.
    """
    walk = self.walk(roots, strict=True)
    kept = [
      *walk.bindings.values(),
      *(self.macros[name][-1] for name in walk.macros),
    ]
    used = {binding.name for binding in walk.bindings.values()}
    for statement in kept:
      used.update(
        leaf.name
        for leaf in values.leaves(statement.value)
        if isinstance(leaf, values.Reference)
      )
    selectors = dict(_selectors({n.rpartition(".")[0] for n in used}))
    lines = ["from __gin__ import dynamic_registration"]
    for module, alias in sorted(selectors.items()):
      parent, _, last = module.rpartition(".")
      start = f"from {parent} import {last}" if parent else f"import {last}"
      lines.append(f"{start} as {alias}" if alias != last else start)
    names = {
      name: ".".join((selectors[name.rpartition(".")[0]], name.split(".")[-1]))
      for name in used
    }
    lines.append("")
    for name in walk.macros:
      definition = self.macros[name][-1]
      value = values.written(definition.value, names)
      lines.append(f"{name} = {value}  # {_comment(definition)}")
    for binding in walk.bindings.values():
      key = "/".join((*binding.scope, names[binding.name]))
      value = values.written(binding.value, names)
      lines.append(
        f"{key}.{binding.parameter} = {value}  # {_comment(binding)}"
      )
    return "\n".join(lines) + "\n"


def short(name: str) -> str:
  """Returns the last module and the name, as gin files usually say it."""
  return ".".join(name.split(".")[-2:])


def _comment(statement: reader.Binding | reader.MacroDefinition) -> str:
  """Returns the place, safe to stand in a comment whatever the file's name."""
  return problems.printable(str(statement.place))


def _selectors(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
  """Yields each module with the name that it is imported as."""
  modules = sorted(modules)
  lasts = [module.rpartition(".")[-1] for module in modules]
  for module, last in zip(modules, lasts, strict=True):
    if lasts.count(last) == 1 and last != "gin":
      yield module, last
    else:
      yield module, module.replace(".", "_")
