"""Tokenizer and generation settings that leave a workdir with its weights."""

from collections.abc import Mapping
import json
import pathlib

from dsx.convert import companions
from dsx.data import byte_tokenizer
from dsx.data import vocab as vocab_lib

GENERATION = "generation_config.json"
_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_TOKENS = ("bos", "eos", "pad")


def of_import(workdir: pathlib.Path) -> dict[str, bytes]:
  """What came with imported weights, by file name."""
  return companions.read(workdir)


def of_run(vocabulary: str, window: int) -> dict[str, bytes]:
  """What others need to use the model of a run, by file name.

  Args:
    vocabulary: 'byte', or the path of a tokenizer.json or its folder.
    window: tokens of context that the model was trained with.

  Raises:
    ValueError: the vocabulary is not where it was.
  """
  loaded = vocab_lib.load(vocabulary)
  if vocabulary == "byte":
    texts = byte_tokenizer.files(window)
    found = {name: text.encode() for name, text in texts.items()}
  else:
    found = _of_bpe(pathlib.Path(vocabulary).expanduser(), loaded, window)
  settings = {f"{k}_token_id": v for k, v in _ids(loaded).items()}
  return found | {GENERATION: _json(settings)}


def _of_bpe(
  path: pathlib.Path, loaded: vocab_lib.Vocabulary, window: int
) -> dict[str, bytes]:
  folder = path if path.is_dir() else path.parent
  file = folder / _TOKENIZER if path.is_dir() else path
  found = {_TOKENIZER: file.read_bytes()}
  if (folder / _CONFIG).is_file():
    return found | {_CONFIG: (folder / _CONFIG).read_bytes()}
  strings = {
    f"{name}_token": loaded.decode([token], specials=True)
    for name, token in _ids(loaded).items()
  }
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": window,
    "clean_up_tokenization_spaces": False,
  }
  return found | {_CONFIG: _json(config | strings)}


def _ids(vocabulary: vocab_lib.Vocabulary) -> dict[str, int]:
  special = vocabulary.special
  return {name: special[name] for name in _TOKENS if name in special}


def token_ids(files: Mapping[str, bytes]) -> dict[str, int]:
  """The fields of config.json that name tokens: BOS and EOS."""
  settings = json.loads(files[GENERATION])
  wanted = ("bos_token_id", "eos_token_id")
  return {name: settings[name] for name in wanted if name in settings}


def _json(fields: dict) -> bytes:
  return (json.dumps(fields, indent=2) + "\n").encode()
