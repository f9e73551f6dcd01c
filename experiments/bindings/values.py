"""The values that a gin file can bind: literals, references and macros."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

_INTEGER_LIMIT = 2**64


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@scope/name` or, called, `@scope/name()`.

  Attributes:
    scope: the names before the last slash.
    name: full dotted name of a class or function once resolved, before that
      what the file says.
    call: whether gin builds it (`()`) or passes it as it is.
    shown: what the file says, for messages.
  """

  scope: tuple[str, ...]
  name: str
  call: bool
  shown: str

  def __str__(self):
    return "@" + "/".join((*self.scope, self.shown)) + "()" * self.call


@dataclasses.dataclass(frozen=True)
class Macro:
  """`%NAME`, another name for a value.

  Attributes:
    name: name with its scopes.
  """

  name: str

  def __str__(self):
    return f"%{self.name}"


REQUIRED = Macro("gin.REQUIRED")


def replace(value: Any, change: Callable[[Any], Any]) -> Any:
  """Returns `value` with every leaf of its containers put through `change`."""
  if isinstance(value, dict):
    return {replace(k, change): replace(v, change) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(replace(item, change) for item in value)
  return change(value)


def leaves(value: Any) -> Iterator[Any]:
  """Yields everything in `value` that is no container."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield from leaves(key)
      yield from leaves(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from leaves(item)
  else:
    yield value


def unsupported(value: Any) -> str | None:
  """Returns why gin could not hand on `value` unchanged, or None."""
  for leaf in leaves(value):
    if isinstance(leaf, complex):
      return f"complex number {leaf}: expected a real one; leave out the 'j'"
    if isinstance(leaf, int) and abs(leaf) >= _INTEGER_LIMIT:
      return "integer of more than 64 bits: expected a smaller one; check it"
  return None


def written(value: Any, names: Mapping[str, str]) -> str:
  """Returns gin text for `value`.

  Args:
    value: literals, containers, references and macros.
    names: what to write for the full name of each reference.
  """
  if isinstance(value, Reference):
    selector = "/".join((*value.scope, names[value.name]))
    return f"@{selector}{'()' * value.call}"
  if isinstance(value, Macro):
    return str(value)
  if isinstance(value, dict):
    items = (
      f"{written(key, names)}: {written(item, names)}"
      for key, item in value.items()
    )
    return "{" + ", ".join(items) + "}"
  if isinstance(value, list):
    return "[" + ", ".join(written(item, names) for item in value) + "]"
  if isinstance(value, tuple):
    items = ", ".join(written(item, names) for item in value)
    return f"({items},)" if len(value) == 1 else f"({items})"
  if isinstance(value, float) and math.isinf(value):
    return "1e999" if value > 0 else "-1e999"  # gin cannot read `inf`
  return repr(value)


def shown(value: Any) -> str:
  """Returns `value` as the gin file has it, for a message."""
  if isinstance(value, (Reference, Macro)):
    return str(value)
  names = {
    leaf.name: leaf.shown
    for leaf in leaves(value)
    if isinstance(leaf, Reference)
  }
  text = written(value, names)
  return text if len(text) <= 60 else text[:57] + "..."
