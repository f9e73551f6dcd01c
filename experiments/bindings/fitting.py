"""Whether a value of a gin file fits a type, and what to write if not.

An int fits a float, as everywhere in Python; a bool fits neither, because
`steps = True` is a slip. A list is no tuple: our dataclasses are hashed.
"""

import ast
import dataclasses
import difflib
from typing import Any

from experiments.bindings import annotations
from experiments.bindings import sources
from experiments.bindings import values

_PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "bytes": bytes}


def fits(index: sources.Sources, value: Any, wanted: annotations.Type) -> bool:
  """Whether `value`, without macros, may be bound where `wanted` is asked."""
  if isinstance(wanted, annotations.Anything):
    return True
  if isinstance(wanted, annotations.AnyOf):
    return any(fits(index, value, type_) for type_ in wanted.types)
  if isinstance(value, values.Reference):
    return _reference_fits(index, value, wanted)
  if isinstance(wanted, annotations.Plain):
    if wanted.name == "None":
      return value is None
    if wanted.name == "float" and type(value) is int:
      return True
    return type(value) is _PLAIN[wanted.name]
  if isinstance(wanted, annotations.OneOf):
    return any(
      value == option and type(value) is type(option)
      for option in wanted.options
    )
  if isinstance(wanted, annotations.Items):
    return _items_fit(index, value, wanted)
  if isinstance(wanted, annotations.Table):
    return isinstance(value, dict) and all(
      fits(index, key, wanted.key) and fits(index, item, wanted.item)
      for key, item in value.items()
    )
  return False  # a literal where one of our objects or functions is wanted


def _items_fit(index, value, wanted: annotations.Items) -> bool:
  kinds = {"tuple": tuple, "list": list, "sequence": (tuple, list)}
  if not isinstance(value, kinds[wanted.kind]):
    return False
  if wanted.repeated:
    return all(fits(index, item, wanted.types[0]) for item in value)
  return len(value) == len(wanted.types) and all(
    fits(index, item, type_)
    for item, type_ in zip(value, wanted.types, strict=True)
  )


def _reference_fits(
  index, value: values.Reference, wanted: annotations.Type
) -> bool:
  if isinstance(wanted, annotations.Callable):
    return not value.call
  if not isinstance(wanted, annotations.Instance) or not value.call:
    return False
  product = index.product(value.name)
  if product is None:
    return True
  if wanted.name in index.ancestors(product) or index.is_open(product):
    return True
  # Nothing inherits from a protocol that it follows.
  return "typing.Protocol" in index.ancestors(wanted.name)


def remedy(index: sources.Sources, value: Any, wanted: annotations.Type) -> str:
  """Returns what to write instead of a `value` that does not fit."""
  types = wanted.types if isinstance(wanted, annotations.AnyOf) else (wanted,)
  for type_ in types:
    advice = _remedy(index, value, type_)
    if advice is not None:
      return advice
  if value is None:
    return "leave the line out to keep the default"
  return f"give {wanted}"


def _remedy(index, value: Any, wanted: annotations.Type) -> str | None:
  if isinstance(wanted, annotations.Plain):
    return _number_remedy(value, wanted.name)
  if isinstance(wanted, annotations.OneOf):
    options = {str(option): option for option in wanted.options}
    match = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
    return f"did you mean {options[match[0]]!r}?" if match else None
  if isinstance(wanted, annotations.Items):
    if isinstance(value, (tuple, list)):
      other = list(value) if wanted.kind == "list" else tuple(value)
    else:
      other = [value] if wanted.kind == "list" else (value,)
    if other != value and fits(index, other, wanted):
      return f"write {values.shown(other)}"
  if isinstance(wanted, annotations.Instance):
    if isinstance(value, values.Reference) and not value.call:
      called = dataclasses.replace(value, call=True)
      if fits(index, called, wanted):
        return f"write {called}"
    if index.bindable(wanted.name):
      return f"write @{wanted}()"
  if isinstance(wanted, annotations.Callable) and isinstance(
    value, values.Reference
  ):
    return f"write {dataclasses.replace(value, call=False)}"
  return None


def _number_remedy(value: Any, wanted: str) -> str | None:
  if isinstance(value, str) and wanted in ("int", "float", "bool"):
    try:
      number = ast.literal_eval(value.strip().capitalize())
    except (ValueError, SyntaxError):
      return None
    if type(number).__name__ in (wanted, "int"):
      return f"write {value.strip()} without quotes"
  if isinstance(value, float) and wanted == "int":
    return (
      f"write {int(value)}" if value.is_integer() else "write a whole number"
    )
  if isinstance(value, int) and wanted == "bool":
    return f"write {bool(value)}"
  if isinstance(value, (int, float)) and wanted == "str":
    return f"write '{value}'"
  return None
