"""Reading a Hugging Face tokenizer.json that holds a byte-level BPE.

The file is somebody else's: what it says is checked, and every way by which
text could become a special token is taken out before it is used.
"""

import dataclasses
import hashlib
import json
import pathlib

from dsx.data import special_tokens

# A bound on ids, so that a damaged file cannot ask for terabytes of tables.
MOST_IDS = 1 << 24


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
  """What a tokenizer.json says.

  Attributes:
    pieces: bytes of each id; empty for special ids and for holes.
    special: name to id, see `vocab.Vocabulary`.
    strings: special id to its string.
    plain: a tokenizer.json that cannot produce a special id.
    digest: hex sha256 of the file and of the special tokens' names.
  """

  pieces: tuple[bytes, ...]
  special: dict[str, int]
  strings: dict[int, str]
  plain: str
  digest: str


def read(file: pathlib.Path) -> TokenizerFile:
  """Reads `file`.

  A `tokenizer_config.json` beside it may name bos, eos and pad.

  Raises:
    ValueError: there is no such file, or it is not a byte-level BPE whose
      end-of-sequence token is known.
  """
  raw, spec = _read_json(file)
  try:
    return _parsed(file, raw, spec)
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f"vocabulary: {str(file)!r} is not laid out as a Hugging Face "
      f"tokenizer.json ({type(error).__name__}: {error})"
    ) from None


def byte_symbols() -> dict[str, int]:
  """The 256 printable characters of byte-level BPE files, to byte values.

  Bytes that print as themselves in Latin-1 keep their character; the others
  take the characters from U+0100 on, in order.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  symbols = {chr(value): value for value in printable}
  rest = (value for value in range(256) if value not in set(printable))
  symbols.update({chr(256 + i): value for i, value in enumerate(rest)})
  return symbols


def _parsed(file: pathlib.Path, raw: bytes, spec: dict) -> TokenizerFile:
  added = spec.get("added_tokens") or []
  # Some tokenizers add runs of spaces as tokens; those are text like any other.
  strings = {
    token["id"]: token["content"]
    for token in added
    if token.get("special") or not token["content"].isspace()
  }
  spaces = [token for token in added if token["id"] not in strings]
  _check_ids(file, [*spec["model"]["vocab"].values(), *strings])
  plain = _without_specials(spec, strings, spaces)
  _check_byte_level(file, plain["model"])
  special = _special_names(file, strings)
  described = raw + json.dumps(sorted(special.items())).encode()
  return TokenizerFile(
    pieces=_pieces(plain["model"]["vocab"], strings),
    special=special,
    strings=strings,
    plain=json.dumps(plain, ensure_ascii=False),
    digest=hashlib.sha256(described).hexdigest(),
  )


def _read_json(file: pathlib.Path) -> tuple[bytes, dict]:
  try:
    raw = file.read_bytes()
  except OSError as error:
    raise ValueError(
      f"vocabulary: cannot read {str(file)!r} ({error.strerror}), expected "
      "'byte' or the path of a tokenizer.json; train one with "
      "experiments.train_tokenizer"
    ) from None
  try:
    return raw, json.loads(raw)
  except ValueError as error:
    raise ValueError(
      f"vocabulary: {str(file)!r} is not JSON ({error}), expected a Hugging "
      "Face tokenizer.json"
    ) from None


def _check_ids(file: pathlib.Path, ids: list[int]) -> None:
  wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < MOST_IDS]
  if wrong:
    raise ValueError(
      f"vocabulary: {str(file)!r} has the id {wrong[0]!r}, expected ints in "
      f"[0, {MOST_IDS})"
    )


def _check_byte_level(file: pathlib.Path, model: dict) -> None:
  """Refuses what cannot encode every text without loss."""
  found = f"a model of type {model['type']!r}"
  if model["type"] == "BPE":
    missing = set(byte_symbols()) - set(model["vocab"])
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    if not missing and not any(model.get(name) for name in affixes):
      return
    found = f"a BPE that lacks {len(missing)} of the 256 byte symbols"
  raise ValueError(
    f"vocabulary: {str(file)!r} has {found}, expected a byte-level BPE (as "
    "DeepSeek, Llama 3 and GPT-2 use)"
  )


def _special_names(
  file: pathlib.Path, strings: dict[int, str]
) -> dict[str, int]:
  """Names the special ids; see `vocab.Vocabulary.special`."""
  names = {string: name for name, string in special_tokens.STRINGS.items()}
  special = {names.get(s, s): token for token, s in strings.items()}
  tokens = {string: token for token, string in strings.items()}
  config_file = file.with_name("tokenizer_config.json")
  if config_file.is_file():
    config = _read_json(config_file)[1]
    for name in ("bos", "eos", "pad"):
      token = config.get(f"{name}_token")
      string = token.get("content") if isinstance(token, dict) else token
      if string in tokens:
        special[name] = tokens[string]
  if "eos" not in special:
    raise ValueError(
      f"vocabulary: {str(file)!r} has no end-of-sequence token, expected "
      f"{special_tokens.STRINGS['eos']!r} among its added tokens or an "
      "eos_token in the tokenizer_config.json beside it"
    )
  special.setdefault("pad", special["eos"])
  return special


def _pieces(
  table: dict[str, int], strings: dict[int, str]
) -> tuple[bytes, ...]:
  symbols = byte_symbols()
  pieces = [b""] * (max([*table.values(), *strings]) + 1)
  for string, token in table.items():
    if all(character in symbols for character in string):
      pieces[token] = bytes(symbols[character] for character in string)
    else:  # an added run of spaces stands as itself
      pieces[token] = string.encode("utf-8")
  return tuple(pieces)


def _without_specials(
  spec: dict, strings: dict[int, str], spaces: list[dict]
) -> dict:
  """The tokenizer's description with every way to a special id taken out.

  Added tokens are matched against raw text before the model sees it, so they
  go. A special string that is also a model token could be reached by merges,
  or whole where the file ignores merges, so it goes too. Truncation, padding
  and the post-processor add or drop tokens unasked; dropout is random.
  """
  banned = set(strings.values())
  model = dict(spec["model"])
  table = {
    string: token
    for string, token in model["vocab"].items()
    if token not in strings and string not in banned
  }
  # An added token that the model lacks is numbered anew when it is loaded.
  table.update({token["content"]: token["id"] for token in spaces})
  merges = []
  for merge in model.get("merges") or ():
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if left in table and right in table and left + right in table:
      merges.append(merge)
  model.update(vocab=table, merges=merges, dropout=None)
  if model.get("unk_token") not in table:
    model["unk_token"] = None
  return {
    **spec,
    "model": model,
    "added_tokens": spaces,
    "truncation": None,
    "padding": None,
    "post_processor": None,
  }
