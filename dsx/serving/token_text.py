"""How tokens and their log-probabilities look in an answer.

A token that is no whole characters, as half of an é, is shown as its bytes
(`bytes:\\xc3`), so that two tokens never look the same.
"""

import codecs
from collections.abc import Iterable
import math
from typing import Any

from dsx.data import vocab as vocab_lib
from dsx.inference import request as request_lib
from dsx.serving import refusal

_LEAST = -9999.0  # JSON has no infinity; OpenAI's word for "never"


def shown(vocabulary: vocab_lib.Vocabulary, token: int) -> str:
  """A token as a string that no other token has."""
  piece = vocabulary.piece(token)
  if not piece:
    return vocabulary.decode([token], specials=True) or f"token:{token}"
  try:
    return piece.decode("utf-8")
  except UnicodeDecodeError:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def finite(logprob: float) -> float:
  """A log-probability that JSON can hold.

  Raises:
    refusal.Refusal: it is NaN.
  """
  if math.isnan(logprob):
    raise refusal.Refusal(
      "the model's log-probabilities are NaN; expected numbers; look at its "
      "weights and --dtype",
      status=500,
      code="not_finite",
    )
  return max(logprob, _LEAST)


class Legacy:
  """`logprobs` of /v1/completions, built up as tokens come."""

  def __init__(self, vocabulary: vocab_lib.Vocabulary):
    """Starts before the first token of a text."""
    self._vocabulary = vocabulary
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
    self._characters = 0

  def of(
    self,
    tokens: Iterable[int],
    drawn: Iterable[request_lib.Drawn | None],
  ) -> dict[str, list[Any]]:
    """The object of the next tokens; None is one that nothing predicted.

    `top_logprobs` has the token itself beside the best ones.
    """
    result: dict[str, list[Any]] = {
      "tokens": [],
      "token_logprobs": [],
      "top_logprobs": [],
      "text_offset": [],
    }
    for token, news in zip(tokens, drawn, strict=True):
      name = shown(self._vocabulary, token)
      result["tokens"].append(name)
      result["text_offset"].append(self._characters)
      piece = self._vocabulary.piece(token)
      self._characters += len(self._decoder.decode(piece))
      if news is None:
        result["token_logprobs"].append(None)
        result["top_logprobs"].append(None)
        continue
      logprob = finite(news.logprob)
      result["token_logprobs"].append(logprob)
      top = {shown(self._vocabulary, t): finite(p) for t, p in news.top}
      result["top_logprobs"].append({**top, name: logprob})
    return result


def chat_entry(
  vocabulary: vocab_lib.Vocabulary, drawn: request_lib.Drawn
) -> dict[str, Any]:
  """One element of `logprobs.content` of /v1/chat/completions."""
  entry = _entry(vocabulary, drawn.token, drawn.logprob)
  entry["top_logprobs"] = [_entry(vocabulary, t, p) for t, p in drawn.top]
  return entry


def _entry(vocabulary, token: int, logprob: float) -> dict[str, Any]:
  return {
    "token": shown(vocabulary, token),
    "logprob": finite(logprob),
    "bytes": list(vocabulary.piece(token)),
  }
