"""Documents into records of equal length, in pure numpy.

DeepSeek-V3 report, section 4.1, packs documents without cross-sample attention
masks. The documents follow one another as one stream, which is cut into records
of L + 1 tokens. Consecutive records share one token: a model that reads the
first L of a record and predicts the last L predicts every token of the stream
once, the very first excepted.

Segment ids and loss masks are optional companions of the tokens, for
fine-tuning. In a record, segments count from 1 in order; padding has segment 0
and loss mask 0.
"""

from collections.abc import Iterable
from collections.abc import Iterator

import numpy as np

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
