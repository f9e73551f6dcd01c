"""Files that go with the weights: tokenizer, chat template, licence.

They are copied as they are, under the names given here and no other. Python
files that some checkpoints carry are not: nothing here should bring code along.
"""

import pathlib
import re

from dsx.convert import folder as folder_lib

_NAMES = re.compile(
  r"tokenizer\.json|tokenizer_config\.json|generation_config\.json"
  r"|special_tokens_map\.json|added_tokens\.json|chat_template\.json"
  r"|[A-Za-z0-9_]{1,64}\.jinja"
  r"|(LICENSE|NOTICE)([-_.][A-Za-z0-9_-]{1,32})?(\.txt|\.md)?"
)
_MOST_BYTES = 64 << 20


def read(folder: pathlib.Path) -> dict[str, bytes]:
  """Reads what there is of them.

  Raises:
    ValueError: if one is larger than 64 MiB, or a link out of the folder.
  """
  found = {}
  for path in sorted(folder.iterdir()):
    if not _NAMES.fullmatch(path.name):
      continue
    path = folder_lib.inside(folder, path.name)
    size = path.stat().st_size
    if size > _MOST_BYTES:
      raise ValueError(
        f"{path}: {size} bytes: expected at most {_MOST_BYTES} of a file that "
        "goes with weights; move it elsewhere"
      )
    found[path.name] = path.read_bytes()
  return found
