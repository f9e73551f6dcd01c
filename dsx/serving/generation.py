"""All answers of one call, side by side."""

from collections.abc import Sequence
import time

from dsx.data import vocab as vocab_lib
from dsx.inference import request as request_lib
from dsx.serving import answer as answer_lib
from dsx.serving import worker as worker_lib


class Generation:
  """The answers of a call while the engine works on them.

  Closing it cancels what is not finished, so that nothing is computed for a
  client who has gone.

  Attributes:
    prompt_tokens: of all different prompts.
    drawn_tokens: so far, of all answers.
    reasoning_tokens: of these.
    later_tokens: drawn after the first update.
    first_token_seconds: from the beginning to the first token, or None.
  """

  def __init__(
    self,
    worker: worker_lib.Worker,
    vocabulary: vocab_lib.Vocabulary,
    requests: Sequence[request_lib.Request],
    *,
    n: int,
    **how: bool,
  ):
    """Asks for nothing yet.

    Args:
      worker: of the engine.
      vocabulary: of the tokens.
      requests: one per answer; the n to one prompt are neighbours.
      n: answers to each prompt.
      **how: `chat`, `opened` and `specials` of an `answer.Answer`.
    """
    self._mailbox = worker.open()
    self._requests = requests
    self._answers = [
      answer_lib.Answer(vocabulary, r.sampling.stop, **how) for r in requests
    ]
    self._began = time.monotonic()
    self.prompt_tokens = sum(len(r.prompt) for r in requests[::n])
    self.drawn_tokens = 0
    self.reasoning_tokens = 0
    self.later_tokens = 0
    self.first_token_seconds: float | None = None

  def __len__(self) -> int:
    """How many answers there are."""
    return len(self._requests)

  def begin(self) -> None:
    """Asks the engine."""
    for index, request in enumerate(self._requests):
      self._mailbox.submit(index, request)

  def close(self) -> None:
    """Cancels what is left."""
    self._mailbox.close()

  @property
  def seconds(self) -> float:
    """Since it began."""
    return time.monotonic() - self._began

  async def next(self) -> tuple[int, answer_lib.Piece] | None:
    """The next piece of any answer with its index, or None after the last.

    Raises:
      refusal.Refusal: the engine refused a request, or failed.
    """
    if not self._mailbox.open:
      return None
    index, update = await self._mailbox.get()
    piece = self._answers[index].take(update)
    if piece.finish is not None:
      self._mailbox.cancel(index)  # nothing, unless a string ended it
    if self.first_token_seconds is not None:
      self.later_tokens += len(piece.drawn)
    elif piece.drawn:
      self.first_token_seconds = self.seconds
    self.drawn_tokens += len(piece.drawn)
    self.reasoning_tokens += piece.reasoned
    return index, piece
