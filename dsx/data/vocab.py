"""Vocabularies: text to token ids and back, without TensorFlow.

Two kinds stand behind one interface. `ByteVocabulary` gives byte value v the id
v and needs no file. `BpeVocabulary` reads any byte-level BPE `tokenizer.json`
(DeepSeek's own among them). DeepSeek-V3 report, section 4.1, uses a byte-level
BPE of 128K tokens.

Special tokens bear DeepSeek's strings and enter a sequence by id only. `encode`
can never produce one, whatever the text says: the byte vocabulary has no string
matching at all, and the BPE vocabulary takes every added token out of the
tokenizer before it meets text. A flag such as `encode_special_tokens` would not
do: tokens added with `special: false` (`<think>` in published tokenizers) pass
it.
"""

import abc
from collections.abc import Iterable
from collections.abc import Sequence
import functools
import hashlib
import json
import os
import pathlib

import numpy as np
import tokenizers

from dsx.data import special_tokens
from dsx.data import tokenizer_file

# The byte vocabulary's size: 256 bytes and the specials, padded to a multiple
# of 64 so that it divides over devices and tiles.
BYTE_VOCABULARY_SIZE = 320


def utf8(text: str) -> bytes:
  """Returns the UTF-8 bytes of `text`.

  Args:
    text: any string.

  Raises:
    ValueError: `text` holds a lone surrogate, which UTF-8 cannot express.
  """
  try:
    return text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise ValueError(
      f"text: character {error.start} is a lone surrogate "
      f"({ascii(text[error.start])}), expected Unicode text that UTF-8 can "
      "hold; replace or drop that character"
    ) from None


class Vocabulary(abc.ABC):
  """Token ids, the bytes each stands for, and the special tokens.

  Attributes:
    name: 'byte', or the path of the tokenizer file.
    size: number of ids, every id lies in [0, size).
    special: short name (or, for tokens that DeepSeek has not, the string) to
      id. 'eos' and 'pad' are always there.
    digest: hex sha256 of everything that decides how text is encoded.
  """

  def __init__(
    self,
    *,
    name: str,
    pieces: Sequence[bytes],
    special: dict[str, int],
    strings: dict[int, str],
    digest: str,
  ):
    """Holds the tables.

    Args:
      name: see the class.
      pieces: the bytes of each id; empty for special and unused ids.
      special: see the class.
      strings: the literal string of each special id.
      digest: see the class.
    """
    self.name = name
    self.special = special
    self.digest = digest
    self._pieces = list(pieces)
    self._strings = strings

  @property
  def size(self) -> int:
    """Number of ids."""
    return len(self._pieces)

  @functools.cached_property
  def token_bytes(self) -> np.ndarray:
    """int32 [V]: UTF-8 bytes each id stands for; 0 for special ids."""
    return np.array([len(piece) for piece in self._pieces], np.int32)

  def piece(self, token: int) -> bytes:
    """The bytes that `token` stands for; empty for a special or unused id."""
    return self._pieces[token]

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`; never a special id, never an added one.

    Raises:
      ValueError: `text` holds a lone surrogate.
    """

  def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
    """Returns the text of `ids`.

    Args:
      ids: token ids in [0, size).
      specials: show special tokens as their strings; else they leave no trace.

    Returns:
      Text; byte sequences that are not UTF-8 become U+FFFD.

    Raises:
      ValueError: an id lies outside the vocabulary.
    """
    parts = []
    for token in ids:
      token = int(token)
      if not 0 <= token < self.size:
        raise ValueError(
          f"ids: got {token}, expected ids in [0, {self.size}) of the "
          f"vocabulary {self.name!r}"
        )
      if specials and token in self._strings:
        parts.append(self._strings[token].encode("utf-8"))
      else:
        parts.append(self._pieces[token])
    return b"".join(parts).decode("utf-8", errors="replace")


class ByteVocabulary(Vocabulary):
  """Byte value v has id v; the special tokens follow from 256."""

  def __init__(self):
    strings = dict(enumerate(special_tokens.STRINGS.values(), start=256))
    unused = BYTE_VOCABULARY_SIZE - 256
    described = json.dumps([BYTE_VOCABULARY_SIZE, sorted(strings.items())])
    super().__init__(
      name="byte",
      pieces=[bytes([value]) for value in range(256)] + [b""] * unused,
      special={name: 256 + i for i, name in enumerate(special_tokens.STRINGS)},
      strings=strings,
      digest=hashlib.sha256(described.encode()).hexdigest(),
    )

  def encode(self, text: str) -> list[int]:
    """Returns the UTF-8 bytes of `text` as ids."""
    return list(utf8(text))


class BpeVocabulary(Vocabulary):
  """A byte-level BPE read from a `tokenizer.json`."""

  def __init__(self, path: str | os.PathLike):
    """Reads a tokenizer.

    Args:
      path: a `tokenizer.json`, or a folder that has one. A
        `tokenizer_config.json` beside it may name bos, eos and pad.

    Raises:
      ValueError: there is no such file, or it is not a byte-level BPE whose
        end-of-sequence token is known.
    """
    file = pathlib.Path(path).expanduser()
    if file.is_dir():
      file = file / "tokenizer.json"
    parsed = tokenizer_file.read(file)
    super().__init__(
      name=str(path),
      pieces=parsed.pieces,
      special=parsed.special,
      strings=parsed.strings,
      digest=parsed.digest,
    )
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(parsed.plain)
    except Exception as error:  # the library raises the bare class
      raise ValueError(
        f"vocabulary: tokenizers cannot load {str(file)!r}: {error}"
      ) from None

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`; special strings in it are plain text."""
    utf8(text)
    # The batch call releases the interpreter's lock, the single one does not:
    # with it, several threads of the preparation encode at once.
    encodings = self._tokenizer.encode_batch_fast(
      [text], add_special_tokens=False
    )
    return encodings[0].ids


def load(name_or_path: str | os.PathLike) -> Vocabulary:
  """Returns the vocabulary 'byte', or the BPE at a path.

  Raises:
    ValueError: see `BpeVocabulary`.
  """
  if str(name_or_path) == "byte":
    return ByteVocabulary()
  return BpeVocabulary(name_or_path)
