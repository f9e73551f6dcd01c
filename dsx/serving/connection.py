"""What goes over one HTTP connection, and noticing when nobody is there."""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Awaitable
from collections.abc import Callable
import json
from typing import Any
from typing import TypeVar

from starlette import requests
from starlette import responses

from dsx.serving import admission
from dsx.serving import refusal

_T = TypeVar("_T")
_FAREWELL_SECONDS = 5.0
_READ_TO_SAY_NO = 16  # times what is allowed is read before a body is refused


class Gone(Exception):
  """The client has closed the connection."""


async def attend(
  receive: Callable[[], Awaitable[Any]], work: Awaitable[_T]
) -> _T:
  """Awaits work for as long as the client is there.

  Args:
    receive: ASGI's, of a request whose body was read.
    work: what the client waits for; cancelled if it goes.

  Raises:
    Gone: the client went first.
  """
  gone = asyncio.ensure_future(_until_gone(receive))
  task = asyncio.ensure_future(work)
  try:
    await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise Gone
    return task.result()
  finally:
    for one in (gone, task):
      one.cancel()
    await asyncio.gather(gone, task, return_exceptions=True)


async def _until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
  while (await receive())["type"] != "http.disconnect":
    pass


async def body(
  request: requests.Request, *, most: int, seconds: float
) -> bytes:
  """The body of a request that sends JSON.

  Raises:
    refusal.Refusal: it is not JSON by its own account, too large or too slow.
    Gone: the client went.
  """
  kind = request.headers.get("content-type", "")
  if kind.partition(";")[0].strip().lower() != "application/json":
    # Anything else a web page may send anywhere without asking.
    raise refusal.Refusal(
      f"Content-Type: got {refusal.shown(kind)}, expected application/json",
      status=415,
    )
  too_large = refusal.Refusal(
    f"body: expected at most {most} bytes; send less at once", status=413
  )
  patience = _READ_TO_SAY_NO * most
  length = request.headers.get("content-length", "0")
  if length.isdecimal() and int(length[:20]) > most:
    # Who is still sending would see the connection break and not the answer.
    if "expect" in request.headers or int(length[:20]) > patience:
      raise too_large
  parts, size = [], 0
  try:
    async with asyncio.timeout(seconds):
      async for part in request.stream():
        size += len(part)
        if size > patience:
          raise too_large
        if size > most:
          parts.clear()
        else:
          parts.append(part)
  except TimeoutError:
    raise refusal.Refusal(
      f"body: not complete after {seconds:g} s; expected all of it by then",
      status=408,
    ) from None
  except requests.ClientDisconnect:
    raise Gone from None
  if size > most:
    raise too_large
  return b"".join(parts)


class Json(responses.JSONResponse):
  """JSON in ASCII, which holds any string there is."""

  def render(self, content: Any) -> bytes:
    """The bytes of a body."""
    return encoded(content)


def encoded(content: Any) -> bytes:
  """Compact JSON in ASCII."""
  return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Events(responses.Response):
  """Server-sent events, for as long as the client is there."""

  media_type = "text/event-stream"

  def __init__(
    self,
    events: AsyncIterator[dict],
    *,
    seconds: float,
    close: Callable[[BaseException | None], None],
  ):
    """Sends nothing yet.

    Args:
      events: objects to be sent.
      seconds: within which all of them have to be sent.
      close: called with what ended the stream early, or None, however it ends.
    """
    # Not `super().__init__`: without a body nobody counts its bytes.
    self.status_code = 200
    self.background = None
    self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    self._events = events
    self._seconds = seconds
    self._close = close

  async def __call__(self, scope, receive, send) -> None:
    """ASGI."""
    del scope
    ended: BaseException | None = None
    try:
      await attend(receive, self._pump(send))
    except Gone as error:
      ended = error
    except refusal.Refusal as error:
      ended = error
      await self._farewell(send, error)
    except asyncio.CancelledError as error:
      # The server is being stopped and has waited long enough.
      ended = error
      await self._farewell(send, admission.stopping())
    except BaseException as error:
      ended = error
      raise
    finally:
      self._close(ended)

  async def _pump(self, send) -> None:
    try:
      async with asyncio.timeout(self._seconds):
        await send(
          {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
          }
        )
        async for event in self._events:
          await _post(send, encoded(event))
        await _post(send, b"[DONE]", last=True)
    except TimeoutError:
      raise late(self._seconds) from None

  async def _farewell(self, send, error: refusal.Refusal) -> None:
    """Says what went wrong to a client who may not be listening."""
    try:
      async with asyncio.timeout(_FAREWELL_SECONDS):
        await _post(send, encoded(error.body), last=True)
    except TimeoutError:
      pass


async def _post(send, data: bytes, *, last: bool = False) -> None:
  event = b"data: " + data + b"\n\n"
  await send(
    {"type": "http.response.body", "body": event, "more_body": not last}
  )


def late(seconds: float) -> refusal.Refusal:
  """The error of an answer that took too long."""
  return refusal.Refusal(
    f"the answer was not complete after {seconds:g} s; ask for fewer tokens, "
    "or try again when there is less to do",
    status=504,
    code="timeout",
  )
