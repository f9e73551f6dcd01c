"""What is asked of the engine, and what it answers, in token ids."""

import dataclasses
from typing import Literal
from typing import NamedTuple

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
  """

  request: int
  drawn: list[Drawn] = dataclasses.field(default_factory=list)
  finish: Finish | None = None
  prompt: list[Drawn | None] | None = None
