"""From a document's text to its tokens, before packing.

DeepSeek-V3 report, section 4.1: fill-in-the-middle at document level in the
order prefix, suffix, middle, at a rate of 0.1; and the random splitting of
tokens that join punctuation with line breaks, so that a prompt that ends
without one is no surprise to the model.

Every random choice is drawn from a generator seeded by the seed and the
document's content: neither the order of documents nor the number of threads or
hosts changes what a document becomes.
"""

import hashlib
import unicodedata

import numpy as np

from dsx.data import vocab


def draws(seed: int, text: str, purpose: str) -> np.random.Philox:
  """Returns the generator for one purpose and one document.

  Args:
    seed: the data seed.
    text: the document.
    purpose: a name, so that independent choices do not share numbers.
  """
  key = f"{seed}/{purpose}/".encode() + text.encode("utf-8")
  digest = hashlib.sha256(key).digest()
  return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def uniform(generator: np.random.Philox, count: int) -> np.ndarray:
  """float64 [count] in [0, 1), from raw bits, which numpy keeps the same."""
  raw = np.atleast_1d(generator.random_raw(count))
  return (raw >> np.uint64(11)) * 2.0**-53


def fill_in_middle(
  text: str, vocabulary: vocab.Vocabulary, *, rate: float, seed: int
) -> list[str | int]:
  """Rearranges a document for fill-in-the-middle, or leaves it as it is.

  The two cuts fall between characters, uniformly, so that any of the three
  parts may be empty.

  Args:
    text: the document.
    vocabulary: has fim_begin, fim_hole and fim_end where `rate` is not 0.
    rate: share of documents to rearrange.
    seed: see `draws`.

  Returns:
    Texts and special ids in order: [text], or with rate's probability
    [fim_begin, prefix, fim_hole, suffix, fim_end, middle].

  Reference:
    DeepSeek-V3 report, section 4.1 (PSM).
  """
  if not rate:
    return [text]
  chosen, first, second = uniform(draws(seed, text, "fim"), 3)
  if chosen >= rate:
    return [text]
  cuts = sorted(int(u * (len(text) + 1)) for u in (first, second))
  prefix, middle, suffix = text[: cuts[0]], text[slice(*cuts)], text[cuts[1] :]
  special = vocabulary.special
  return [
    special["fim_begin"],
    prefix,
    special["fim_hole"],
    suffix,
    special["fim_end"],
    middle,
  ]


def joins_line_break(piece: bytes) -> bool:
  """Whether a token's bytes are punctuation with line breaks after it."""
  try:
    text = piece.decode("utf-8")
  except UnicodeDecodeError:
    return False
  head = text.rstrip("\r\n")
  if not head or head == text:
    return False
  return unicodedata.category(head[-1])[0] in "PS"


def line_break_parts(vocabulary: vocab.Vocabulary) -> dict[int, np.ndarray]:
  """The tokens that join punctuation with line breaks, and what splits them.

  Returns:
    id to int32 ids of the punctuation followed by those of the line breaks.
  """
  parts = {}
  for token in range(vocabulary.size):
    piece = vocabulary.piece(token)
    if len(piece) < 2 or not joins_line_break(piece):
      continue
    text = piece.decode("utf-8")
    head = text.rstrip("\r\n")
    ids = vocabulary.encode(head) + vocabulary.encode(text[len(head) :])
    parts[token] = np.array(ids, np.int32)
  return parts


def split_line_breaks(
  tokens: np.ndarray,
  parts: dict[int, np.ndarray],
  generator: np.random.Philox,
  rate: float,
) -> np.ndarray:
  """Splits each token that joins punctuation and line breaks with `rate`.

  Args:
    tokens: int32 [n].
    parts: of `line_break_parts`.
    generator: of `draws`.
    rate: probability, per occurrence.

  Returns:
    int32 [m], m >= n: the same bytes in more tokens.

  Reference:
    DeepSeek-V3 report, section 4.1.
  """
  if not parts or not rate or not len(tokens):
    return tokens
  candidates = np.flatnonzero(np.isin(tokens, list(parts)))
  chosen = candidates[uniform(generator, len(candidates)) < rate]
  pieces, start = [], 0
  for at in chosen.tolist():
    pieces += [tokens[start:at], parts[int(tokens[at])]]
    start = at + 1
  return np.concatenate([*pieces, tokens[start:]]).astype(np.int32)


class Preprocessor:
  """Turns documents into tokens between bos and eos.

  NOTE(paper): section 4.1 prints eos alone. The released tokenizer puts bos
  before every prompt, and a model that has never seen bos cannot be prompted
  so; it is left out where a vocabulary has none.
  """

  def __init__(
    self,
    vocabulary: vocab.Vocabulary,
    *,
    fim_rate: float,
    split_rate: float,
    seed: int,
  ):
    """Prepares the tables.

    Args:
      vocabulary: the vocabulary.
      fim_rate: see `fill_in_middle`; 0 for validation.
      split_rate: see `split_line_breaks`; 0 for validation.
      seed: see `draws`.

    Raises:
      ValueError: the vocabulary cannot express fill-in-the-middle.
    """
    missing = {"fim_begin", "fim_hole", "fim_end"} - set(vocabulary.special)
    if fim_rate and missing:
      raise ValueError(
        f"Data.fim_rate: got {fim_rate}, but the vocabulary "
        f"{vocabulary.name!r} lacks {sorted(missing)}; expected 0, or a "
        "vocabulary that has them"
      )
    self._vocabulary = vocabulary
    self._fim_rate = fim_rate
    self._split_rate = split_rate
    self._seed = seed
    self._parts = line_break_parts(vocabulary) if split_rate else {}

  def __call__(self, text: str) -> np.ndarray:
    """Returns int32 [n] tokens of a document, bos first and eos last."""
    segments = fill_in_middle(
      text, self._vocabulary, rate=self._fim_rate, seed=self._seed
    )
    generator = draws(self._seed, text, "split") if self._parts else None
    pieces = []
    for segment in segments:
      if isinstance(segment, str):
        tokens = np.array(self._vocabulary.encode(segment), np.int32)
        if generator is not None:
          tokens = split_line_breaks(
            tokens, self._parts, generator, self._split_rate
          )
        pieces.append(tokens)
      else:
        pieces.append(np.array([segment], np.int32))
    special = self._vocabulary.special
    first = [special["bos"]] if "bos" in special else []
    ends = [np.array(ids, np.int32) for ids in (first, [special["eos"]])]
    return np.concatenate([ends[0], *pieces, ends[1]])
