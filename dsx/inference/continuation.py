"""Requests to an engine, and the text of their answers as it comes.

Between token ids and people: stop strings, which the engine knows nothing of,
whole characters, reasoning told from answers, and why an answer ended.
"""

import collections
from collections.abc import Generator
from collections.abc import Sequence
import dataclasses
from typing import Literal
from typing import NamedTuple

from dsx.data import vocab as vocab_lib
from dsx.inference import engine as engine_lib
from dsx.inference import request as request_lib
from dsx.inference import text_stream
from dsx.inference import thinking

# Requests that wait in the engine, at most: enough to fill any slots that come
# free, few enough to take back.
_AHEAD = 256

# The model ended it (EOS or a stop token), a stop string came, there are as
# many tokens as asked for, or the context is full.
End = Literal["model", "stop_string", "max_new_tokens", "context"]


@dataclasses.dataclass(kw_only=True)
class Continuation:
  """An answer that is complete.

  Attributes:
    reasoning: what it says between <think> and </think>, of a chat.
    text: the answer, without stop string and special tokens.
    tokens: the ids drawn, EOS and those of a stop string included.
    logprobs: of each, under the model itself.
    end: why it ended.
  """

  reasoning: str
  text: str
  tokens: list[int]
  logprobs: list[float]
  end: End

  @property
  def finish_reason(self) -> request_lib.Finish:
    """Why it ended, in two words."""
    return "stop" if self.end in ("model", "stop_string") else "length"


class News(NamedTuple):
  """What came of one request.

  Attributes:
    index: its place among the requests.
    part: the text that became certain.
    drawn: how many tokens were drawn.
    done: the whole, once it is complete.
  """

  index: int
  part: thinking.Part
  drawn: int
  done: Continuation | None


@dataclasses.dataclass
class _Answer:
  """An answer that is coming."""

  index: int
  most: int
  text: "text_stream.TextStream | thinking.Reply"
  tokens: list[int] = dataclasses.field(default_factory=list)
  logprobs: list[float] = dataclasses.field(default_factory=list)

  def take(self, update: request_lib.Update) -> News:
    """Takes the tokens of an update, up to a stop string."""
    part, before, end = thinking.Part("", ""), len(self.tokens), None
    for drawn in update.drawn:
      self.tokens.append(drawn.token)
      self.logprobs.append(drawn.logprob)
      part += _part(self.text.push(drawn.token))
      if self.text.stopped:
        end = "stop_string"
        break
    else:
      end = update.finish and self._end(update.finish)
    if end:
      part += _part(self.text.finish())
    done = self._whole(end) if end else None
    return News(self.index, part, len(self.tokens) - before, done)

  def _end(self, finish: request_lib.Finish) -> End:
    if finish == "stop":
      return "model"
    return "max_new_tokens" if len(self.tokens) >= self.most else "context"

  def _whole(self, end: End) -> Continuation:
    if isinstance(self.text, thinking.Reply):
      whole = thinking.Part(self.text.reasoning, self.text.answer)
    else:
      whole = thinking.Part("", self.text.text)
    return Continuation(
      reasoning=whole.reasoning,
      text=whole.answer,
      tokens=self.tokens,
      logprobs=self.logprobs,
      end=end,
    )


def _part(piece: str | thinking.Part) -> thinking.Part:
  return thinking.Part("", piece) if isinstance(piece, str) else piece


def run(
  engine: engine_lib.Engine,
  vocabulary: vocab_lib.Vocabulary,
  requests: Sequence[request_lib.Request],
  *,
  chat: bool = False,
  opened: bool = False,
) -> Generator[News, None, None]:
  """Has an engine answer requests; yields what comes, in whatever order.

  Args:
    engine: nobody else uses it meanwhile.
    vocabulary: of the model.
    requests: any number.
    chat: tell reasoning from answers.
    opened: the prompts end inside of reasoning.

  Yields:
    News, the last of each request with the whole. A caller that stops early
    closes the iterator, which takes the other requests back.

  Raises:
    ValueError: the engine refuses a request.
  """
  answers: dict[int, _Answer] = {}
  left = collections.deque(enumerate(requests))
  try:
    while left or answers:
      while left and engine.stats.waiting < _AHEAD:
        index, request = left.popleft()
        stop = request.sampling.stop
        if chat:
          text = thinking.Reply(vocabulary, stop, opened=opened)
        else:
          text = text_stream.TextStream(vocabulary, stop)
        most = request.sampling.max_new_tokens
        answers[engine.submit(request)] = _Answer(index, most, text)
      for update in engine.step():
        news = answers[update.request].take(update)
        if news.done:
          del answers[update.request]
          if update.finish is None:
            engine.cancel(update.request)
        yield news
  finally:
    for number in answers:
      engine.cancel(number)
