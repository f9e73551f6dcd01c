"""Continuing a text: what lies between a prompt and `uncached`."""

from typing import Any
from typing import NamedTuple

import jax

from dsx.data import vocab as vocab_lib
from dsx.inference import decoding
from dsx.inference import sampling
from dsx.inference import uncached
from dsx.models import language_model


class Completion(NamedTuple):
  """What a model said.

  Attributes:
    text: without the prompt and without special tokens.
    tokens: the ids that were drawn, EOS included.
    ended: whether the model ended the text by itself.
  """

  text: str
  tokens: list[int]
  ended: bool


def prompt_tokens(vocabulary: vocab_lib.Vocabulary, prompt: str) -> list[int]:
  """The ids of a prompt, with BOS first if the vocabulary has one.

  Raises:
    ValueError: the prompt is empty.
  """
  if not prompt:
    raise ValueError("prompt='': expected text; give something to continue")
  bos = vocabulary.special.get("bos")
  return ([] if bos is None else [bos]) + vocabulary.encode(prompt)


def context_window(
  model: language_model.Model,
  vocabulary: vocab_lib.Vocabulary,
  tokens: list[int],
  window: int | None = None,
) -> int:
  """The window of a completion, once everything about it is found right.

  Raises:
    ValueError: the vocabulary is larger than the model's, the window longer
      than the model's context, or the prompt longer than the window.
  """
  config: Any = model.config
  decoding.check_model(config, vocabulary=vocabulary)
  longest: int = config.max_position_embeddings
  window = longest if window is None else window
  if window > longest:
    raise ValueError(
      f"window={window}: expected at most max_position_embeddings={longest}, "
      "the model's context; shorten it"
    )
  if len(tokens) > window:
    raise ValueError(
      f"prompt of {len(tokens)} tokens: expected at most window={window}; "
      f"shorten it, or raise the window (this model's context is {longest})"
    )
  return window


def complete(
  model: language_model.Model,
  variables,
  vocabulary: vocab_lib.Vocabulary,
  prompt: str,
  how: sampling.Sampling = sampling.Sampling(),  # noqa: B008, it is frozen
  *,
  window: int | None = None,
) -> Completion:
  """Continues a text until EOS or `how.max_new_tokens`, without a cache.

  The slow way, which needs no second copy of the weights: a trainer's sample.
  `engine.Engine` is the fast one.

  Args:
    model: the model.
    variables: `params` and `router_bias`.
    vocabulary: the one that the model was trained with.
    prompt: at least one character. Special tokens in it are plain text.
    how: length, temperature and seed; what else it has is refused.
    window: tokens of context that the model sees, older ones are forgotten;
      None for as many as it is meant for.

  Raises:
    ValueError: see `prompt_tokens` and `context_window`.
  """
  plain = sampling.Sampling(
    max_new_tokens=how.max_new_tokens,
    temperature=how.temperature,
    seed=how.seed,
  )
  if how != plain:
    raise ValueError(
      f"{how}: expected length, temperature and seed alone; decode with "
      "inference.engine for the rest"
    )
  tokens = prompt_tokens(vocabulary, prompt)
  eos = vocabulary.special["eos"]
  drawn = uncached.generate(
    model,
    variables,
    tokens,
    n_tokens=how.max_new_tokens,
    window=context_window(model, vocabulary, tokens, window),
    temperature=how.temperature,
    key=jax.random.key(how.seed),
    stop=eos,
    vocab_size=vocabulary.size,
  )
  return Completion(
    text=vocabulary.decode(drawn), tokens=drawn, ended=drawn[-1] == eos
  )
