"""Sampled answers into rows of equal length, and numbers of rows back.

Answers differ in length by orders of magnitude, so several share a row, told
apart by segments. As in DeepSeek-R1's own trainer: the longest first, each into
the row that it fills best, over the whole global batch; micro-batches are then
of rows that hold about as many tokens.

Shapes are few: rows have a power of two of columns, a batch has a power of two
of micro-batches, of which as many are computed as hold anything, so that steps
of one run share their programs.

A sample of p and n tokens is p + n - 1 columns: a column holds a token that is
read and, as its target, the next one.

Pure numpy. Legend (parallel/axes.py): N answers, R rows, B rows of a
micro-batch, L columns; M expert layers, K experts per token.
"""

import bisect
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dsx.rl import sample as sample_lib

# Rows shorter than this waste more on their ends than attention costs.
_SHORTEST = 64


class Rows(NamedTuple):
  """What a model reads and what is known of it; leaves are [R / B, B, L, ...].

  Attributes:
    inputs: int32, tokens that are read; 0 where nothing is.
    targets: int32, the tokens after them.
    segments: int32, which of its row's samples a column is of, from 1; 0 for
      padding.
    positions: int32, of each sample from 0.
    mask: bool, columns whose target is a token of an answer.
    sequence: int32, which answer, 0 to N - 1; 0 for padding.
    logprob: float32, of targets under the model as the sampler computed it;
      0 where `mask` is false.
    sampled_logprob: float32, likewise under what was drawn from.
    experts: integers [R / B, B, L, M, K], -1 where none are recorded; None if
      they are in no sample.
  """

  inputs: np.ndarray
  targets: np.ndarray
  segments: np.ndarray
  positions: np.ndarray
  mask: np.ndarray
  sequence: np.ndarray
  logprob: np.ndarray
  sampled_logprob: np.ndarray
  experts: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """Some answers in rows.

  Attributes:
    rows: the rows, in whole micro-batches.
    micro_batches: how many of them hold anything.
    row: int32 [N], where each answer is.
    column: int32 [N], where its sample begins.
    prompt: int32 [N], tokens of its prompt.
    length: int32 [N], tokens of the answer itself.
  """

  rows: Rows
  micro_batches: int
  row: np.ndarray
  column: np.ndarray
  prompt: np.ndarray
  length: np.ndarray

  def unpacked(self, values: np.ndarray) -> list[np.ndarray]:
    """Numbers of each answer's tokens, of numbers [R / B, B, L] of columns."""
    found = np.asarray(values).reshape(-1)[self._answers()]
    return np.split(found, np.cumsum(self.length)[:-1])

  def laid(self, values: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `unpacked`, float32, with zeros everywhere else."""
    out = np.zeros(self.rows.mask.shape, np.float32)
    out.reshape(-1)[self._answers()] = np.concatenate(list(values))
    return out

  def _answers(self) -> np.ndarray:
    """Flat places of answers' tokens, one answer after the other."""
    begin = self.row * self.rows.mask.shape[-1] + self.column + self.prompt - 1
    return _places(begin, self.length)[0]

  @property
  def filled(self) -> float:
    """Share of the computed columns that hold a token."""
    used = int((self.prompt + self.length - 1).sum())
    return used / (self.micro_batches * self.rows.inputs[0].size)


def row_length(longest: int) -> int:
  """L for samples of at most `longest` columns: a power of two."""
  return _power_of_two(max(longest, _SHORTEST))


def pack(
  samples: Sequence[sample_lib.Sample],
  *,
  length: int | None = None,
  micro_batch: int,
  multiple: int = 1,
) -> Packed:
  """Packs samples.

  Args:
    samples: N of them, at least one; `sequence` numbers them in this order.
    length: L; None for what `row_length` says.
    micro_batch: B, but less where all rows are fewer: then a power of two.
    multiple: B is one of this, and at least this.

  Raises:
    ValueError: a sample is malformed, or finds no room.
  """
  if not samples:
    raise ValueError("samples=(): expected at least one; sample some")
  shape = _experts_shape(samples)
  for sample in samples:
    _check(sample, shape)
  columns = np.array([_columns(s) for s in samples])
  length = row_length(int(columns.max())) if length is None else length
  if columns.max() > length:
    worst = samples[int(columns.argmax())]
    raise ValueError(
      f"row_length={length}: expected at least {columns.max()}, the columns of"
      f" answer {worst.number} to prompt {worst.prompt_number}; raise it, or"
      " sample shorter answers"
    )
  row, column, count = _best_fit(columns, length)
  some = min(micro_batch, -(-_power_of_two(count) // multiple) * multiple)
  some = max(some // multiple, 1) * multiple
  needed = -(-count // some)
  room = _power_of_two(needed), some, length
  return Packed(
    _filled(samples, row, column, room, shape),
    needed,
    row,
    column,
    np.array([len(s.prompt) for s in samples], np.int32),
    np.array([len(s.tokens) for s in samples], np.int32),
  )


def _power_of_two(n: int) -> int:
  """The smallest of at least `n`."""
  return 1 << (n - 1).bit_length()


def _columns(sample: sample_lib.Sample) -> int:
  return len(sample.prompt) + len(sample.tokens) - 1


def _best_fit(columns: np.ndarray, length: int):
  """Rows and first columns of samples, each int32 [N], and how many rows.

  Every row's room is in a sorted list, so that N samples take N log N.
  """
  row = np.zeros(len(columns), np.int32)
  column = np.zeros(len(columns), np.int32)
  rooms: list[tuple[int, int]] = []  # (columns left, row), least first
  count = 0
  # Stable, so that equal lengths keep their order on every platform.
  for number in np.argsort(-columns, kind="stable"):
    need = int(columns[number])
    at = bisect.bisect_left(rooms, (need, -1))
    if at == len(rooms):
      left, into = length, count
      count += 1
    else:
      left, into = rooms.pop(at)
    row[number], column[number] = into, length - left
    if left > need:
      bisect.insort(rooms, (left - need, into))
  return row, column, count


def _experts_shape(samples) -> tuple[int, int] | None:
  """(M, K) of the first sample with experts, if there is one."""
  found = (s.experts.shape[1:] for s in samples if s.experts is not None)
  return next(found, None)


def _filled(samples, row, column, shape, experts_shape) -> Rows:
  """Rows of a shape [R / B, B, L] with everything in its place."""
  prompt = np.array([len(s.prompt) for s in samples])
  whole = prompt + np.array([len(s.tokens) for s in samples])
  parts = [part for s in samples for part in (s.prompt, s.tokens)]
  tokens = np.concatenate(parts).astype(np.int32)
  ends = np.cumsum(whole)
  first, last = (np.zeros(len(tokens), bool) for _ in range(2))
  first[ends - whole], last[ends - 1] = True, True
  places, within = _places(row * shape[-1] + column, whole - 1)
  answers, _ = _places(row * shape[-1] + column + prompt - 1, whole - prompt)

  def laid(values, where, dtype: npt.DTypeLike = np.int32):
    out = np.zeros(shape, dtype)
    out.reshape(-1)[where] = values
    return out

  def of_answers(field):
    numbers = np.concatenate([getattr(s, field) for s in samples])
    return laid(numbers, answers, np.float32)

  return Rows(
    inputs=laid(tokens[~last], places),
    targets=laid(tokens[~first], places),
    segments=laid(np.repeat(_segments(row, column), whole - 1), places),
    positions=laid(within, places),
    mask=laid(True, answers, bool),
    sequence=laid(np.repeat(np.arange(len(samples)), whole - 1), places),
    logprob=of_answers("logprob"),
    sampled_logprob=of_answers("sampled_logprob"),
    experts=_experts(samples, places, whole - 1, shape, experts_shape),
  )


def _places(begin, length):
  """Flat places of runs that begin somewhere, and each one's place in its run.

  >>> _places(np.array([10, 20]), np.array([2, 3]))
  (array([10, 11, 20, 21, 22]), array([0, 1, 0, 1, 2]))
  """
  before = np.cumsum(length) - length
  within = np.arange(length.sum()) - np.repeat(before, length)
  return np.repeat(begin, length) + within, within


def _segments(row, column):
  """Of each sample, its number in its row from 1, in the order of columns."""
  order = np.lexsort((column, row))
  ordered = row[order]
  begins = np.searchsorted(ordered, ordered)  # first of the same row
  segments = np.zeros(len(row), np.int32)
  segments[order] = np.arange(len(row)) - begins + 1
  return segments


def _experts(samples, places, columns, shape, experts_shape):
  """int16 [R / B, B, L, M, K], -1 where there are none; None without any."""
  if experts_shape is None:
    return None
  # int32 would take more memory than all else together.
  out = np.full((*shape, *experts_shape), -1, np.int16)
  known = np.array([s.experts is not None for s in samples])
  if known.any():
    found = [s.experts for s in samples if s.experts is not None]
    flat = out.reshape(-1, *experts_shape)
    flat[places[np.repeat(known, columns)]] = np.concatenate(found)
  return out


def _check(sample: sample_lib.Sample, experts: tuple[int, int] | None) -> None:
  """Refuses a sample whose parts do not belong together."""
  n = len(sample.tokens)

  def refuse(field: str, got, expected: str):
    raise ValueError(
      f"answer {sample.number} to prompt {sample.prompt_number}: {field} has"
      f" {got}: expected {expected}; sample it again"
    )

  if len(sample.prompt) < 1:
    refuse("prompt", "no token", "at least one, to predict the answer from")
  if n < 1:
    refuse("tokens", "no token", "at least one")
  for field in ("logprob", "sampled_logprob"):
    if len(getattr(sample, field)) != n:
      refuse(field, f"{len(getattr(sample, field))} numbers", f"{n}")
  if sample.experts is not None and experts is not None:
    wanted = (_columns(sample), *experts)
    if sample.experts.shape != wanted:
      refuse("experts", f"shape {sample.experts.shape}", f"{wanted}")
