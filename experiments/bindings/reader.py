"""Gin files and bindings as a list of statements, read and not run.

gin's own parser does the reading, with a delegate that makes plain values of
references and macros; includes are followed, imports recorded, names resolved.
What is read here is also what is run later (`program.Program.text`), so that
nothing can be one thing to the check and another to gin.
"""

import dataclasses
import pathlib
import re
import tokenize
from typing import Any
from typing import NamedTuple
import warnings

from gin import config_parser

from experiments.bindings import names
from experiments.bindings import problems
from experiments.bindings import search
from experiments.bindings import sources
from experiments.bindings import values

_MOST_FILES = 200
_MOST_TEXT = 1 << 19
_LONGEST_LINE = 10_000  # the tokenizer takes time with the square of it
# Nobody reads more, and the nearest name to each takes time.
MOST_PROBLEMS = 100
# What gin's parser and Python's tokenizer raise on texts that are not gin.
_PARSER_ERRORS = (
  AssertionError,
  AttributeError,
  IndexError,
  MemoryError,
  RecursionError,
  StopIteration,
  SyntaxError,
  SystemError,  # CPython 3.12 on a text of the fuzz test, near the stack's end
  TypeError,
  ValueError,
  tokenize.TokenError,
)


class Binding(NamedTuple):
  """`scope/module.name.parameter = value`.

  Attributes:
    scope: names before the last slash.
    name: full dotted name of the class or function.
    parameter: its parameter.
    value: the value, references resolved to full names.
    place: where it was written.
  """

  scope: tuple[str, ...]
  name: str
  parameter: str
  value: Any
  place: problems.Place


class MacroDefinition(NamedTuple):
  """`NAME = value`."""

  name: str
  value: Any
  place: problems.Place


class _Delegate(config_parser.ParserDelegate):
  """Makes values of references and macros."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    *scope, name = scoped_configurable_name.split("/")
    return values.Reference(tuple(scope), name, evaluate, name)

  def macro(self, macro_name):
    if macro_name in ("REQUIRED", "gin.REQUIRED"):
      return values.REQUIRED
    return values.Macro(macro_name)


class Reader:
  """Reads files, then bindings, in the order in which they take effect.

  Attributes:
    statements: bindings and macro definitions, in order.
    problems: the mistakes found.
    complete: whether every statement could be read, so that what is missing
      from `statements` is missing from the files.
    tables: imports of each file.
  """

  def __init__(self, index: sources.Sources, path: search.SearchPath):
    self._index = index
    self._path = path
    self._stack: list[pathlib.Path] = []
    self._files = self._size = 0
    self._full = False
    self._reported: set[tuple[int, str]] = set()
    self.statements: list[Binding | MacroDefinition] = []
    self.problems: list[problems.Problem] = []
    self.complete = True
    self.tables: list[names.Imports] = []

  def read_file(self, name: str, number: int) -> None:
    """Reads the file of the `number`-th `--gin_file`."""
    place = problems.Place("--gin_file", number)
    try:
      path = self._path.given(name)
    except search.NotFound as error:
      self._report(place, str(error))
    else:
      self._file(path, place)

  def read_binding(
    self, text: str, number: int, table: names.CommandLine
  ) -> None:
    """Reads the `number`-th `--gin_bindings`."""
    self._text(text, "--gin_bindings", table, self._path.cwd, first=number)

  def _report(self, place: problems.Place, message: str) -> None:
    self.complete = False
    self.problems.append(problems.Problem(place, message))

  def _file(self, path: pathlib.Path, place: problems.Place) -> None:
    if path in self._stack:
      chain = [*self._stack[self._stack.index(path) :], path]
      circle = " > ".join(map(self._path.shown, chain))
      self._report(place, f"includes go in a circle ({circle}); remove one")
      return
    if self._files >= _MOST_FILES or self._size >= _MOST_TEXT:
      if not self._full:
        self._report(
          place,
          f"over {_MOST_FILES} files or {_MOST_TEXT} characters in all;"
          " include fewer",
        )
      self._full = True
      return
    self._files += 1
    shown = self._path.shown(path)
    try:
      text = search.text(path)
    except search.NotFound as error:
      self._report(problems.Place(shown, 1), str(error))
      return
    self._size += len(text)
    table = names.Imports(self._index)
    self.tables.append(table)
    self._stack.append(path)
    self._text(text, shown, table, path.parent)
    self._stack.pop()

  def _text(
    self,
    text: str,
    shown: str,
    table: names.Imports,
    folder: pathlib.Path,
    first: int | None = None,
  ) -> None:
    """Reads gin text; `first` is the line to report instead of the text's."""
    if max(map(len, text.splitlines()), default=0) > _LONGEST_LINE:
      message = f"a line has over {_LONGEST_LINE} characters; break it"
      self._report(problems.Place(shown, first or 1), message)
      return
    statements, error = parse(text)
    for statement in statements:
      if len(self.problems) >= MOST_PROBLEMS:
        return
      line = first or statement.location.line_num
      place = problems.Place(shown, line)
      try:
        self._statement(statement, place, table, folder)
      except names.Unknown as unknown:
        self.complete = False
        # One line for a name that many bindings use.
        key = (id(table), str(unknown))
        if str(unknown) and key not in self._reported:
          self._reported.add(key)
          self._report(place, str(unknown))
    if error is not None:
      line, message = error
      self._report(problems.Place(shown, first or line), message)

  def _statement(self, statement, place, table, folder) -> None:
    if isinstance(statement, config_parser.ImportStatement):
      table.add(statement)
    elif isinstance(statement, config_parser.IncludeStatement):
      try:
        path = self._path.included(statement.filename, folder)
      except search.NotFound as error:
        self._report(place, str(error))
      else:
        self._file(path, place)
    elif isinstance(statement, config_parser.BindingStatement):
      self._binding(statement, place, table)

  def _binding(self, statement, place, table) -> None:
    def resolve(leaf):
      if not isinstance(leaf, values.Reference):
        return leaf
      definition = table.locate(leaf.name)
      if definition.kind == "function" and not leaf.call:
        return dataclasses.replace(leaf, name=definition.name)
      if not self._index.bindable(definition.name):
        raise names.Unknown(_not_bindable(definition))
      return dataclasses.replace(leaf, name=definition.name)

    unsupported = values.unsupported(statement.value)
    if unsupported:
      self._report(place, unsupported)
      return
    if not statement.arg_name:
      name = "/".join(filter(None, (statement.scope, statement.selector)))
      if name == "REQUIRED":
        raise names.Unknown("REQUIRED is gin's own; choose another name")
      value = values.replace(statement.value, resolve)
      self.statements.append(MacroDefinition(name, value, place))
      return
    definition = table.locate(statement.selector)
    if not self._index.bindable(definition.name):
      raise names.Unknown(_not_bindable(definition))
    scope = tuple(statement.scope.split("/")) if statement.scope else ()
    value = values.replace(statement.value, resolve)
    self.statements.append(
      Binding(scope, definition.name, statement.arg_name, value, place)
    )


def _not_bindable(definition) -> str:
  if definition.kind == "function":
    return (
      f"{definition.short} is a function that is not annotated to return a"
      " dataclass or Linen module, and gin may call no other; bind a dataclass"
    )
  return (
    f"{definition.short} is neither a dataclass nor a Linen module, and gin"
    " may build nothing else; bind the dataclass that leads to it"
  )


def parse(text: str) -> tuple[list[Any], tuple[int, str] | None]:
  """Returns the statements before the first mistake, and the mistake."""
  statements = []
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Python's on odd escapes in strings
    try:
      parser = config_parser.ConfigParser(text, _Delegate())
      while (statement := parser.parse_statement()) is not None:
        statements.append(statement)
    except _PARSER_ERRORS as error:
      return statements, _mistake(error, text)
  return statements, None


def _mistake(error: BaseException, text: str) -> tuple[int, str]:
  """Returns line and message of what the parser raised."""
  lines = text.splitlines() or [""]
  line = len(lines)
  if isinstance(error, SyntaxError) and error.lineno:
    line = error.lineno
  elif isinstance(error, tokenize.TokenError) and len(error.args) > 1:
    line = error.args[1][0]
  line = min(max(line, 1), len(lines))
  got = lines[line - 1].strip()
  got = got if len(got) <= 60 else got[:57] + "..."
  reason = str(getattr(error, "msg", None) or error) or type(error).__name__
  if isinstance(error, RecursionError):
    reason = "nested too deeply"
  token = re.search(r"Failed to parse token '(.*)'", reason, re.DOTALL)
  if token:
    word = token[1]
    return line, (
      f"{got!r}: {word} is neither a number, a quoted string, True, False nor"
      f" None; quote it ('{word}') or write a number"
    )
  reason = reason.strip().rstrip(".").splitlines()[0]
  return line, (
    f"{got!r} is not gin ({reason}); expected module.Class.field = value,"
    " NAME = value, an include or an import"
  )
