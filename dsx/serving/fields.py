"""The fields of a JSON body, each checked as it is read.

Nothing of a body is used that was not asked for here by name and kind, and
what nobody asked for is refused: a mistyped field would otherwise be silently
without effect. `null` is the same as leaving a field out.
"""

from collections.abc import Callable
from collections.abc import Sequence
import difflib
import json
from typing import Any

from dsx.serving import refusal

_MOST_DIGITS = 400  # more than any number of a request needs


def parse(body: bytes) -> "Fields":
  """The JSON object of a body.

  Raises:
    refusal.Refusal: it is not one.
  """
  try:
    value = json.loads(
      body.decode("utf-8"),
      parse_constant=_constant,
      parse_int=_integer,
    )
  except UnicodeDecodeError as error:
    raise refusal.Refusal(
      f"body: byte {error.start} is not UTF-8; expected JSON in UTF-8",
      code="invalid_json",
    ) from None
  except RecursionError:
    raise refusal.Refusal(
      "body: nested too deeply; expected the JSON object of a request",
      code="invalid_json",
    ) from None
  except json.JSONDecodeError as error:
    raise refusal.Refusal(
      f"body: not JSON ({error.msg} at character {error.pos}); expected an "
      "object",
      code="invalid_json",
    ) from None
  if not isinstance(value, dict):
    raise refusal.Refusal(
      f"body: got {refusal.shown(value)}, expected a JSON object",
      code="invalid_json",
    )
  return Fields(value)


def _constant(name: str):
  raise refusal.Refusal(
    f"body: got {name}, which is not JSON; expected finite numbers",
    code="invalid_json",
  )


def _integer(digits: str) -> int:
  if len(digits) > _MOST_DIGITS:
    raise refusal.Refusal(
      f"body: a number of {len(digits)} digits; expected at most "
      f"{_MOST_DIGITS}",
      code="invalid_json",
    )
  return int(digits)


class Fields:
  """The fields of one object, or of one within it."""

  def __init__(self, values: dict[str, Any], name: str = ""):
    """Takes an object.

    Args:
      values: the object.
      name: where it lies in the body, to begin messages with.
    """
    self._values = {k: v for k, v in values.items() if v is not None}
    self._name = f"{name}." if name else ""
    self._asked: set[str] = set()

  def refuse(self, field: str, value, expected: str) -> refusal.Refusal:
    """The error of a field that is not what it should be."""
    name = self._name + field
    return refusal.Refusal(
      f"{name}: got {refusal.shown(value)}, expected {expected}", param=name
    )

  def get(self, field: str) -> Any:
    """The value of a field as it came, None if it did not."""
    self._asked.add(field)
    return self._values.get(field)

  def integer(
    self, field: str, default: int | None, low: int, high: int
  ) -> int | None:
    """An integer in [low, high]."""
    value = self.get(field)
    if value is None:
      return default
    # JSON does not tell 1.0 from 1, and some clients write the former.
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    if not is_integer(value) or not low <= value <= high:
      raise self.refuse(field, value, f"an integer from {low} to {high}")
    return int(value)

  def number(
    self, field: str, default: float, low: float, high: float
  ) -> float:
    """A number in [low, high]."""
    value = self.get(field)
    if value is None:
      return default
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise self.refuse(field, value, f"a number from {low:g} to {high:g}")
    if not (low <= value <= high):
      raise self.refuse(field, value, f"a number from {low:g} to {high:g}")
    return float(value)

  def boolean(self, field: str, default: bool = False) -> bool:
    """True or false."""
    value = self.get(field)
    if value is None:
      return default
    if not isinstance(value, bool):
      raise self.refuse(field, value, "true or false")
    return value

  def text(self, field: str, default: str | None = None) -> str:
    """A string that UTF-8 can hold.

    Raises:
      refusal.Refusal: it is something else, or missing and has no default.
    """
    value = self.get(field)
    if value is None and default is not None:
      return default
    if not isinstance(value, str):
      raise self.refuse(field, value, "a string")
    return self.utf8(field, value)

  def utf8(self, field: str, text: str) -> str:
    """The text, once it is found to hold no half of a surrogate pair."""
    try:
      text.encode("utf-8")
    except UnicodeEncodeError as error:
      got = text[error.start : error.end]
      raise self.refuse(
        field, got, "text; a lone surrogate is no character, leave it out"
      ) from None
    return text

  def strings(self, field: str, most: int) -> tuple[str, ...]:
    """A string or a list of at most `most`, none of them empty."""
    value = self.get(field)
    if value is None:
      return ()
    values = [value] if isinstance(value, str) else value
    expected = f"a string or a list of at most {most}, none of them empty"
    if not isinstance(values, list) or len(values) > most:
      raise self.refuse(field, value, expected)
    if not all(isinstance(text, str) and text for text in values):
      raise self.refuse(field, value, expected)
    return tuple(self.utf8(field, text) for text in values)

  def integers(self, field: str, most: int, high: int) -> tuple[int, ...]:
    """A list of at most `most` integers in [0, high]."""
    value = self.get(field)
    if value is None:
      return ()
    if not isinstance(value, list) or len(value) > most:
      raise self.refuse(field, value, f"a list of at most {most} integers")
    for number in value:
      if not is_integer(number) or not 0 <= number <= high:
        raise self.refuse(field, number, f"integers from 0 to {high}")
    return tuple(value)

  def object(self, field: str) -> "Fields | None":
    """An object within this one."""
    value = self.get(field)
    if value is None:
      return None
    if not isinstance(value, dict):
      raise self.refuse(field, value, "an object")
    return Fields(value, self._name + field)

  def ignore(self, *fields: str) -> None:
    """Lets fields pass that have no effect here."""
    self._asked.update(fields)

  def only(
    self, field: str, allowed: Callable[[Any], bool], expected: str
  ) -> None:
    """Refuses any value of a field but those that change nothing."""
    value = self.get(field)
    if value is not None and not allowed(value):
      raise self.refuse(field, value, expected)

  def finish(self) -> None:
    """Refuses what nobody asked for.

    Raises:
      refusal.Refusal: there is a field that this server does not know.
    """
    for field in self._values:
      if field not in self._asked:
        raise self._unknown(field, sorted(self._asked))

  def _unknown(self, field: str, known: Sequence[str]) -> refusal.Refusal:
    near = difflib.get_close_matches(field, known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else "leave it out"
    return refusal.Refusal(
      f"{refusal.shown(self._name + field)}: unknown field; {advice}",
      param=field if field.isascii() else None,
      code="unknown_field",
    )


def is_integer(value: Any) -> bool:
  """Whether a JSON value is an integer; true and false are none."""
  return isinstance(value, int) and not isinstance(value, bool)
