"""Which data a run reads, and where they lie once prepared.

`Data` is what gin binds. A data set is prepared once (`prepare`), into a
directory whose name is a digest of everything that decides its content:
`Data`'s fields, the vocabulary, and the source files. Training then reads
records by number, without TensorFlow: see `source`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib

import numpy as np

from dsx.data import corpus
from dsx.data import prompt_template
from dsx.data import sft
from dsx.data import source as source_lib
from dsx.data import source_files
from dsx.data import store
from dsx.data import vocab

# Changes whenever the same `Data` would be prepared differently, so that what
# an older version prepared is not mistaken for it.
FORMAT = 2

# The tasks that read sources named by `Data` itself; any other name is looked
# up in seqio's registry when the data are prepared.
SOURCES = ("stdlib", "text_files", "jsonl", "sft")

SPLITS = ("train", "validation")


def _default_cache_dir() -> str:
  return os.environ.get("DSX_DATA_DIR", "~/.cache/dsx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Identifies a prepared data set.

  Attributes:
    task: 'stdlib', 'text_files', 'jsonl', 'sft', 'mixture', or the name of a
      task or mixture registered with seqio (in `tasks`).
    sequence_length: L; a record has L + 1 tokens.
    vocabulary: 'byte', or the path of a tokenizer.json or its folder.
    fim_rate: share of train documents rearranged for fill-in-the-middle;
      DeepSeek-V3 report, section 4.1.
    split_rate: share of the tokens joining punctuation and line breaks that are
      split, in train. NOTE(paper): section 4.1 says "a certain proportion".
    validation_fraction: share of files or documents held out.
    files: globs of text_files, jsonl and sft.
    text_field: of jsonl.
    template: of sft: how prompts are put, see `prompt_template.Template.kind`.
    overlong: of sft: what becomes of samples longer than a record: 'refuse'
      to prepare any, 'truncate' their responses, or 'drop' them.
    mixture: of task 'mixture': (task, weight) or (task, weight, glob, ...) each
      a share of the sequences, in proportion to weight; without globs `files`.
    segment_ids: whether records say which document each token is from.
    cache_dir: where prepared data lie; a local or mounted folder.
    prepared: the directory of a prepared data set to read as it is, for a
      machine that has no sources; '' to find it by content.
    seed: of fill-in-the-middle, splitting of tokens, and shuffling.
  """

  task: str = "stdlib"
  sequence_length: int
  vocabulary: str = "byte"
  fim_rate: float = 0.1
  split_rate: float = 0.05
  validation_fraction: float = 0.08
  files: tuple[str, ...] = ()
  text_field: str = "text"
  template: str = "chat"
  overlong: str = "refuse"
  mixture: tuple[tuple, ...] = ()
  segment_ids: bool = False
  cache_dir: str = dataclasses.field(default_factory=_default_cache_dir)
  prepared: str = ""
  seed: int = 0

  def __post_init__(self):
    length = self.sequence_length
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
      raise ValueError(
        f"Data.sequence_length: got {length!r}, expected an int of at least 1"
      )
    if not isinstance(self.seed, int) or self.seed < 0:
      raise ValueError(f"Data.seed: got {self.seed!r}, expected an int >= 0")
    for name in ("fim_rate", "split_rate"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f"Data.{name}: got {getattr(self, name)!r}, expected 0 to 1"
        )
    if not 0 < self.validation_fraction < 1:
      raise ValueError(
        f"Data.validation_fraction: got {self.validation_fraction!r}, expected "
        "more than 0 and less than 1"
      )
    if isinstance(self.files, str):
      raise ValueError(
        f"Data.files: got the string {self.files!r}, expected a tuple of "
        f"globs, such as ({self.files!r},)"
      )
    prompt_template.Template(kind=self.template)
    if self.overlong not in sft.OVERLONG:
      raise ValueError(
        f"Data.overlong: got {self.overlong!r}, expected one of "
        f"{', '.join(sft.OVERLONG)}"
      )
    # gin and JSON give lists; tuples make the instance hashable.
    object.__setattr__(self, "files", tuple(self.files))
    object.__setattr__(self, "mixture", tuple(map(tuple, self.mixture)))
    self._check_mixture()

  def _check_mixture(self) -> None:
    if bool(self.mixture) != (self.task == "mixture"):
      raise ValueError(
        f"Data.mixture: got {self.mixture!r} with task {self.task!r}, expected "
        "entries (task, weight, glob, ...) with task 'mixture', and only there"
      )
    for entry in self.mixture:
      valid = (
        len(entry) >= 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], int | float)
        and entry[1] > 0
        and all(isinstance(pattern, str) for pattern in entry[2:])
        and entry[0] != "mixture"
      )
      if not valid:
        raise ValueError(
          f"Data.mixture: got the entry {entry!r}, expected (task, weight) or "
          "(task, weight, glob, ...) with a weight above 0"
        )

  @property
  def has_samples(self) -> bool:
    """Whether records hold whole samples, isolated, with a loss mask."""
    return self.task == "sft"

  def described(self) -> dict:
    """The fields that decide what is read, as JSON data."""
    fields = dataclasses.asdict(self)
    del fields["cache_dir"]
    tasks = {self.task, *(entry[0] for entry in self.mixture)}
    if "sft" not in tasks:
      # Runs from before there was such a task are still themselves.
      del fields["template"], fields["overlong"]
    return fields

  def to_json(self) -> str:
    """The fields as JSON, for another process."""
    return json.dumps(dataclasses.asdict(self))

  @classmethod
  def from_json(cls, text: str) -> "Data":
    """The inverse of `to_json`."""
    return cls(**json.loads(text))


def components(data: Data) -> list[tuple[Data, float]]:
  """The tasks of a mixture, with weights; or `data` itself with weight 1."""
  if data.task != "mixture":
    return [(data, 1.0)]
  return [
    (
      dataclasses.replace(
        data, task=task, files=globs or data.files, mixture=(), prepared=""
      ),
      float(weight),
    )
    for task, weight, *globs in data.mixture
  ]


def corpus_of(data: Data) -> corpus.Corpus:
  """The files that a task of `SOURCES` reads.

  Raises:
    source_files.CorpusError: there are none.
  """
  if data.task == "stdlib":
    files = source_files.standard_library()
  else:
    files = source_files.matched(data.files)
  return corpus.Corpus(
    data.task, files, data.text_field, data.validation_fraction
  )


def identity(data: Data) -> dict:
  """Everything that decides the content of a prepared data set, as JSON."""
  if data.task == "mixture":
    parts = [[identity(part), weight] for part, weight in components(data)]
    return {"format": FORMAT, "mixture": parts}
  fields = data.described()
  for name in ("prepared", "mixture", "files", "vocabulary"):
    del fields[name]
  if data.task != "jsonl":
    del fields["text_field"]
  if data.has_samples:
    # Nothing is rearranged, and samples are always kept apart.
    for name in ("fim_rate", "split_rate", "segment_ids"):
      del fields[name]
  # What a task registered with seqio reads, nobody here can know: its name
  # stands for it, and whoever changes it changes the name.
  known = data.task in SOURCES
  return {
    **fields,
    "format": FORMAT,
    "vocabulary": _vocabulary_digest(data.vocabulary),
    "source": corpus_of(data).digest() if known else "",
  }


def prepared_directory(data: Data) -> pathlib.Path:
  """Where `data` is, or will be, prepared.

  Raises:
    ValueError: the sources or the vocabulary cannot be read.
  """
  if data.prepared:
    return pathlib.Path(data.prepared).expanduser()
  described = json.dumps(identity(data), sort_keys=True)
  digest = hashlib.sha256(described.encode()).hexdigest()[:24]
  root = pathlib.Path(data.cache_dir).expanduser() / "prepared"
  return root / f"{data.task}_{data.sequence_length}_{digest}"


def is_prepared(data: Data) -> bool:
  """Whether `data` needs no preparation."""
  return (prepared_directory(data) / store.METADATA).is_file()


def open_split(data: Data, split: str, *, shuffle: bool) -> source_lib.Source:
  """Opens a prepared split.

  Args:
    data: what to read.
    split: 'train' or 'validation'. A mixture's train split takes sequences by
      weight; its validation split has every record of its components once, one
      component after the other.
    shuffle: whether each epoch takes the records in another order.

  Returns:
    The source.

  Raises:
    ValueError: `data` is not prepared, or is not what was prepared.
    store.CorruptionError: a file is damaged.
  """
  if split not in SPLITS:
    raise ValueError(f"split: got {split!r}, expected one of {SPLITS}")
  directory = prepared_directory(data)
  if not (directory / store.METADATA).is_file():
    raise ValueError(
      f"Data: task {data.task!r} is not prepared in {str(directory)!r}; run "
      "python -m experiments.prepare_data with the same gin files"
    )
  metadata = store.read_metadata(directory)
  _check_matches(data, metadata)
  parts = metadata.get("components")
  weights = [part["weight"] for part in parts] if parts else [1.0]
  directories = (
    [directory.parent / part["directory"] for part in parts]
    if parts
    else [directory]
  )
  readers = [
    store.Reader(place, split, store.read_metadata(place))
    for place in directories
  ]
  lengths = [len(reader) for reader in readers]
  if split == "train" and parts:
    order = source_lib.mixed(lengths, weights, data.seed if shuffle else None)
  else:
    order = source_lib.in_turn(lengths, data.seed if shuffle else None)
  flat = {k: v for k, v in metadata.items() if k not in ("splits", "digest")}
  flat["token_bytes"] = np.array(metadata["token_bytes"], np.int32)
  return source_lib.Source(
    readers, order, {**flat, **metadata["splits"][split]}
  )


def _check_matches(data: Data, metadata: dict) -> None:
  """Guards against `Data.prepared` naming something else."""
  expected = {
    "sequence_length": data.sequence_length,
    "vocabulary_digest": _vocabulary_digest(data.vocabulary),
  }
  for name, value in expected.items():
    if metadata[name] != value:
      raise ValueError(
        f"Data.prepared: {str(data.prepared)!r} has {name} {metadata[name]!r}, "
        f"expected {value!r}; bind Data as it was prepared"
      )


def _vocabulary_digest(name: str) -> str:
  path = pathlib.Path(name).expanduser()
  times = tuple(
    file.stat().st_mtime_ns
    for file in (path, path / "tokenizer.json")
    if name != "byte" and file.exists()
  )
  return _load_digest(name, times)


@functools.lru_cache(maxsize=16)
def _load_digest(name: str, times: tuple[int, ...]) -> str:
  del times  # part of the cache's key only: a rewritten file is read again
  return vocab.load(name).digest
