"""The byte vocabulary as the files that other programs read.

Hugging Face's `tokenizers` has no vocabulary of bytes, but a byte-level BPE
without merges is one: byte v is one symbol, with id v. `vocab.load` reads the
files back with the same ids.
"""

import json

from dsx.data import special_tokens
from dsx.data import tokenizer_file
from dsx.data import vocab


def files(window: int) -> dict[str, str]:
  """`tokenizer.json` and `tokenizer_config.json`, by name.

  As DeepSeek's own tokenizer does, it puts BOS in front of a text unless told
  not to add special tokens.

  Args:
    window: tokens of context that the model was trained with.
  """
  special = vocab.ByteVocabulary().special
  strings = special_tokens.STRINGS
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": window,
    "clean_up_tokenization_spaces": False,
    **{f"{name}_token": strings[name] for name in ("bos", "eos", "pad")},
  }
  return {
    "tokenizer.json": json.dumps(_tokenizer(special), indent=1),
    "tokenizer_config.json": json.dumps(config, indent=1),
  }


def _tokenizer(special: dict[str, int]) -> dict:
  strings = special_tokens.STRINGS
  bytes_ = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
  }
  plain = {"single_word": False, "lstrip": False, "rstrip": False}
  bos = strings["bos"]
  text = {"Sequence": {"id": "A", "type_id": 0}}
  other = {"Sequence": {"id": "B", "type_id": 0}}
  begin = {"SpecialToken": {"id": bos, "type_id": 0}}
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      {
        "id": special[name],
        "content": strings[name],
        **plain,
        "normalized": False,
        "special": True,
      }
      for name in sorted(special, key=special.__getitem__)
    ],
    "normalizer": None,
    "pre_tokenizer": bytes_,
    "post_processor": {
      "type": "TemplateProcessing",
      "single": [begin, text],
      "pair": [begin, text, other],
      "special_tokens": {
        bos: {"id": bos, "ids": [special["bos"]], "tokens": [bos]}
      },
    },
    "decoder": bytes_,
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": tokenizer_file.byte_symbols(),
      "merges": [],
    },
  }
