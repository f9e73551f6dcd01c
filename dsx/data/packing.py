"""Documents and samples into records of equal length, in pure numpy.

DeepSeek-V3 report, section 4.1, packs documents without cross-sample attention
masks. The documents follow one another as one stream, which is cut into records
of L + 1 tokens. Consecutive records share one token: a model that reads the
first L of a record and predicts the last L predicts every token of the stream
once, the very first excepted.

Samples for fine-tuning are packed otherwise (`pack_samples`): each lies whole
in one record, which is filled up with padding.

Segment ids and loss masks are optional companions of the tokens. In a record,
segments count from 1 in order; padding has segment 0 and loss mask 0.
"""

import bisect
from collections.abc import Iterable
from collections.abc import Iterator

import numpy as np

# Samples are packed together with those of about so many tokens around them: a
# thousand records of 16K.
WINDOW_TOKENS = 1 << 24

# The value that pads each feature; tokens take the vocabulary's pad.
_PADDING = {"segment_ids": 0, "loss_mask": 0}


def pack(
  documents: Iterable[dict[str, np.ndarray]],
  sequence_length: int,
  *,
  segment_ids: bool = False,
  pad: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Cuts the stream of documents into records.

  Args:
    documents: each has 'tokens', int32 [n], and perhaps 'loss_mask', [n],
      whether a token counts as a target.
    sequence_length: L, in tokens.
    segment_ids: whether records have 'segment_ids' too.
    pad: token that fills the last record; with None the tail of the stream,
      fewer than L targets, is dropped.

  Yields:
    Records: 'tokens' int32 [L + 1], 'segment_ids' int32 [L + 1] if asked,
    'loss_mask' uint8 [L + 1] if the documents have it.
  """
  record_length = sequence_length + 1
  waiting: list[dict[str, np.ndarray]] = []
  size = 0
  for number, document in enumerate(documents):
    waiting.append(_features(document, number, segment_ids))
    size += len(document["tokens"])
    # Joining a thousand records at once keeps the copying linear.
    if size > 1024 * sequence_length:
      stream = _join(waiting)
      count = (size - 1) // sequence_length
      yield from _cut(stream, count, sequence_length)
      waiting = [{k: v[count * sequence_length :] for k, v in stream.items()}]
      size -= count * sequence_length
  if not waiting:
    return
  stream = _join(waiting)
  count = (size - 1) // sequence_length
  yield from _cut(stream, count, sequence_length)
  rest = {k: v[count * sequence_length :] for k, v in stream.items()}
  targets = len(rest["tokens"]) - 1
  if pad is not None and targets > 0:
    padding = {"tokens": pad, **_PADDING}
    width = record_length - len(rest["tokens"])
    full = {
      name: np.pad(values, (0, width), constant_values=padding[name])
      for name, values in rest.items()
    }
    yield from _cut(full, 1, sequence_length)


def _features(
  document: dict[str, np.ndarray], number: int, segment_ids: bool
) -> dict[str, np.ndarray]:
  features: dict[str, np.ndarray] = {
    "tokens": np.asarray(document["tokens"], np.int32)
  }
  if segment_ids:
    # Numbered from 1 over the whole stream; `_cut` makes them relative.
    features["segment_ids"] = np.full(len(features["tokens"]), number + 1)
  if "loss_mask" in document:
    features["loss_mask"] = np.asarray(document["loss_mask"], np.uint8)
  return features


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }


def _cut(
  stream: dict[str, np.ndarray], count: int, sequence_length: int
) -> Iterator[dict[str, np.ndarray]]:
  for start in range(0, count * sequence_length, sequence_length):
    end = start + sequence_length + 1
    record = {name: values[start:end] for name, values in stream.items()}
    if "segment_ids" in record:
      record["segment_ids"] = _relative(record["segment_ids"])
    yield record


def _relative(segments: np.ndarray) -> np.ndarray:
  """int32 [L + 1]: segments from 1 in each record, 0 stays 0."""
  offset = segments[0] - 1
  return np.where(segments > 0, segments - offset, 0).astype(np.int32)


def pack_samples(
  samples: Iterable[dict[str, np.ndarray]],
  sequence_length: int,
  *,
  pad: int,
  seed: int = 0,
  window_tokens: int = WINDOW_TOKENS,
) -> Iterator[dict[str, np.ndarray]]:
  """Packs samples into records, each sample whole, longest first.

  Within a window of the stream, a sample goes to the record that it leaves the
  least room in (best fit, decreasing). The records of a window follow in
  random order, so that their first are no other than the rest.

  Args:
    samples: each has 'tokens', int32 [n], n at most L + 1, and 'loss_mask',
      [n]: the target at a sample's first token never counts.
    sequence_length: L, in tokens.
    pad: token that fills records up.
    seed: of the order of records.
    window_tokens: size of a window.

  Yields:
    Records: 'tokens' and 'segment_ids' int32 [L + 1], 'loss_mask' uint8
    [L + 1].
  """
  order = np.random.Philox(key=seed)
  window: list[dict[str, np.ndarray]] = []
  size = 0
  for sample in samples:
    length = len(sample["tokens"])
    if length > sequence_length + 1:
      raise ValueError(
        f"sample of {length} tokens: expected at most sequence_length + 1 = "
        f"{sequence_length + 1}; truncate it before packing"
      )
    window.append(sample)
    size += length
    if size >= window_tokens:
      yield from _packed(window, sequence_length + 1, pad, order)
      window, size = [], 0
  yield from _packed(window, sequence_length + 1, pad, order)


def _packed(
  samples: list[dict[str, np.ndarray]],
  width: int,
  pad: int,
  order: np.random.Philox,
) -> Iterator[dict[str, np.ndarray]]:
  """The records of one window."""
  bins = best_fit([len(sample["tokens"]) for sample in samples], width)
  for number in np.argsort(order.random_raw(len(bins)), kind="stable"):
    record = {
      "tokens": np.full(width, pad, np.int32),
      "segment_ids": np.zeros(width, np.int32),
      "loss_mask": np.zeros(width, np.uint8),
    }
    start = 0
    for segment, index in enumerate(bins[number], start=1):
      sample = samples[index]
      end = start + len(sample["tokens"])
      record["tokens"][start:end] = sample["tokens"]
      record["segment_ids"][start:end] = segment
      record["loss_mask"][start:end] = sample["loss_mask"]
      # What stands before a sample does not predict it.
      record["loss_mask"][start] = 0
      start = end
    yield record


def best_fit(lengths: list[int], width: int) -> list[list[int]]:
  """Puts items into bins, longest first, each where it leaves least room.

  Args:
    lengths: of the items, at most `width` each.
    width: of a bin.

  Returns:
    The items of each bin, in order of their numbers.
  """
  bins: list[list[int]] = []
  room: list[tuple[int, int]] = []  # (left, bin), sorted
  for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    length = lengths[item]
    place = bisect.bisect_left(room, (length, -1))
    if place == len(room):
      bins.append([])
      left, number = width, len(bins) - 1
    else:
      left, number = room.pop(place)
    bins[number].append(item)
    if left > length:
      bisect.insort(room, (left - length, number))
  return [sorted(items) for items in bins]
