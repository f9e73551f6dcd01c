"""Writing the examples of seqio Tasks as a prepared data set.

What is written is read back and compared before anybody may use it: a full disk
does not always say so.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import pathlib
import platform
import time

import numpy as np

from dsx.data import bigram
from dsx.data import corpus
from dsx.data import packing
from dsx.data import pipeline
from dsx.data import records
from dsx.data import sft
from dsx.data import store
from dsx.data import vocab

_BIGRAMS = "bigrams.npz"


class PreparationError(ValueError):
  """A data set that could not be prepared; the message says why, in a line."""


def write_task(
  data: pipeline.Data,
  task,
  place: pathlib.Path,
  report: Callable[[str], None],
  survey: corpus.Survey | None = None,
) -> None:
  """Writes both splits of a Task, and the metadata.

  Args:
    data: how to pack.
    task: a seqio.Task that yields `targets`, see `tasks`.
    place: an empty folder.
    report: is given each line of progress.
    survey: what the task reads, if that is known beforehand.

  Raises:
    PreparationError: the task fails, or is too short for one record.
  """
  vocabulary = vocab.load(data.vocabulary)
  features = ["tokens"]
  if data.segment_ids or data.has_samples:
    features.append("segment_ids")
  if "loss_mask" in task.output_features:
    features.append("loss_mask")
  layout = records.Layout(data.sequence_length, vocabulary.size, features)
  splits, pairs = {}, {}
  for split in pipeline.SPLITS:
    start = time.monotonic()
    writer = store.Writer(place, split, layout)
    write = _write_samples if data.has_samples else _write_split
    splits[split], pairs[split] = write(
      data, _examples(task, split), vocabulary, writer, split
    )
    entry = splits[split]
    what = entry.pop("description", f"{entry['documents']} documents")
    report(
      f"{split}: {what}, {entry['bytes'] / 1e6:.2f} "
      f"MB, {entry['records']} records of {data.sequence_length} + 1 tokens, "
      f"{time.monotonic() - start:.1f} s"
    )
  if survey is not None:
    _check_complete(data, survey, splits)
  metadata = {
    "identity": pipeline.identity(data),
    "task": data.task,
    "sequence_length": data.sequence_length,
    "vocabulary": vocabulary.name,
    "vocabulary_digest": vocabulary.digest,
    "vocab_size": vocabulary.size,
    "special": vocabulary.special,
    "token_bytes": vocabulary.token_bytes.tolist(),
    "features": features,
    "python": platform.python_version(),
    "skipped_files": survey.skipped if survey else 0,
  }
  _write_metadata(place, metadata, splits, pairs)
  for split in pipeline.SPLITS:
    store.Reader(place, split, store.read_metadata(place)).verify()


def write_mixture(
  components: Sequence[tuple[pathlib.Path, float]], place: pathlib.Path
) -> None:
  """Writes the metadata of a mixture.

  Args:
    components: prepared directories, beside which the mixture's will lie, and
      weights.
    place: an empty folder.

  Raises:
    PreparationError: the components do not fit together.
  """
  described = [store.read_metadata(path) for path, _ in components]
  first = described[0]
  for name in ("features", "vocabulary_digest", "sequence_length"):
    found = [entry[name] for entry in described]
    if any(value != found[0] for value in found):
      raise PreparationError(
        f"Data.mixture: the tasks have different {name}, {found}; expected the "
        "same in each"
      )
  pairs = {split: np.zeros((256, 256), np.int64) for split in pipeline.SPLITS}
  for path, _ in components:
    with np.load(path / _BIGRAMS, allow_pickle=False) as counts:
      for split in pairs:
        pairs[split] += counts[split]
  splits = {
    split: _sum([entry["splits"][split] for entry in described])
    for split in pipeline.SPLITS
  }
  metadata = {
    **first,
    "task": "mixture",
    "identity": [entry["identity"] for entry in described],
    "components": [
      {"directory": path.name, "weight": weight} for path, weight in components
    ],
    "skipped_files": sum(entry["skipped_files"] for entry in described),
  }
  _write_metadata(place, metadata, splits, pairs)


def _examples(task, split: str) -> Iterator[dict]:
  """The examples of a seqio Task, as numpy; errors in one line."""
  import tensorflow as tf

  dataset = task.get_dataset(
    split=split, shuffle=False, try_in_mem_cache=False, sequence_length=None
  )
  try:
    yield from dataset.as_numpy_iterator()
  except tf.errors.OpError as error:
    lines = [line for line in error.message.splitlines() if line.strip()]
    reason = next((line for line in lines if "Error:" in line), lines[0])
    raise PreparationError(f"Data.task: {task.name!r}: {reason}") from error


def _write_split(
  data: pipeline.Data,
  examples: Iterable[dict],
  vocabulary: vocab.Vocabulary,
  writer: store.Writer,
  split: str,
) -> tuple[dict, np.ndarray]:
  """Writes the records of a split.

  Returns:
    The split's entry in the metadata, and its byte pair counts.
  """
  counter = bigram.Counter()
  counts = {"documents": 0, "bytes": 0, "tokens": 0}

  def documents() -> Iterator[dict[str, np.ndarray]]:
    for example in examples:
      tokens = example["targets"]
      _check_ids(data, tokens, vocabulary)
      text = example.get("text")
      if text is None:
        text = b"".join(vocabulary.piece(token) for token in tokens.tolist())
      counter.add(text)
      counts["documents"] += 1
      counts["bytes"] += len(text)
      counts["tokens"] += len(tokens)
      document = {"tokens": tokens}
      if "loss_mask" in example:
        document["loss_mask"] = example["loss_mask"]
      yield document

  for record in packing.pack(
    documents(), data.sequence_length, segment_ids=data.segment_ids
  ):
    writer.write(record)
  if not writer.records:
    raise PreparationError(
      f"Data: the {split} split of task {data.task!r} has {counts['tokens']} "
      f"tokens, expected at least the {data.sequence_length + 1} of one "
      "record; bring more text or lower Data.sequence_length"
    )
  return {**counts, **writer.close()}, counter.counts()


def _write_samples(
  data: pipeline.Data,
  examples: Iterable[dict],
  vocabulary: vocab.Vocabulary,
  writer: store.Writer,
  split: str,
) -> tuple[dict, np.ndarray]:
  """Writes the records of a split of samples; see `_write_split`.

  Bytes and tokens are those that are learnt, so that bits per byte are, too.
  """
  counter = bigram.Counter()
  counts = {"bytes": 0, "tokens": 0, "context_tokens": 0}
  fitting = sft.Fitting(data.sequence_length + 1, data.overlong)

  def samples() -> Iterator[dict[str, np.ndarray]]:
    for example in fitting.fit(examples):
      tokens, mask = example["targets"], example["loss_mask"]
      _check_ids(data, tokens, vocabulary)
      learnt = tokens[mask.astype(bool)]
      text = b"".join(vocabulary.piece(token) for token in learnt.tolist())
      counter.add(text)
      counts["bytes"] += len(text)
      counts["tokens"] += len(learnt)
      counts["context_tokens"] += len(tokens) - len(learnt)
      yield {"tokens": tokens, "loss_mask": mask}

  try:
    for record in packing.pack_samples(
      samples(),
      data.sequence_length,
      pad=vocabulary.special["pad"],
      seed=data.seed,
    ):
      writer.write(record)
  except sft.SampleError as error:
    raise PreparationError(str(error)) from None
  if not writer.records:
    raise PreparationError(
      f"Data: the {split} split of task {data.task!r} has "
      f"{fitting.report()}, expected at least one; bring more samples, or "
      "raise Data.sequence_length"
    )
  full = counts["tokens"] + counts["context_tokens"]
  full /= writer.records * (data.sequence_length + 1)
  return {
    **counts,
    "documents": fitting.taken,
    "truncated": fitting.truncated,
    "dropped": fitting.dropped,
    "description": f"{fitting.report()}, records {full:.1%} full",
    **writer.close(),
  }, counter.counts()


def _check_ids(
  data: pipeline.Data, tokens: np.ndarray, vocabulary: vocab.Vocabulary
) -> None:
  if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary.size:
    raise PreparationError(
      f"Data.vocabulary: task {data.task!r} made an id outside [0, "
      f"{vocabulary.size}) of {vocabulary.name!r}; expected the vocabulary "
      "that the task tokenises with"
    )


def _check_complete(
  data: pipeline.Data, survey: corpus.Survey, splits: dict
) -> None:
  names = ("documents", "dropped") if data.has_samples else ("documents",)
  documents = sum(entry[name] for entry in splits.values() for name in names)
  size = sum(entry["bytes"] for entry in splits.values())
  if data.has_samples:
    size = survey.bytes  # what is learnt of it is less
  found = {"documents": documents, "bytes": size}
  if found != {"documents": survey.documents, "bytes": survey.bytes}:
    raise PreparationError(
      f"Data.task: {data.task!r} gave {found['documents']} documents with "
      f"{found['bytes']} bytes, expected {survey.documents} with "
      f"{survey.bytes}; the files changed meanwhile, or the copy in the tfds "
      "folder of Data.cache_dir is damaged: delete that and try again"
    )


def _sum(entries: list[dict]) -> dict:
  names = ("documents", "bytes", "tokens", "records")
  return {
    **{name: sum(entry[name] for entry in entries) for name in names},
    "digest": _digest(entry["digest"] for entry in entries),
    "shards": [],
  }


def _write_metadata(
  place: pathlib.Path, metadata: dict, splits: dict, pairs: dict
) -> None:
  np.savez_compressed(place / _BIGRAMS, **pairs)
  bits = bigram.bits_per_byte(pairs["train"], pairs["validation"])
  digest = _digest(splits[split]["digest"] for split in pipeline.SPLITS)
  store.write_metadata(
    place,
    {
      **metadata,
      "splits": splits,
      "digest": digest,
      "bigram_bits_per_byte": bits,
    },
  )


def _digest(digests: Iterable[str]) -> str:
  return hashlib.sha256("".join(digests).encode()).hexdigest()
