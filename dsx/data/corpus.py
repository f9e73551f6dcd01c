"""Which documents a task reads, and which of them are for validation.

No TensorFlow here, so that a trainer can name (and check) its data in a second:
`builders` and `tasks` build on these lists, `pipeline` digests them.

Split
  A hash of the file's name decides between train and validation. With fewer
  than `FILES_TO_SPLIT_BY_NAME` files that would be a lottery (and with one file
  impossible), so there the document's content decides (of a sample for
  fine-tuning, its prompt), text files being cut at line ends into pieces of
  about `PIECE_BYTES`. Units (files or documents) of
  low hash are for validation: below the fraction asked for, so that a growing
  corpus never moves one; but where fewer than `UNITS_LEFT_TO_CHANCE` units are
  to be expected, exactly that fraction, as a dozen of hashes may all be high.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import sys

from dsx.data import json_lines
from dsx.data import sft
from dsx.data import source_files
from dsx.data import vocab

# Fewer files than this are split by document; see the module docstring.
FILES_TO_SPLIT_BY_NAME = 20

# From so many units for validation on, chance gives about as many.
UNITS_LEFT_TO_CHANCE = 16

# How a text file is cut where documents decide the split, in bytes. Long enough
# that a boundary is rare, short enough that 100 kB give a dozen of pieces.
PIECE_BYTES = 8192


@dataclasses.dataclass(frozen=True)
class Document:
  """A text, and the string whose hash decides its split."""

  name: str
  text: str
  key: str


@dataclasses.dataclass(frozen=True)
class Survey:
  """What one pass over a corpus found.

  Attributes:
    documents, bytes: of both splits together; bytes in UTF-8.
    skipped: files that are not UTF-8 (stdlib only).
    threshold: documents whose hash is at most this are for validation.
  """

  documents: int
  bytes: int
  skipped: int
  threshold: float


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The files of one task.

  Attributes:
    task: 'stdlib', 'text_files', 'jsonl' or 'sft'.
    files: sorted by name.
    text_field: the field of a JSON object that holds the text.
    validation_fraction: share of the units (files or documents) to hold out.
  """

  task: str
  files: tuple[source_files.File, ...]
  text_field: str = "text"
  validation_fraction: float = 0.08

  @property
  def by_name(self) -> bool:
    """Whether the file's name decides the split, rather than the content."""
    return self.task == "stdlib" or len(self.files) >= FILES_TO_SPLIT_BY_NAME

  def digest(self) -> str:
    """Hex sha256 over names and contents of the files, and the Python version.

    The version counts for the standard library only. Every byte is read, on
    several threads; a file is read again only when its size or time changed.
    """
    version = sys.version.split()[0] if self.task == "stdlib" else ""
    described = json.dumps([version, source_files.digests(self.files)])
    return hashlib.sha256(described.encode()).hexdigest()

  def documents(self) -> Iterator[Document]:
    """Yields every document that is not empty, in order of files.

    Raises:
      source_files.CorpusError: a file is not UTF-8, or a line not what it
        should be.
    """
    for file in self.files:
      if self.task == "sft":
        for name, sample in sft.read(file):
          # Answers to one prompt never fall on both sides of the split.
          key = file.name if self.by_name else sample.prompt_key
          yield Document(name, sample.to_json(), key)
        continue
      if self.task == "jsonl":
        documents = _json_lines(file, self.text_field)
      elif self.task == "text_files" and not self.by_name:
        documents = _pieces(file)
      else:
        documents = _whole(file, skip=self.task == "stdlib")
      for name, text in documents:
        if text:
          yield Document(name, text, file.name if self.by_name else text)

  def survey(self) -> Survey:
    """Reads everything once: finds every error, counts, sets the threshold.

    Raises:
      source_files.CorpusError: see `documents`; or nothing to read, or too
        little to split.
    """
    documents = size = 0
    enough = UNITS_LEFT_TO_CHANCE / self.validation_fraction
    positions = set()
    for document in self.documents():
      documents += 1
      size += len(document.text.encode("utf-8"))
      if len(positions) < enough:
        positions.add(_position(document.key))
    if not documents:
      raise source_files.CorpusError(
        f"Data.files: the {len(self.files)} files of task {self.task!r} hold "
        "no text; expected at least two documents"
      )
    if len(positions) == 1:
      raise source_files.CorpusError(
        f"Data.files: the corpus of task {self.task!r} is a single unit of "
        f"{size} bytes, so that nothing can be held out for validation; "
        "expected more text, or more than one file"
      )
    threshold = self.validation_fraction
    if len(positions) < enough:
      count = round(self.validation_fraction * len(positions))
      count = min(max(count, 1), len(positions) - 1)
      threshold = sorted(positions)[count - 1]
    skipped = 0
    if self.task == "stdlib":
      skipped = sum(not _is_utf8(file) for file in self.files)
    return Survey(documents, size, skipped, threshold)

  def split(self, split: str, survey: Survey) -> Iterator[Document]:
    """Yields the documents of 'train' or of 'validation'."""
    for document in self.documents():
      held_out = _position(document.key) <= survey.threshold
      if held_out == (split == "validation"):
        yield document


def _position(key: str) -> float:
  """A uniform number in [0, 1) that depends on `key` alone."""
  digest = hashlib.sha256(key.encode("utf-8")).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


def _is_utf8(file: source_files.File) -> bool:
  try:
    file.path.read_bytes().decode("utf-8")
  except UnicodeDecodeError:
    return False
  return True


def _whole(file: source_files.File, skip: bool) -> Iterator[tuple[str, str]]:
  raw = file.path.read_bytes()
  try:
    yield file.name, source_files.decoded(raw, file)
  except source_files.CorpusError:
    if not skip:
      raise


def _pieces(file: source_files.File) -> Iterator[tuple[str, str]]:
  """Cuts a text file at line ends, a line that is too long between letters."""
  buffer, offset = b"", 0
  with file.path.open("rb") as stream:
    while block := stream.read(PIECE_BYTES):
      buffer += block
      cut = buffer.rfind(b"\n") + 1 or _whole_characters(buffer)
      yield (
        f"{file.name}:{offset}",
        source_files.decoded(buffer[:cut], file, offset),
      )
      buffer = buffer[cut:]
      offset += cut
  if buffer:
    yield f"{file.name}:{offset}", source_files.decoded(buffer, file, offset)


def _whole_characters(buffer: bytes) -> int:
  """Length of `buffer` without a UTF-8 sequence cut off at its end."""
  for back in range(1, min(3, len(buffer)) + 1):
    byte = buffer[-back]
    if byte >= 0xC0:  # the sequence's first byte tells how long it is
      length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
      return len(buffer) - back if length > back else len(buffer)
    if byte < 0x80:
      break
  return len(buffer)


def _json_lines(
  file: source_files.File, field: str
) -> Iterator[tuple[str, str]]:
  """Reads one field of each line; blank lines are allowed."""
  for where, name, record in json_lines.read(file):
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
      found = (
        f"the fields {sorted(record)}"
        if isinstance(record, dict) and field not in record
        else f"{type(value if isinstance(record, dict) else record).__name__}"
      )
      raise source_files.CorpusError(
        f"Data.files: {where}: found {found}, expected an object with a "
        f"string field {field!r}; Data.text_field names another"
      )
    try:
      vocab.utf8(value)
    except ValueError as error:
      raise source_files.CorpusError(f"Data.files: {where}: {error}") from None
    yield name, value
