"""seqio Tasks and Mixtures: what the data are, and how text becomes tokens.

Each Task yields one document an example: `targets`, its tokens between bos and
eos, and `text` and `name`, from which counts are taken. Cutting into records is
not a Task's business but `packing`'s.

A task of your own: register it with seqio at the end of this file (or anywhere
that is imported before `prepare.prepare`) and bind `Data.task` to its name. It
either yields `text`, and is tokenised as the others are, or has `targets` (and
perhaps `loss_mask`) among its output features, and is taken as it is. A Mixture
of such tasks works by name too. Mixtures of corpora need no code: see
`pipeline.Data.mixture`.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import difflib
import functools
import pathlib

import seqio
import tensorflow as tf

from dsx.data import builders
from dsx.data import corpus
from dsx.data import pipeline
from dsx.data import preprocess
from dsx.data import seqio_vocabulary
from dsx.data import sft
from dsx.data import vocab

# TensorFlow reserves a whole GPU when it first sees one; it has no use for it.
tf.config.set_visible_devices([], "GPU")

_TEXT = {
  "name": tf.TensorSpec((), tf.string),
  "text": tf.TensorSpec((), tf.string),
}


def build(
  data: pipeline.Data, survey: corpus.Survey | None = None
) -> seqio.Task | seqio.Mixture:
  """Returns `data` as seqio has it: documents with their tokens.

  Args:
    data: what to read and how to tokenise it.
    survey: of `pipeline.corpus_of(data)`, if it is known already.

  Returns:
    A Task; for a mixture, the Mixture of its components by weight.

  Raises:
    ValueError: the sources cannot be read, or the name is unknown.
  """
  if data.task == "mixture":
    parts = enumerate(pipeline.components(data))
    return seqio.Mixture(
      "mixture",
      [
        # One task may take part twice, with other files.
        (build(part).replace(name=f"{part.task}_{number}"), weight)
        for number, (part, weight) in parts
      ],
    )
  if data.task not in pipeline.SOURCES:
    return from_registered(data, registered(data.task))
  source = pipeline.corpus_of(data)
  survey = survey or source.survey()
  if data.task == "stdlib":
    data_dir = pathlib.Path(data.cache_dir).expanduser() / "tfds"
    read = functools.partial(_standard_library, source, survey, data_dir)
  else:
    read = functools.partial(_documents, source, survey)
  if data.has_samples:
    return _samples(data, _with_split(_dataset(read)))
  return _tokenized(data, data.task, _with_split(_dataset(read)))


def registered(name: str) -> seqio.Task | seqio.Mixture:
  """Returns what is registered with seqio under `name`.

  Raises:
    ValueError: nothing is.
  """
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if name not in known:
    names = sorted({*known, *pipeline.SOURCES, "mixture"})
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
      f"Data.task: got {name!r}, expected one of {names} or a task registered "
      f"in dsx/data/tasks.py{hint}"
    )
  return seqio.get_mixture_or_task(name)


def from_registered(
  data: pipeline.Data, task: seqio.Task | seqio.Mixture
) -> seqio.Task | seqio.Mixture:
  """Adds our tokenising to what is registered, unless it has its own.

  Args:
    data: says how to tokenise.
    task: yields `text`, or has `targets` among its output features.
  """
  if "targets" in task.output_features:
    return task

  def read(split: str) -> tf.data.Dataset:
    dataset = task.get_dataset(
      split=split, shuffle=False, try_in_mem_cache=False
    )
    if "text" not in dataset.element_spec:
      raise ValueError(
        f"Data.task: the examples of {task.name!r} have "
        f"{sorted(dataset.element_spec)}, expected 'text' or 'targets'"
      )
    return dataset.map(
      lambda example: {
        "text": example["text"],
        "name": tf.constant(task.name),
      }
    )

  return _tokenized(data, f"{task.name}_tokenized", _with_split(read))


def _dataset(
  read: Callable[[str], Iterable[dict]],
) -> Callable[[str], tf.data.Dataset]:
  """Makes examples in Python into a dataset of a split."""
  return lambda split: tf.data.Dataset.from_generator(
    functools.partial(read, split), output_signature=_TEXT
  )


def _documents(
  source: corpus.Corpus, survey: corpus.Survey, split: str
) -> Iterator[dict[str, str]]:
  for document in source.split(split, survey):
    yield {"name": document.name, "text": document.text}


def _standard_library(
  source: corpus.Corpus,
  survey: corpus.Survey,
  data_dir: pathlib.Path,
  split: str,
) -> Iterable[dict[str, bytes]]:
  # TFDS reads ArrayRecord as a data source only, not as a tf.data.Dataset.
  builder = builders.standard_library(source, survey, data_dir)
  examples = builder.as_data_source(split)
  return (examples[number] for number in range(len(examples)))


def _with_split(
  read: Callable[[str], tf.data.Dataset],
) -> seqio.FunctionDataSource:
  """A source whose examples say which split they are of."""

  def dataset(split: str, shuffle_files: bool, seed: int | None = None):
    del shuffle_files, seed  # the records are shuffled, when they are read
    return read(split).map(
      lambda example: {**example, "split": tf.constant(split)}
    )

  return seqio.FunctionDataSource(dataset, splits=pipeline.SPLITS)


def _tokenized(
  data: pipeline.Data, name: str, source: seqio.FunctionDataSource
) -> seqio.Task:
  vocabulary = vocab.load(data.vocabulary)
  feature = seqio.Feature(
    seqio_vocabulary.SeqioVocabulary(vocabulary), add_eos=False, rank=1
  )
  # Rearranging and splitting are for training: a validation figure is over the
  # text as it is.
  train = preprocess.Preprocessor(
    vocabulary,
    fim_rate=data.fim_rate,
    split_rate=data.split_rate,
    seed=data.seed,
  )
  validation = preprocess.Preprocessor(
    vocabulary, fim_rate=0, split_rate=0, seed=data.seed
  )
  step = functools.partial(_tokenize, train=train, validation=validation)
  return seqio.Task(
    name,
    source=source,
    preprocessors=[step],
    output_features={"targets": feature},
  )


def _samples(
  data: pipeline.Data, source: seqio.FunctionDataSource
) -> seqio.Task:
  """A task whose examples are samples for fine-tuning, with a loss mask."""
  vocabulary = vocab.load(data.vocabulary)
  known = seqio_vocabulary.SeqioVocabulary(vocabulary)
  return seqio.Task(
    data.task,
    source=source,
    preprocessors=[
      functools.partial(_encode, vocabulary=vocabulary, template=data.template)
    ],
    output_features={
      name: seqio.Feature(feature, add_eos=False, rank=1)
      for name, feature in (
        ("targets", known),
        ("loss_mask", seqio.PassThroughVocabulary(2)),
      )
    },
  )


def _encode(
  dataset: tf.data.Dataset, vocabulary: vocab.Vocabulary, template: str
) -> tf.data.Dataset:
  """The preprocessor that adds `targets` and `loss_mask`."""

  def encode(text: bytes, name: bytes):
    sample = sft.Sample.from_json(text.decode("utf-8"))
    try:
      found = sft.encode(vocabulary, template, sample)
    except ValueError as error:
      raise ValueError(f"{name.decode()}: {error}") from None
    return found.tokens, found.loss_mask

  def add(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    targets, mask = tf.numpy_function(
      encode,
      [example["text"], example["name"]],
      (tf.int32, tf.int32),
      stateful=False,
    )
    return {
      **example,
      "targets": tf.ensure_shape(targets, [None]),
      "loss_mask": tf.ensure_shape(mask, [None]),
    }

  return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


def _tokenize(
  dataset: tf.data.Dataset,
  train: preprocess.Preprocessor,
  validation: preprocess.Preprocessor,
) -> tf.data.Dataset:
  """The preprocessor that adds `targets`."""

  def encode(text: bytes, split: bytes):
    preprocessor = train if split == b"train" else validation
    return preprocessor(text.decode("utf-8"))

  def add(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    targets = tf.numpy_function(
      encode, [example["text"], example["split"]], tf.int32, stateful=False
    )
    return {**example, "targets": tf.ensure_shape(targets, [None])}

  return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)
