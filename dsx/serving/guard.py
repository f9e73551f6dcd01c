"""What every request passes before anything reads it.

Names by which the server may be addressed, the API key, and answers to what
goes wrong further in; every answer is counted.
"""

import asyncio
from collections.abc import Sequence
import hmac
import logging
import time

from starlette import types

from dsx.serving import admission
from dsx.serving import connection
from dsx.serving import refusal
from dsx.serving import telemetry as telemetry_lib

# Whoever keeps the server running asks without a key.
_OPEN = ("/health",)
NOBODY = 499  # the client has gone; nginx's number for it


class Guard:
  """An ASGI application around another one."""

  def __init__(
    self,
    app: types.ASGIApp,
    telemetry: telemetry_lib.Telemetry,
    *,
    routes: Sequence[str],
    hosts: frozenset[str] = frozenset(),
    api_key: str | None = None,
  ):
    """Wraps.

    Args:
      app: answers what is let through.
      telemetry: counts.
      routes: paths to count apart; others are counted as one.
      hosts: names that the Host header may have, in lower case; empty for any.
      api_key: that clients have to send, or None.
    """
    self._app = app
    self._telemetry = telemetry
    self._routes = frozenset(routes)
    self._hosts = hosts
    self._api_key = api_key.encode() if api_key else None

  async def __call__(
    self, scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    """ASGI."""
    if scope["type"] != "http":
      return
    began = time.monotonic()
    status, complete = 0, False

    async def noting(message):
      nonlocal status, complete
      if message["type"] == "http.response.start":
        status = message["status"]
      else:
        complete = not message.get("more_body", False)
      await send(message)

    try:
      self._check(scope)
      await self._app(scope, receive, noting)
    except refusal.Refusal as error:
      await refused(error)(scope, receive, noting)
    except asyncio.CancelledError:
      if status:
        raise
      await refused(admission.stopping())(scope, receive, noting)
    except Exception:
      logging.exception("%s %s", scope["method"], ascii(scope["path"]))
      if not complete:
        raise  # the connection is closed, which is all that is left to say
    finally:
      route = scope["path"] if scope["path"] in self._routes else "other"
      seconds = time.monotonic() - began
      self._telemetry.answered(route, status or NOBODY, seconds)

  def _check(self, scope: types.Scope) -> None:
    """Refuses strangers.

    Raises:
      refusal.Refusal: the name or the key is wrong.
    """
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host.partition("]")[0].lstrip("[")
    if not host.startswith("["):
      name = host.partition(":")[0]
    if self._hosts and name not in self._hosts:
      raise refusal.Refusal(
        f"Host: got {refusal.shown(host)}, expected one of "
        f"{', '.join(sorted(self._hosts))}; or start the server with "
        "Serving.allowed_hosts",
        status=421,
      )
    if self._api_key is None or scope["path"] in _OPEN:
      return
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    right = hmac.compare_digest(key.strip(), self._api_key)
    if scheme.lower() != b"bearer" or not right:
      raise refusal.Refusal(
        "Authorization: expected 'Bearer' and this server's API key",
        status=401,
        code="invalid_api_key",
      )


def refused(error: refusal.Refusal) -> connection.Json:
  """The response that tells a client why not."""
  return connection.Json(error.body, error.status, error.headers)


def unforeseen(error: Exception) -> refusal.Refusal:
  """What a client is told of a mistake in this code."""
  return refusal.Refusal(
    f"{type(error).__name__} in the server; its log says where",
    status=500,
    code="internal_error",
  )
