r"""Training a byte-level BPE with DeepSeek-V3's way of cutting text first.

DeepSeek-V3 report, section 4.1: byte-level BPE whose pretokenizer makes tokens
that join punctuation with line breaks. Before merging, text is cut into
  - groups of one to three digits, so that numbers are read the same everywhere;
  - runs of Chinese and Japanese characters, which have no spaces;
  - words, with one space or other leading character, or with the ASCII
    punctuation before them ('.append', '_name');
  - runs of punctuation with a space before and any line breaks after (');\n');
  - line breaks with the spaces before them; and other spaces, the last one
    left to the word that follows.

Ids: bos, eos and pad come first, then bytes and merges, then the other special
tokens and placeholders up to the size asked for, which is a multiple of 64 so
that the embedding divides over devices. No merge can give a special token, and
`vocab.BpeVocabulary` never matches their strings in text.
"""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import json
import os
import pathlib

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from dsx.data import pipeline
from dsx.data import special_tokens
from dsx.data import vocab

_FIRST = ("bos", "eos", "pad")

_DIGITS = r"\p{N}{1,3}"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_REST = "|".join(
  (
    r"[!-/:-@\[-`{-~][A-Za-z]+",  # ASCII punctuation and a word
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",  # a word
    r" ?[\p{P}\p{S}]+[\r\n]*",  # punctuation and line breaks
    r"\s*[\r\n]+",  # line breaks
    r"\s+(?!\S)",  # spaces but the last
    r"\s+",
  )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
  """What `experiments.train_tokenizer` runs.

  Attributes:
    data: says what text to learn from (its train split); its vocabulary,
      sequence length and rates play no part.
    vocab_size: number of ids, a multiple of 64.
    min_frequency: a pair is merged if it occurs at least so often.
  """

  data: pipeline.Data
  vocab_size: int = 8192
  min_frequency: int = 2

  def __post_init__(self):
    least = -(-(256 + len(special_tokens.STRINGS)) // 64) * 64
    if self.vocab_size < least or self.vocab_size % 64:
      raise ValueError(
        f"TokenizerTraining.vocab_size: got {self.vocab_size}, expected a "
        f"multiple of 64 of at least {least}"
      )

  def run(
    self, directory: str | os.PathLike, report: Callable[[str], None] = print
  ) -> pathlib.Path:
    """Trains and writes `tokenizer.json` and its companion.

    Args:
      directory: where to; made if absent.
      report: is given each line of progress.

    Returns:
      The path of tokenizer.json, for `Data.vocabulary`.

    Raises:
      ValueError: the text cannot be read.
    """
    parts = [
      (source, source.survey())
      for data, _ in pipeline.components(self.data)
      for source in [pipeline.corpus_of(data)]
    ]
    size = sum(survey.bytes for _, survey in parts)
    report(f"training {self.vocab_size} ids on {size / 1e6:.2f} MB")
    trained = train(
      (
        document.text
        for source, survey in parts
        for document in source.split("train", survey)
      ),
      vocab_size=self.vocab_size,
      min_frequency=self.min_frequency,
    )
    path = save(trained, directory)
    vocabulary = vocab.load(path)
    held_out = [
      document.text
      for source, survey in parts
      for document in source.split("validation", survey)
    ]
    tokens = sum(len(vocabulary.encode(text)) for text in held_out)
    size = sum(len(text.encode("utf-8")) for text in held_out)
    report(f"validation: {size / tokens:.2f} bytes a token")
    report(f"wrote {path}; use it with Data.vocabulary = {str(path)!r}")
    return path


def pretokenizer() -> pre_tokenizers.PreTokenizer:
  """Cuts text as the module's docstring says."""
  patterns = [
    pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    for pattern in (_DIGITS, _CJK, _REST)
  ]
  letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return pre_tokenizers.Sequence([*patterns, letters])


def train(
  texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2
) -> tokenizers.Tokenizer:
  """Learns merges.

  Args:
    texts: documents.
    vocab_size: number of ids, special ones and placeholders included.
    min_frequency: of a pair that is merged.

  Returns:
    A tokenizer of exactly `vocab_size` ids.
  """
  strings = special_tokens.STRINGS
  last = [strings[name] for name in strings if name not in _FIRST]
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pretokenizer()
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - len(last),
    min_frequency=min_frequency,
    special_tokens=[strings[name] for name in _FIRST],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  # A small corpus runs out of pairs; the ids left over stay reserved.
  missing = vocab_size - len(last) - tokenizer.get_vocab_size()
  placeholders = [f"<｜place▁holder▁no▁{i}｜>" for i in range(missing)]
  tokenizer.add_special_tokens([*last, *placeholders])
  return tokenizer


def save(
  tokenizer: tokenizers.Tokenizer, directory: str | os.PathLike
) -> pathlib.Path:
  """Writes tokenizer.json and tokenizer_config.json; returns the former."""
  directory = pathlib.Path(directory).expanduser()
  directory.mkdir(parents=True, exist_ok=True)
  config = {
    "add_bos_token": False,
    "clean_up_tokenization_spaces": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{f"{name}_token": special_tokens.STRINGS[name] for name in _FIRST},
  }
  files = {
    "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
    "tokenizer.json": tokenizer.to_str(pretty=True),
  }
  for name, text in files.items():
    part = directory / f".{name}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(directory / name)
  return directory / "tokenizer.json"
