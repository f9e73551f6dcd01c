"""From a port to a served model, and a quiet end.

The port is taken before the weights are read, and listened on only once the
model answers: whoever connects before is refused and not left waiting.
"""

from collections.abc import Callable
import errno
import logging
import signal
import socket
from typing import Any

import uvicorn

from dsx.data import vocab as vocab_lib
from dsx.serving import app as app_lib
from dsx.serving import settings
from dsx.serving import worker as worker_lib

_MOST_HEADER_BYTES = 64 * 2**10
_LAST_STEP_SECONDS = 5.0


def bind(serving: settings.Serving) -> socket.socket:
  """Takes the port; nobody can connect yet.

  Raises:
    ValueError: it is in use, or the address is not this machine's.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      serving.host,
      serving.port,
      type=socket.SOCK_STREAM,
      flags=socket.AI_PASSIVE,
    )[0]
    taken = socket.socket(family, kind, protocol)
    try:
      taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      taken.bind(address)
    except OSError:
      taken.close()
      raise
  except OSError as error:
    raise _unusable(serving, error) from None
  return taken


def _unusable(serving: settings.Serving, error: OSError) -> ValueError:
  remedy = "choose another, --port=0 takes a free one"
  is_address = error.errno == errno.EADDRNOTAVAIL
  if is_address or isinstance(error, socket.gaierror):
    remedy = "--host=127.0.0.1 is this machine alone, 0.0.0.0 all its addresses"
  return ValueError(
    f"port={serving.port} on {serving.host}: {error.strerror or error}; "
    f"{remedy}"
  )


def run(
  serving: settings.Serving,
  taken: socket.socket,
  build: Callable[[], Any],
  vocabulary: vocab_lib.Vocabulary,
  *,
  api_key: str | None = None,
) -> bool:
  """Serves until SIGTERM or Ctrl-C.

  Then nobody new is let in, answers in flight have `grace_seconds`, and it
  returns. Prints one line when it is ready.

  Args:
    serving: limits and the model's name.
    taken: from `bind`.
    build: makes an `inference.engine.Engine`.
    vocabulary: of the model.
    api_key: that clients have to send, or None.

  Returns:
    Whether the engine's thread has ended. If a long step keeps it, the
    interpreter cannot end in an orderly way; `os._exit` can.

  Raises:
    ValueError: somebody else listens on the port by now, or the engine cannot
      be made.
  """
  worker = worker_lib.Worker(build)
  with taken:
    worker.start()
    try:
      service = app_lib.Service(worker, vocabulary, serving)
      try:
        taken.listen()
      except OSError as error:
        raise _unusable(serving, error) from None
      _announce(serving, taken, has_key=bool(api_key))
      _Server(_configuration(serving, service, api_key), service).run([taken])
    finally:
      ended = worker.stop(_LAST_STEP_SECONDS)
  logging.info("stopped")
  return ended


def _announce(
  serving: settings.Serving, taken: socket.socket, *, has_key: bool
) -> None:
  host, port = taken.getsockname()[:2]
  if not serving.is_loopback:
    logging.warning(
      "%s can be reached from other machines: %s, and nothing is encrypted",
      host,
      "they need the key" if has_key else "anybody may ask",
    )
  place = f"[{host}]" if ":" in host else host
  print(
    f"listening on http://{place}:{port}/v1, model {serving.model_name}",
    flush=True,
  )


def _configuration(
  serving: settings.Serving, service: app_lib.Service, api_key: str | None
) -> uvicorn.Config:
  return uvicorn.Config(
    service.application(api_key),
    loop="asyncio",
    http="h11",
    ws="none",
    lifespan="off",
    log_config=None,
    access_log=False,
    server_header=False,
    proxy_headers=False,
    limit_concurrency=serving.max_connections,
    timeout_graceful_shutdown=max(1, round(serving.grace_seconds)),
    h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
  )


class _Server(uvicorn.Server):
  """Tells the service when to stop, and ends without the signal's own end."""

  def __init__(self, config: uvicorn.Config, service: app_lib.Service):
    super().__init__(config)
    self._service = service

  def run(self, sockets=None) -> None:
    # uvicorn raises the signal again when it has finished, for whoever handled
    # it before: nobody, for it has been obeyed.
    ours = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, _obeyed) for one in ours}
    try:
      super().run(sockets)
    finally:
      for one, handler in before.items():
        signal.signal(one, handler)

  async def shutdown(self, sockets=None) -> None:
    self._service.drain()
    await super().shutdown(sockets)


def _obeyed(unused_number, unused_frame) -> None:
  """Nothing is left to do."""
