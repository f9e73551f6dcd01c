"""Preferences as rows of tokens, and the order in which they are read.

Of N pairs rows 0 to N - 1 are the chosen responses, the others the rejected.
Rows are padded to a power of two, so that few programs are compiled.

Legend (parallel/axes.py): B rows, L tokens of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsx.data import prompt_template
from dsx.data import vocab as vocab_lib
from dsx.rl import preferences as preferences_lib

_SHORTEST = 16


class Encoded(NamedTuple):
  """A preference in tokens.

  Attributes:
    texts: prompt, response and EOS: of the chosen and the rejected, or of one.
    good: of a labelled response; True for pairs.
  """

  texts: tuple[np.ndarray, ...]
  good: bool


class Rows(NamedTuple):
  """A batch.

  Attributes:
    tokens: int32 [B, L], padded with zeros.
    length: int32 [B].
    good: bool [N], N = B / 2 for pairs and B for labels.
  """

  tokens: np.ndarray
  length: np.ndarray
  good: np.ndarray


class Encoder:
  """Prompts and responses as a reward model reads them."""

  def __init__(
    self,
    vocabulary: vocab_lib.Vocabulary,
    template: prompt_template.Template,
    part: preferences_lib.Part,
  ):
    """Holds how.

    Args:
      vocabulary: of the model.
      template: of prompts.
      part: of a response that is judged.
    """
    self._vocabulary, self._template = vocabulary, template
    self._part: preferences_lib.Part = part

  def text(self, prompt: str, response: str) -> np.ndarray:
    """int32 [n], with EOS, at which the reward is read."""
    judged = preferences_lib.judged(response, self._part)
    tokens = [
      *self._template.tokens(self._vocabulary, prompt),
      *prompt_template.response_tokens(self._vocabulary, judged),
      self._vocabulary.special["eos"],
    ]
    return np.asarray(tokens, np.int32)

  def preference(self, found: preferences_lib.Preference) -> Encoded:
    """Both texts of a pair, or the one of a label."""
    if isinstance(found, preferences_lib.Pair):
      responses, good = (found.chosen, found.rejected), True
    else:
      responses, good = (found.response,), found.good
    texts = tuple(self.text(found.prompt, response) for response in responses)
    return Encoded(texts, good)


def rows(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """(tokens [B, L], length [B]) of texts."""
  length = np.asarray([len(text) for text in texts], np.int32)
  wide = max(_SHORTEST, 1 << (int(length.max()) - 1).bit_length())
  tokens = np.zeros((len(texts), wide), np.int32)
  for row, text in zip(tokens, texts, strict=True):
    row[: len(text)] = text
  return tokens, length


def batch(found: Sequence[Encoded], micro_batches: int) -> Rows:
  """A batch in micro-batches: leaves [M, B, ...].

  Args:
    found: preferences, in order; micro-batches are consecutive parts.
    micro_batches: M, a divisor of their number.
  """
  size = len(found) // micro_batches
  parts = [found[i * size : (i + 1) * size] for i in range(micro_batches)]
  sides = len(found[0].texts)
  texts = [e.texts[side] for p in parts for side in range(sides) for e in p]
  tokens, length = rows(texts)
  return Rows(
    tokens.reshape(micro_batches, sides * size, -1),
    length.reshape(micro_batches, sides * size),
    np.asarray([e.good for e in found]).reshape(micro_batches, size),
  )


def order(n: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
  """int64 [steps, batch_size]: which preferences each step reads.

  What is left of an epoch when no whole batch is goes into the next one's
  first; what is left at the very end is not read.
  """
  streams = [
    np.random.default_rng((seed, epoch)).permutation(n)
    for epoch in range(epochs)
  ]
  stream = np.concatenate(streams)
  steps = len(stream) // batch_size
  return stream[: steps * batch_size].reshape(steps, batch_size)
