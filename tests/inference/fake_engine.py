"""An engine that says what it is told to say."""

import collections
from collections.abc import Callable

from dsx.inference import decoding as decoding_lib
from dsx.inference import request as request_lib


class FakeEngine:
  """Has `engine.Engine`'s methods, and a function instead of a model.

  Attributes:
    requests: all that were submitted, in order.
    cancelled: numbers of those that were cancelled while running.
  """

  def __init__(
    self,
    answer: Callable[[tuple[int, ...]], list[int]],
    *,
    eos: int | None = None,
    chunk: int = 2,
    slots: int = 2,
    context: int = 1000,
  ):
    self._answer = answer
    self._eos = eos
    self._chunk = chunk
    self._slots = slots
    self.context = context
    self.requests: list[request_lib.Request] = []
    self.cancelled: list[int] = []
    self._left: collections.OrderedDict[int, list[int]] = (
      collections.OrderedDict()
    )
    self._drawn: collections.Counter[int] = collections.Counter()

  def submit(self, request: request_lib.Request) -> int:
    number = len(self.requests)
    self.requests.append(request)
    self._left[number] = list(self._answer(request.prompt))
    return number

  def cancel(self, number: int) -> None:
    if self._left.pop(number, None) is not None:
      self.cancelled.append(number)

  @property
  def busy(self) -> bool:
    return bool(self._left)

  @property
  def stats(self) -> decoding_lib.Stats:
    counts = dict.fromkeys(decoding_lib.Stats._fields, 0)
    waiting = max(len(self._left) - self._slots, 0)
    known = {"waiting": waiting, "drafted": 8, "accepted": 6}
    return decoding_lib.Stats(**counts | known)

  def step(self) -> list[request_lib.Update]:
    # The later of two requests is told of first: nobody may rely on an order.
    running = list(self._left)[: self._slots][::-1]
    return [self._advance(number) for number in running]

  def _advance(self, number: int) -> request_lib.Update:
    left, update = self._left[number], request_lib.Update(request=number)
    request = self.requests[number]
    while len(update.drawn) < self._chunk and not update.finish:
      token = left.pop(0)
      self._drawn[number] += 1
      logprob = -token / 10
      update.drawn.append(request_lib.Drawn(token, logprob, logprob))
      total = len(request.prompt) + self._drawn[number]
      if token == self._eos or token in request.sampling.stop_tokens:
        update.finish = "stop"
      elif (
        self._drawn[number] == request.sampling.max_new_tokens
        or total == self.context
      ):
        update.finish = "length"
    if update.finish:
      del self._left[number]
    return update
