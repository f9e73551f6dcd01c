"""Files of one JSON value a line."""

from collections.abc import Iterator
import json
from typing import Any

from dsx.data import source_files


def read(file: source_files.File) -> Iterator[tuple[str, str, Any]]:
  """Reads each line; blank lines are allowed.

  Yields:
    (where, name, value): path and number of the line, for people; the same
    below the corpus, on any machine; what the line says.

  Raises:
    source_files.CorpusError: a line is not UTF-8, or not JSON.
  """
  offset = 0
  with file.path.open("rb") as stream:
    for number, line in enumerate(stream, start=1):
      text = source_files.decoded(line, file, offset)
      offset += len(line)
      if not text.strip():
        continue
      where = f"{file.path}:{number}"
      try:
        value = json.loads(text)
      except ValueError as error:
        raise source_files.CorpusError(
          f"Data.files: {where}: not JSON ({error}); expected one object a line"
        ) from None
      yield where, f"{file.name}:{number}", value
