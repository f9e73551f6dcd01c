"""The source files of a task, and their digests.

No TensorFlow here, so that a trainer can name and check its data in a second.

  stdlib: the running Python's own standard library, `*.py` below sysconfig's
    stdlib path. Left out: tests, what pip installed, and what is generated
    rather than written (`encodings` is tables of character codes, `pydoc_data`
    one huge string, `_sysconfigdata*` and `config-*` describe one machine):
    long repetitive tables would flatter every figure in bits per byte. Files
    that are not UTF-8 are skipped and counted.
  text_files: every file that a glob matches, one document a file.
  jsonl: one JSON object a line, its text in one field (Hugging Face's layout).
  sft: one JSON object a line, a prompt and its response (see `sft`).
"""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import functools
import glob
import hashlib
import os
import pathlib
import sysconfig

_STDLIB_SKIPPED_FOLDERS = frozenset(
  {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
  }
)


class CorpusError(ValueError):
  """A source that cannot be read as text documents."""


@dataclasses.dataclass(frozen=True)
class File:
  """A source file and the name that identifies it on any machine."""

  name: str
  path: pathlib.Path


def standard_library() -> tuple[File, ...]:
  """The standard library's sources; see the module docstring.

  Raises:
    CorpusError: this Python has no sources on disk.
  """
  root = pathlib.Path(sysconfig.get_paths()["stdlib"]).resolve()
  files = []
  # Not rglob: it would walk through all that pip installed in between.
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if not _skipped(name)]
    for name in names:
      path = pathlib.Path(folder, name)
      if not name.endswith(".py") or name.startswith("_sysconfigdata"):
        continue
      # A link out of the library (a distribution's sitecustomize) is not it.
      if path.is_file() and path.resolve().is_relative_to(root):
        files.append(File(path.relative_to(root).as_posix(), path))
  if not files:
    raise CorpusError(
      f"Data.task: no sources of the standard library in {str(root)!r}; use "
      "task 'text_files' or 'jsonl' with Data.files, or a Python with sources"
    )
  return tuple(sorted(files, key=lambda file: file.path))


def matched(patterns: Sequence[str]) -> tuple[File, ...]:
  """The files that globs match (`**` means any depth), each once.

  A file is named by its path below the fixed part of the glob, so that moving
  the corpus as a whole changes no split.

  Raises:
    CorpusError: no pattern, or one that matches no file.
  """
  if not patterns:
    raise CorpusError(
      "Data.files: got no glob, expected one or more, such as "
      "pipeline.Data.files = ('~/corpus/**/*.txt',)"
    )
  files: dict[pathlib.Path, File] = {}
  for pattern in patterns:
    expanded = os.path.abspath(os.path.expanduser(pattern))
    paths = [
      pathlib.Path(path)
      for path in sorted(glob.glob(expanded, recursive=True))
      if os.path.isfile(path)
    ]
    if not paths:
      raise CorpusError(
        f"Data.files: no file matches {pattern!r} (from {os.getcwd()!r}); "
        "expected a path or a glob, with ** for any depth"
      )
    root = _fixed_part(expanded)
    for path in paths:
      name = path.relative_to(root).as_posix()
      files.setdefault(path.resolve(), File(name, path))
  return tuple(sorted(files.values(), key=lambda file: (file.name, file.path)))


def decoded(raw: bytes, file: File, offset: int = 0) -> str:
  """Text of bytes of a file.

  Args:
    raw: the bytes.
    file: where they are from.
    offset: where in it they begin, in bytes.

  Raises:
    CorpusError: they are not UTF-8.
  """
  try:
    return raw.decode("utf-8")
  except UnicodeDecodeError as error:
    raise CorpusError(
      f"Data.files: {str(file.path)!r} is not UTF-8 at byte "
      f"{offset + error.start} ({error.reason}); expected UTF-8 text, convert "
      "it or narrow the glob"
    ) from None


def _skipped(folder: str) -> bool:
  return folder in _STDLIB_SKIPPED_FOLDERS or folder.startswith("config-")


def digests(files: Sequence[File]) -> list[list[str]]:
  """Name and hex sha256 of the content of each file.

  Every byte is read, on several threads; a file is read again only when its
  size or time changed.
  """
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda file: _file_digest(file.path), files))
  return [
    [file.name, digest] for file, digest in zip(files, found, strict=True)
  ]


def _fixed_part(pattern: str) -> pathlib.Path:
  """The folders of an absolute glob before its first magic one."""
  parts = []
  for part in pathlib.Path(pattern).parts[:-1]:
    if any(character in part for character in "*?["):
      break
    parts.append(part)
  return pathlib.Path(*parts)


def _file_digest(path: pathlib.Path) -> str:
  status = path.stat()
  return _content_digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _content_digest(path: pathlib.Path, size: int, time_ns: int) -> str:
  del size, time_ns  # part of the cache's key only
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
