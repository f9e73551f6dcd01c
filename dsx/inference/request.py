"""What is asked of the engine, and what it answers, in token ids."""

import dataclasses
from typing import Literal
from typing import NamedTuple

import numpy as np

from dsx.inference import sampling as sampling_lib

Finish = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A prompt to be continued.

  Attributes:
    prompt: token ids, at least one.
    sampling: how to continue it. Stop strings are for whoever turns tokens
      into text; the engine does not look at them.
    score_prompt: whether to report what the model thought of each token of
      the prompt.
  """

  prompt: tuple[int, ...]
  sampling: sampling_lib.Sampling = sampling_lib.Sampling()
  score_prompt: bool = False


class Drawn(NamedTuple):
  """A token and what the model thought of it.

  Attributes:
    token: its id.
    logprob: log-probability under the model itself.
    sampled_logprob: under the distribution that it was drawn from, with
      temperature and truncation; the same as `logprob` for a prompt's tokens.
    top: the best tokens, each with its log-probability under the model;
      `Sampling.top_logprobs` of them.
  """

  token: int
  logprob: float
  sampled_logprob: float
  top: tuple[tuple[int, float], ...] = ()


def check(
  request: Request, *, vocab_size: int, context: int, room: int
) -> None:
  """Refuses a request that can never be answered.

  Args:
    request: what is asked.
    vocab_size: ids that there are.
    context: longest prompt and answer together.
    room: tokens that the cache holds, in whole pages.

  Raises:
    ValueError: and why.
  """
  prompt, how = request.prompt, request.sampling
  if not prompt:
    raise ValueError("prompt=(): expected at least one token; begin with BOS")
  if not (0 <= min(prompt) and max(prompt) < vocab_size):
    wrong = next(t for t in prompt if not 0 <= t < vocab_size)
    raise ValueError(
      f"prompt: id {wrong}: expected ids from 0 to {vocab_size - 1}"
      "; use the model's own vocabulary"
    )
  if len(prompt) >= context + (how.max_new_tokens == 0):
    raise ValueError(
      f"prompt of {len(prompt)} tokens: expected fewer than the context of "
      f"{context}; shorten it"
    )
  if not (how.max_new_tokens or request.score_prompt):
    raise ValueError(
      "max_new_tokens=0: expected at least 1, unless the prompt is scored; "
      "raise it"
    )
  if min(len(prompt) + how.max_new_tokens, context) > room:
    raise ValueError(
      f"prompt of {len(prompt)} tokens and max_new_tokens="
      f"{how.max_new_tokens}: expected at most cache_tokens={room} together; "
      "lower max_new_tokens or raise cache_tokens"
    )


@dataclasses.dataclass(kw_only=True)
class Update:
  """News of one request.

  Attributes:
    request: the number that `Engine.submit` gave it.
    drawn: new tokens, in order.
    finish: None while it goes on; `stop` when EOS or a stop token was drawn
      (it is the last of the tokens), `length` when there are as many tokens
      as asked for or the context is full.
    prompt: once, if asked for: each token of the prompt, None for the first,
      which nothing predicts.
    experts: of the tokens read since the last news, [tokens, M, K] integers,
      M main layers with experts and K experts a token; all of a request's make
      up its prompt and its answer without the last token. None if
      `Decoding.record_experts` is off.
  """

  request: int
  drawn: list[Drawn] = dataclasses.field(default_factory=list)
  finish: Finish | None = None
  prompt: list[Drawn | None] | None = None
  experts: np.ndarray | None = None
