"""An engine without a model: it always says the same, and fails on demand."""

import threading
from typing import NamedTuple

from dsx.data import vocab
from dsx.inference import request as request_lib

VOCABULARY = vocab.ByteVocabulary()
EOS = VOCABULARY.special["eos"]


class Stats(NamedTuple):
  """As the engine's."""

  running: int
  waiting: int
  cached_tokens: int
  pool_tokens: int = 1000
  steps: int = 0
  drafted: int = 0
  accepted: int = 0


def logprob(token: int) -> float:
  """What it thinks of a token, whatever came before; id 0 is the best."""
  return -(token + 1) / 512


def drawn(token: int, top: int) -> request_lib.Drawn:
  """A token as the engine reports it."""
  best = tuple((t, logprob(t)) for t in range(top))
  return request_lib.Drawn(token, logprob(token), logprob(token), best)


class FakeEngine:
  """Answers every prompt with the same tokens, over and over.

  Attributes:
    answer: the tokens.
    context: as the engine's.
    gate: steps wait while it is cleared.
    broken: raised by the next steps, if it is not None.
    seen: requests that were submitted, without that of the warming up.
    cancelled: numbers of requests that were.
  """

  def __init__(
    self,
    answer: str | list[int] = "spam",
    *,
    context=64,
    slots=4,
    per_step=2,
  ):
    if isinstance(answer, str):
      answer = VOCABULARY.encode(answer)
    self.answer = answer
    self.context = context
    self.gate = threading.Event()
    self.gate.set()
    self.broken: Exception | None = None
    self.seen: list[request_lib.Request] = []
    self.cancelled: list[int] = []
    self._slots = slots
    self._per_step = per_step
    self._requests: dict[int, tuple[request_lib.Request, int]] = {}
    self._next = 0
    self._steps = 0

  def submit(self, request: request_lib.Request) -> int:
    if 299 in request.prompt:
      raise ValueError("prompt: id 299: expected another")
    if 298 in request.prompt:
      raise RuntimeError("298 broke it\nin two lines")
    if request.prompt != (0,):
      self.seen.append(request)
    number = self._next
    self._next += 1
    self._requests[number] = request, 0
    return number

  def cancel(self, number: int) -> None:
    self.cancelled.append(number)
    self._requests.pop(number, None)

  @property
  def busy(self) -> bool:
    return bool(self._requests)

  @property
  def stats(self) -> Stats:
    running = min(len(self._requests), self._slots)
    return Stats(
      running=running,
      waiting=len(self._requests) - running,
      cached_tokens=sum(len(r.prompt) for r, _ in self._requests.values()),
      steps=self._steps,
      drafted=2 * self._steps,
      accepted=self._steps,
    )

  def step(self) -> list[request_lib.Update]:
    self.gate.wait(30)
    if self.broken is not None:
      raise self.broken
    self._steps += 1
    updates = []
    for number in list(self._requests)[: self._slots]:
      updates.append(self._advance(number))
    return updates

  def _advance(self, number: int) -> request_lib.Update:
    request, done = self._requests[number]
    how = request.sampling
    update = request_lib.Update(request=number)
    if done == 0 and request.score_prompt:
      scored = [drawn(t, how.top_logprobs) for t in request.prompt[1:]]
      update.prompt = [None, *scored]
    most = min(how.max_new_tokens, self.context - len(request.prompt))
    while len(update.drawn) < self._per_step and done < most:
      token = self.answer[done % len(self.answer)]
      update.drawn.append(drawn(token, how.top_logprobs))
      done += 1
      if token == EOS or token in how.stop_tokens:
        update.finish = "stop"
        break
    if update.finish is None and done >= most:
      update.finish = "length"
    self._requests[number] = request, done
    if update.finish:
      del self._requests[number]
    return update
