"""Vocabularies made for a test: of any pieces, or trained on a few words."""

import pathlib

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from dsx.data import special_tokens
from dsx.data import tokenizer_file
from dsx.data import vocab


def vocabulary(pieces):
  """A vocabulary of which the given pieces are ids 0, 1, ...; and those ids.

  The ids after them are <think>, </think> and EOS.
  """
  pieces = list(pieces)
  count = len(pieces)
  special = {"think": count, "/think": count + 1, "eos": count + 2}
  made = vocab.ByteVocabulary()
  made.special = special
  made._pieces = [*pieces, b"", b"", b""]
  made._strings = {
    token: special_tokens.STRINGS[name] for name, token in special.items()
  }
  return made, list(range(count))


def tokenizer(folder: pathlib.Path, *words: str, without=()) -> pathlib.Path:
  """Writes a byte-level BPE that merges `words`; returns its folder.

  It has DeepSeek's special tokens but those named in `without`.
  """
  symbols = {value: key for key, value in tokenizer_file.byte_symbols().items()}
  table = {symbol: i for i, symbol in enumerate(symbols.values())}
  merges = []
  for word in words:
    left, *rest = [symbols[value] for value in word.encode()]
    for right in rest:
      if left + right not in table:
        table[left + right] = len(table)
        merges.append((left, right))
      left += right
  made = tokenizers.Tokenizer(models.BPE(vocab=table, merges=merges))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(
    [
      tokenizers.AddedToken(string, normalized=False)
      for name, string in special_tokens.STRINGS.items()
      if name not in without
    ]
  )
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / "tokenizer.json"))
  return folder
