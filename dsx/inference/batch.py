"""Sequences as the arrays that the device reads.

Legend (parallel/axes.py): B batch, the slots or the prompts of a group; n pages
of a sequence, m stop tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsx.inference import chunk
from dsx.inference import sampling
from dsx.inference import scheduler as scheduler_lib

Slots = Sequence[scheduler_lib.Sequence | None]


class Prompts(NamedTuple):
  """Prompts to be read, all but their last tokens.

  Attributes:
    numbers: int32 [B, n], pages of each.
    tokens: int32 [B, n * page].
    following: int32 [B, n * page], the token after each.
    length: int32 [B].
  """

  numbers: np.ndarray
  tokens: np.ndarray
  following: np.ndarray
  length: np.ndarray


def prompts(
  group: Sequence[scheduler_lib.Sequence],
  *,
  rows: int,
  columns: int,
  page_size: int,
  nowhere: int,
) -> Prompts:
  """The prompts of a group, padded to `rows` of `columns` pages.

  Args:
    group: sequences with pages.
    rows: B.
    columns: n.
    page_size: tokens of a page.
    nowhere: number of a page that there is not, for the padding.
  """
  numbers = np.full((rows, columns), nowhere, np.int32)
  tokens, following = np.zeros((2, rows, columns * page_size), np.int32)
  length = np.zeros(rows, np.int32)
  for row, sequence in enumerate(group):
    n = length[row] = sequence.cached
    used = -(-n // page_size)
    numbers[row, :used] = sequence.pages[:used]
    tokens[row, :n] = sequence.tokens[:-1]
    following[row, :n] = sequence.tokens[1:]
  return Prompts(numbers, tokens, following, length)


def copies(
  pairs: Sequence[tuple[int, int]], n: int, nowhere: int
) -> tuple[np.ndarray, np.ndarray]:
  """Sources and targets of pages to copy, int32 [n] each.

  Args:
    pairs: of source and target, at most n.
    n: numbers in an array.
    nowhere: number of a page that there is not, for the rest.
  """
  found = np.array([(0, nowhere)] * n, np.int32)
  found[: len(pairs)] = pairs
  return found[:, 0], found[:, 1]


def table(slots: Slots, columns: int) -> np.ndarray:
  """Pages of each slot, int32 [B, columns]."""
  found = np.zeros((len(slots), columns), np.int32)
  for slot, sequence in enumerate(slots):
    if sequence:
      found[slot, : len(sequence.pages)] = sequence.pages
  return found


def state(scheduler: scheduler_lib.Scheduler) -> chunk.State:
  """Where each slot stands."""
  found = np.zeros((3, len(scheduler.slots)), np.int32)
  for slot, sequence in enumerate(scheduler.slots):
    if sequence:
      remaining = scheduler.remaining(sequence)
      found[:, slot] = sequence.tokens[-1], sequence.cached, remaining
  return chunk.State(*found)


def shape(slots: Slots) -> sampling.Shape:
  """How each slot draws; one at rest as nobody would notice."""
  rest = sampling.Sampling(temperature=0.0)
  return sampling.Shape.of([s.request.sampling if s else rest for s in slots])


def stop(slots: Slots, eos: int | None) -> np.ndarray:
  """Tokens that end each slot's text, int32 [B, m]; -1 for none."""
  most = 1 + sampling.MOST_STOP_TOKENS
  found = np.full((len(slots), most), -1, np.int32)
  for slot, sequence in enumerate(slots):
    ends = stop_tokens(sequence, eos) if sequence else ()
    found[slot, : len(ends)] = ends
  return found


def stop_tokens(
  sequence: scheduler_lib.Sequence, eos: int | None
) -> tuple[int, ...]:
  """Tokens that end a text."""
  how = sequence.request.sampling
  own = () if eos is None or how.ignore_eos else (eos,)
  return (*own, *how.stop_tokens)


def n_top(sequences: Sequence[scheduler_lib.Sequence]) -> int:
  """How many best tokens to ask for: enough for all, of few numbers."""
  most = max(s.request.sampling.top_logprobs for s in sequences)
  return next(n for n in (0, 1, 5, sampling.MOST_TOP_LOGPROBS) if n >= most)
