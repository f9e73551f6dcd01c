"""How much is worked on at once; what is more is turned away."""

from collections.abc import Iterator
import contextlib

from dsx.serving import refusal


class Admission:
  """Counts calls and their answers; for the event loop's thread.

  Attributes:
    draining: set it to take on no more.
  """

  def __init__(self, *, max_calls: int, max_answers: int):
    """Starts with nothing to do.

    Args:
      max_calls: at once.
      max_answers: of all of them together.
    """
    self._max_calls = max_calls
    self._max_answers = max_answers
    self._calls = 0
    self._answers = 0
    self.draining = False

  def enter(self, answers: int) -> contextlib.ExitStack:
    """Takes on a call; closing what it returns makes room again.

    Raises:
      refusal.Refusal: there is too much to do already.
    """
    stack = contextlib.ExitStack()
    stack.enter_context(self._held(answers))
    return stack

  @contextlib.contextmanager
  def _held(self, answers: int) -> Iterator[None]:
    if self.draining:
      raise stopping()
    if answers > self._max_answers:
      raise refusal.Refusal(
        f"{answers} answers: expected at most {self._max_answers}; ask for "
        "fewer"
      )
    full = self._answers + answers > self._max_answers
    if full or self._calls >= self._max_calls:
      raise refusal.Refusal(
        f"{self._calls} requests with {self._answers} answers are being worked "
        f"on: expected at most {self._max_calls} and {self._max_answers}; try "
        "again later",
        status=429,
        retry_after=1,
        code="too_many_requests",
      )
    self._calls += 1
    self._answers += answers
    try:
      yield
    finally:
      self._calls -= 1
      self._answers -= answers


def stopping() -> refusal.Refusal:
  """What those are told who come, or are still here, at the end."""
  return refusal.Refusal(
    "the server is stopping; try again later",
    status=503,
    retry_after=10,
    code="stopping",
  )
