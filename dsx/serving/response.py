"""What an answer looks like on the wire: OpenAI's response objects.

A `Completions` or `Chats` is made for one call. The same method writes a piece
of a stream and, given all pieces joined, a whole answer.
"""

import abc
from collections.abc import Sequence
import secrets
import time
from typing import Any

from dsx.data import vocab as vocab_lib
from dsx.inference import request as request_lib
from dsx.serving import answer as answer_lib
from dsx.serving import generation as generation_lib
from dsx.serving import protocol
from dsx.serving import token_text


class Response(abc.ABC):
  """The objects of one call."""

  kind: str
  chunk_kind: str
  prefix: str

  def __init__(self, model_name: str):
    """Draws an id.

    Args:
      model_name: of the model that answers.
    """
    self._head = {
      "id": self.prefix + secrets.token_hex(12),
      "created": int(time.time()),
      "model": model_name,
    }

  def whole(
    self,
    pieces: Sequence[answer_lib.Piece],
    generation: generation_lib.Generation,
  ) -> dict[str, Any]:
    """The body that holds all answers.

    Args:
      pieces: each answer, joined.
      generation: that they come from.
    """
    choices = [self.choice(i, piece) for i, piece in enumerate(pieces)]
    usage = self.usage(generation)
    return self._head | {
      "object": self.kind,
      "choices": choices,
      "usage": usage,
    }

  def chunk(self, choices: Sequence[dict], **more) -> dict[str, Any]:
    """One event of a stream."""
    head = self._head | {"object": self.chunk_kind}
    return head | {"choices": list(choices)} | more

  def usage(self, generation: generation_lib.Generation) -> dict[str, Any]:
    """How many tokens went in and came out."""
    return {
      "prompt_tokens": generation.prompt_tokens,
      "completion_tokens": generation.drawn_tokens,
      "total_tokens": generation.prompt_tokens + generation.drawn_tokens,
    }

  @abc.abstractmethod
  def choice(self, index: int, piece: answer_lib.Piece) -> dict[str, Any]:
    """A whole answer."""

  @abc.abstractmethod
  def deltas(self, index: int, piece: answer_lib.Piece) -> list[dict]:
    """The choices that tell a client of a stream about a piece; often one."""


class Completions(Response):
  """The objects of /v1/completions."""

  kind = chunk_kind = "text_completion"
  prefix = "cmpl-"

  def __init__(
    self,
    model_name: str,
    vocabulary: vocab_lib.Vocabulary,
    call: protocol.Completion,
    requests: Sequence[request_lib.Request],
  ):
    """Takes the call and what was asked of the engine for it."""
    super().__init__(model_name)
    self._call = call
    self._requests = requests
    self._vocabulary = vocabulary
    self._logprobs = [token_text.Legacy(vocabulary) for _ in requests]
    self._begun: set[int] = set()

  def choice(self, index: int, piece: answer_lib.Piece) -> dict[str, Any]:
    """A whole answer, or a piece of it."""
    prompt = self._requests[index].prompt
    text, tokens, drawn = piece.text, (), ()
    if self._call.echo and index not in self._begun:
      self._begun.add(index)
      text = self._echo(index) + text
      if piece.prompt is not None:
        tokens, drawn = prompt, tuple(piece.prompt)
    logprobs = None
    if self._call.logprobs:
      logprobs = self._logprobs[index].of(
        (*tokens, *(d.token for d in piece.drawn)), (*drawn, *piece.drawn)
      )
    return {
      "index": index,
      "text": text,
      "logprobs": logprobs,
      "finish_reason": piece.finish,
    }

  def deltas(self, index: int, piece: answer_lib.Piece) -> list[dict]:
    """One choice, or none if there is nothing to say."""
    choice = self.choice(index, piece)
    reported = self._call.logprobs and choice["logprobs"]["tokens"]
    return [choice] if choice["text"] or reported or piece.finish else []

  def _echo(self, index: int) -> str:
    prompt = self._call.prompts[index // self._call.n]
    if isinstance(prompt, str):
      return prompt
    shown = not self._call.skip_special_tokens
    return self._vocabulary.decode(prompt, specials=shown)


class Chats(Response):
  """The objects of /v1/chat/completions; reasoning as DeepSeek's API has it."""

  kind = "chat.completion"
  chunk_kind = "chat.completion.chunk"
  prefix = "chatcmpl-"

  def __init__(
    self,
    model_name: str,
    vocabulary: vocab_lib.Vocabulary,
    call: protocol.Chat,
  ):
    """Takes the call."""
    super().__init__(model_name)
    self._call = call
    self._vocabulary = vocabulary
    self._begun: set[int] = set()

  def usage(self, generation: generation_lib.Generation) -> dict[str, Any]:
    """How many tokens went in and came out, and how many were reasoning."""
    details = {"reasoning_tokens": generation.reasoning_tokens}
    return super().usage(generation) | {"completion_tokens_details": details}

  def choice(self, index: int, piece: answer_lib.Piece) -> dict[str, Any]:
    """A whole answer."""
    message = {
      "role": "assistant",
      "content": piece.text,
      "reasoning_content": piece.reasoning or None,
    }
    return {
      "index": index,
      "message": message,
      "logprobs": self._logprobs(piece),
      "finish_reason": piece.finish,
    }

  def deltas(self, index: int, piece: answer_lib.Piece) -> list[dict]:
    """Role first, then reasoning, then content; tokens with the last of it."""
    deltas: list[dict[str, Any]] = []
    if index not in self._begun:
      self._begun.add(index)
      deltas.append({"role": "assistant", "content": ""})
    if piece.reasoning:
      deltas.append({"reasoning_content": piece.reasoning})
    if piece.text:
      deltas.append({"content": piece.text})
    if piece.finish or (self._call.logprobs and piece.drawn and not deltas):
      deltas.append({})
    choices = [
      {"index": index, "delta": d, "logprobs": None, "finish_reason": None}
      for d in deltas
    ]
    if choices:
      choices[-1]["logprobs"] = self._logprobs(piece)
      choices[-1]["finish_reason"] = piece.finish
    return choices

  def _logprobs(self, piece: answer_lib.Piece) -> dict[str, Any] | None:
    if not self._call.logprobs:
      return None
    entries = [token_text.chat_entry(self._vocabulary, d) for d in piece.drawn]
    return {
      "content": entries[piece.reasoned :],
      "reasoning_content": entries[: piece.reasoned],
      "refusal": None,
    }
