"""One answer as it grows: from the engine's tokens to pieces of text."""

from collections.abc import Sequence
import dataclasses

from dsx.data import vocab as vocab_lib
from dsx.inference import request as request_lib
from dsx.inference import text_stream
from dsx.inference import thinking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """What an update added to an answer.

  Attributes:
    text: of the answer.
    reasoning: of the reasoning before it.
    drawn: its tokens.
    reasoned: how many of these, the first ones, belong to the reasoning.
    prompt: what the model thought of the prompt's tokens, if it was asked.
    finish: why the answer ends here: 'stop', 'length', or None.
  """

  text: str = ""
  reasoning: str = ""
  drawn: tuple[request_lib.Drawn, ...] = ()
  reasoned: int = 0
  prompt: list[request_lib.Drawn | None] | None = None
  finish: request_lib.Finish | None = None


def join(pieces: Sequence[Piece]) -> Piece:
  """A whole answer of all its pieces."""
  return Piece(
    text="".join(piece.text for piece in pieces),
    reasoning="".join(piece.reasoning for piece in pieces),
    drawn=tuple(drawn for piece in pieces for drawn in piece.drawn),
    reasoned=sum(piece.reasoned for piece in pieces),
    prompt=next((p.prompt for p in pieces if p.prompt is not None), None),
    finish=pieces[-1].finish if pieces else None,
  )


class _Plain:
  """A text without reasoning, behind the interface of `thinking.Reply`."""

  def __init__(self, stream: text_stream.TextStream):
    self._stream = stream
    self.thinking = False

  @property
  def stopped(self) -> bool:
    return self._stream.stopped

  def push(self, token: int) -> thinking.Part:
    return thinking.Part("", self._stream.push(token))

  def finish(self) -> thinking.Part:
    return thinking.Part("", self._stream.finish())


class Answer:
  """Takes updates of one request; gives what a client may see of them."""

  def __init__(
    self,
    vocabulary: vocab_lib.Vocabulary,
    stop: tuple[str, ...],
    *,
    chat: bool,
    opened: bool = False,
    specials: bool = False,
  ):
    """Starts an empty answer.

    Args:
      vocabulary: of the tokens.
      stop: strings that end it.
      chat: whether reasoning is told apart.
      opened: whether the prompt ended with the tag that begins reasoning.
      specials: whether special tokens are shown; not in a chat.
    """
    self._reply: thinking.Reply | _Plain
    if chat:
      self._reply = thinking.Reply(vocabulary, stop, opened=opened)
    else:
      stream = text_stream.TextStream(vocabulary, stop, specials)
      self._reply = _Plain(stream)

  def take(self, update: request_lib.Update) -> Piece:
    """The next piece; with a `finish` it is the last one."""
    reply, said = self._reply, thinking.Part("", "")
    taken, reasoned, finish = 0, 0, update.finish
    for drawn in update.drawn:
      taken += 1
      thought = reply.thinking
      said += reply.push(drawn.token)
      # Both tags are tokens of the reasoning.
      reasoned += thought or reply.thinking
      if reply.stopped:
        break
    if finish is not None and not reply.stopped:
      said += reply.finish()
    return Piece(
      text=said.answer,
      reasoning=said.reasoning,
      drawn=tuple(update.drawn[:taken]),
      reasoned=reasoned,
      prompt=update.prompt,
      finish="stop" if reply.stopped else finish,
    )
