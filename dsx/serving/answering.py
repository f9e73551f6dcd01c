"""One call from the engine to the client, whole or as a stream.

A client who goes away is noticed at every moment, and its answers cancelled.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette import requests
from starlette import responses

from dsx.serving import admission as admission_lib
from dsx.serving import answer as answer_lib
from dsx.serving import connection
from dsx.serving import generation as generation_lib
from dsx.serving import protocol
from dsx.serving import response as response_lib
from dsx.serving import telemetry as telemetry_lib


class Answering:
  """Has the engine work on calls."""

  def __init__(
    self,
    admission: admission_lib.Admission,
    telemetry: telemetry_lib.Telemetry,
    seconds: float,
  ):
    """Takes what counts, and the time that an answer has."""
    self._admission = admission
    self._telemetry = telemetry
    self._seconds = seconds

  async def answer(
    self,
    request: requests.Request,
    call: protocol.Call,
    generation: generation_lib.Generation,
    response: response_lib.Response,
  ) -> responses.Response:
    """The answers to a call.

    Args:
      request: from whom; its body was read.
      call: what it said.
      generation: not begun yet.
      response: how the answers look.

    Raises:
      refusal.Refusal: there is too much to do, the engine refuses or fails, or
        it takes too long.
      connection.Gone: the client has gone.
    """
    room = self._admission.enter(len(generation))

    def close(error: BaseException | None) -> None:
      generation.close()
      room.close()
      self._telemetry.generated(generation)
      if isinstance(error, connection.Gone):
        self._telemetry.gone()

    try:
      generation.begin()
      if not call.stream:
        pieces = await self._in_time(request, _whole(generation))
        body = connection.Json(response.whole(pieces, generation))
        close(None)
        return body
      # What goes wrong before the first piece still gets a status.
      first = await self._in_time(request, generation.next())
    except BaseException as error:
      close(error)
      raise
    return connection.Events(
      _events(generation, first, call, response),
      seconds=max(self._seconds - generation.seconds, 0.0),
      close=close,
    )

  async def _in_time(self, request: requests.Request, work):
    """Awaits work while the client is there and its time has not run out."""
    try:
      async with asyncio.timeout(self._seconds):
        return await connection.attend(request.receive, work)
    except TimeoutError:
      raise connection.late(self._seconds) from None


async def _whole(
  generation: generation_lib.Generation,
) -> list[answer_lib.Piece]:
  """All answers, each joined."""
  pieces: list[list[answer_lib.Piece]] = [[] for _ in range(len(generation))]
  while (news := await generation.next()) is not None:
    pieces[news[0]].append(news[1])
  return [answer_lib.join(parts) for parts in pieces]


async def _events(
  generation: generation_lib.Generation,
  first: tuple[int, answer_lib.Piece] | None,
  call: protocol.Call,
  response: response_lib.Response,
) -> AsyncIterator[dict[str, Any]]:
  """The events of a stream, the first piece having come already."""
  news = first
  # With counts asked for, every other event says that it has none.
  more: dict[str, Any] = {"usage": None} if call.include_usage else {}
  while news is not None:
    for choice in response.deltas(*news):
      yield response.chunk([choice], **more)
    news = await generation.next()
  if call.include_usage:
    yield response.chunk([], usage=response.usage(generation))
