"""The routes: which body each takes, and what it answers."""

import asyncio
import time
from typing import Any

from starlette import applications
from starlette import exceptions
from starlette import requests
from starlette import responses
from starlette import routing

from dsx.data import vocab as vocab_lib
from dsx.serving import admission as admission_lib
from dsx.serving import answering
from dsx.serving import connection
from dsx.serving import fields as fields_lib
from dsx.serving import generation as generation_lib
from dsx.serving import guard
from dsx.serving import protocol
from dsx.serving import refusal
from dsx.serving import response as response_lib
from dsx.serving import settings
from dsx.serving import telemetry as telemetry_lib
from dsx.serving import tokenizing
from dsx.serving import worker as worker_lib


class Service:
  """One model and those who ask it."""

  def __init__(
    self,
    worker: worker_lib.Worker,
    vocabulary: vocab_lib.Vocabulary,
    serving: settings.Serving,
  ):
    """Takes a worker that was started."""
    self._worker = worker
    self._vocabulary = vocabulary
    self._serving = serving
    self._created = int(time.time())
    self._telemetry = telemetry_lib.Telemetry(lambda: worker.health)
    self._tokenizing = tokenizing.Tokenizing(
      vocabulary, worker.context, serving.think
    )
    self._admission = admission_lib.Admission(
      max_calls=serving.max_requests, max_answers=serving.max_sequences
    )
    self._answering = answering.Answering(
      self._admission, self._telemetry, serving.request_seconds
    )

  def drain(self) -> None:
    """Takes on nothing more; what is being answered goes on."""
    self._admission.draining = True

  def application(self, api_key: str | None = None) -> guard.Guard:
    """The ASGI application.

    Args:
      api_key: that clients have to send, or None.
    """
    routes = {
      "/v1/completions": (self.completions, "POST"),
      "/v1/chat/completions": (self.chat_completions, "POST"),
      "/v1/models": (self.models, "GET"),
      "/v1/models/{name:path}": (self.model, "GET"),
      "/tokenize": (self.tokenize, "POST"),
      "/detokenize": (self.detokenize, "POST"),
      "/tokenizer_info": (self.tokenizer_info, "GET"),
      "/health": (self.health, "GET"),
      "/metrics": (self.metrics, "GET"),
    }
    app = applications.Starlette(
      routes=[
        routing.Route(path, endpoint, methods=[method])
        for path, (endpoint, method) in routes.items()
      ],
      exception_handlers={
        refusal.Refusal: _refused,
        connection.Gone: _nobody,
        exceptions.HTTPException: _no_such_route,
        Exception: _unforeseen,
      },
    )
    app.router.redirect_slashes = False
    return guard.Guard(
      app,
      self._telemetry,
      routes=list(routes),
      hosts=self._serving.hosts,
      api_key=api_key,
    )

  async def completions(self, request: requests.Request) -> responses.Response:
    """POST /v1/completions."""
    call = protocol.completion(
      await self._fields(request),
      vocab_size=self._vocabulary.size,
      max_choices=self._serving.max_choices,
    )
    prompts = await self._aside(request, self._prompts, call)
    asked = self._asked(call, prompts)
    return await self._answering.answer(
      request,
      call,
      generation_lib.Generation(
        self._worker,
        self._vocabulary,
        asked,
        n=call.n,
        chat=False,
        specials=not call.skip_special_tokens,
      ),
      response_lib.Completions(
        self._serving.model_name, self._vocabulary, call, asked
      ),
    )

  async def chat_completions(
    self, request: requests.Request
  ) -> responses.Response:
    """POST /v1/chat/completions."""
    call = protocol.chat(
      await self._fields(request), max_choices=self._serving.max_choices
    )
    prompt = await self._aside(
      request, self._tokenizing.chat, call.messages, call.think
    )
    return await self._answering.answer(
      request,
      call,
      generation_lib.Generation(
        self._worker,
        self._vocabulary,
        self._asked(call, [tuple(prompt)]),
        n=call.n,
        chat=True,
        opened=self._tokenizing.thinks(call.think),
      ),
      response_lib.Chats(self._serving.model_name, self._vocabulary, call),
    )

  async def models(self, request: requests.Request) -> responses.Response:
    """GET /v1/models."""
    del request
    return connection.Json({"object": "list", "data": [self._model()]})

  async def model(self, request: requests.Request) -> responses.Response:
    """GET /v1/models/NAME."""
    self._check_model(request.path_params["name"])
    return connection.Json(self._model())

  async def tokenize(self, request: requests.Request) -> responses.Response:
    """POST /tokenize: a text, or a conversation, to ids."""
    fields = await self._fields(request)
    if fields.get("messages") is not None:
      tokens = await self._aside(
        request, self._tokenizing.chat, protocol.messages(fields), None
      )
    else:
      special = fields.boolean("add_special_tokens", True)
      text = fields.text("prompt")
      tokens = await self._aside(
        request, lambda: self._tokenizing.text(text, add_special_tokens=special)
      )
    fields.ignore("model")
    fields.finish()
    return connection.Json(
      {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": self._worker.context,
      }
    )

  async def detokenize(self, request: requests.Request) -> responses.Response:
    """POST /detokenize: ids to text, special tokens as their strings."""
    fields = await self._fields(request)
    tokens = protocol.token_ids(
      fields, "tokens", fields.get("tokens"), self._vocabulary.size
    )
    fields.ignore("model")
    fields.finish()
    text = self._vocabulary.decode(tokens, specials=True)
    return connection.Json({"prompt": text})

  async def tokenizer_info(
    self, request: requests.Request
  ) -> responses.Response:
    """GET /tokenizer_info: strings of special tokens."""
    del request
    info: dict[str, Any] = {
      f"{name}_token": self._tokenizing.special(name)
      for name in ("bos", "eos", "pad")
    }
    info |= {
      "vocab_size": self._vocabulary.size,
      "model_max_length": self._worker.context,
    }
    return connection.Json(info)

  async def health(self, request: requests.Request) -> responses.Response:
    """GET /health: 200 if requests are taken, 503 if not."""
    del request
    health = self._worker.health
    well = health.alive and health.engine and not self._admission.draining
    status = (
      "ok" if well else "stopping" if self._admission.draining else "failed"
    )
    body = {
      "status": status,
      "model": self._serving.model_name,
      "running": health.running,
      "waiting": health.waiting,
      "step_seconds": round(health.step_seconds, 3),
      "failures": health.failures,
      "last_failure": health.last_failure,
    }
    return connection.Json(body, 200 if well else 503)

  async def metrics(self, request: requests.Request) -> responses.Response:
    """GET /metrics, for Prometheus."""
    del request
    kind = {"Content-Type": telemetry_lib.CONTENT_TYPE}
    return responses.Response(self._telemetry.page(), headers=kind)

  async def _fields(self, request: requests.Request) -> fields_lib.Fields:
    """The body's fields, once it is about the model that there is."""
    body = await connection.body(
      request,
      most=self._serving.max_body_bytes,
      seconds=self._serving.body_seconds,
    )
    fields = fields_lib.parse(body)
    self._check_model(fields.text("model", self._serving.model_name))
    return fields

  def _check_model(self, name: str) -> None:
    if name != self._serving.model_name:
      raise refusal.Refusal(
        f"model: got {refusal.shown(name)}, expected "
        f"{self._serving.model_name!r}, the one that is served",
        status=404,
        param="model",
        code="model_not_found",
      )

  def _model(self) -> dict[str, Any]:
    return {
      "id": self._serving.model_name,
      "object": "model",
      "created": self._created,
      "owned_by": "dsx",
      "max_model_len": self._worker.context,
    }

  async def _aside(self, request: requests.Request, work, *arguments):
    """Has a thread do what may take long, while the client is there."""
    return await connection.attend(
      request.receive, asyncio.to_thread(work, *arguments)
    )

  def _prompts(self, call: protocol.Completion) -> list[tuple[int, ...]]:
    """Token ids of each prompt."""
    special = call.add_special_tokens
    return [
      tuple(self._tokenizing.text(prompt, add_special_tokens=special))
      if isinstance(prompt, str)
      else prompt
      for prompt in call.prompts
    ]

  def _asked(self, call: protocol.Call, prompts):
    """What to ask of the engine, n times for each prompt."""
    return [
      call.request(prompt, answer, self._worker.context)
      for prompt in prompts
      for answer in range(call.n)
    ]


def _refused(request: requests.Request, error: Exception):
  del request
  assert isinstance(error, refusal.Refusal)
  return guard.refused(error)


def _nobody(request: requests.Request, error: Exception):
  del request, error
  return connection.Json({}, guard.NOBODY)


def _no_such_route(request: requests.Request, error: Exception):
  assert isinstance(error, exceptions.HTTPException)
  place = ascii(f"{request.method} {request.url.path}")
  return guard.refused(
    refusal.Refusal(
      f"{place}: {error.detail}; see docs/serving.md for what there is",
      status=error.status_code,
    )
  )


def _unforeseen(request: requests.Request, error: Exception):
  del request
  return guard.refused(guard.unforeseen(error))
