"""Where the updates of a client's requests arrive.

Orders go from the event loop's thread to the engine's, news come back.
"""

import asyncio
from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

from dsx.inference import request as request_lib
from dsx.serving import refusal

News = tuple[int, request_lib.Update | refusal.Refusal]


class Order(NamedTuple):
  """What a mailbox wants of the engine.

  Attributes:
    what: to begin or to end a request.
    mailbox: whose it is.
    key: the mailbox's name of it.
    request: to be begun.
  """

  what: Literal["submit", "cancel"]
  mailbox: "Mailbox"
  key: int
  request: request_lib.Request | None


class Mailbox:
  """Requests of one client, and where their updates arrive.

  For the event loop's thread. Closing it cancels what is not finished.
  """

  def __init__(self, order: Callable[[Order], None]):
    """Opens it on the running event loop.

    Args:
      order: leaves orders for the engine's thread.
    """
    self._order = order
    self._loop = asyncio.get_running_loop()
    self._arrived: asyncio.Queue = asyncio.Queue()
    self._open: set[int] = set()

  def submit(self, key: int, request: request_lib.Request) -> None:
    """Asks for a request under a name of the caller's."""
    self._open.add(key)
    self._order(Order("submit", self, key, request))

  def cancel(self, key: int) -> None:
    """Ends a request; no update of it comes any more."""
    if key in self._open:
      self._open.discard(key)
      self._order(Order("cancel", self, key, None))

  def close(self) -> None:
    """Cancels all that is left."""
    for key in list(self._open):
      self.cancel(key)

  @property
  def open(self) -> bool:
    """Whether updates are still to come."""
    return bool(self._open)

  async def get(self) -> tuple[int, request_lib.Update]:
    """Waits for the next update of any request.

    Raises:
      refusal.Refusal: the engine refused a request, or failed.
    """
    while True:
      key, update = await self._arrived.get()
      if key not in self._open:
        continue  # it was cancelled meanwhile
      if isinstance(update, refusal.Refusal):
        self._open.discard(key)
        raise update
      if update.finish is not None:
        self._open.discard(key)
      return key, update

  def deliver(self, news: list) -> None:
    """Hands over (key, update or refusal) pairs; from the worker's thread."""
    try:
      self._loop.call_soon_threadsafe(self._take, news)
    except RuntimeError:
      pass  # the loop has ended, nobody waits

  def _take(self, news: list) -> None:
    for one in news:
      self._arrived.put_nowait(one)
