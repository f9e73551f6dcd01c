"""Where gin files are looked for, and where an include may not lead.

A file given on the command line may lie anywhere. A file that another one
includes must end in `.gin` and lie, symbolic links resolved, in or below the
including file's folder, the current folder or the repository's `gin_configs`:
a run's config that someone sent cannot read what else is on the disk.
"""

import dataclasses
import os
import pathlib

from experiments.bindings import problems

ROOT = pathlib.Path(__file__).resolve().parents[2]
_LARGEST_FILE = 1 << 18  # bytes


class NotFound(ValueError):
  """A gin file that is missing, unreadable or out of bounds."""


@dataclasses.dataclass(frozen=True)
class SearchPath:
  """The folders to look in.

  Attributes:
    root: folder of `gin_configs`, the repository's.
    cwd: folder that relative paths of a person are relative to.
  """

  root: pathlib.Path = ROOT
  cwd: pathlib.Path = dataclasses.field(default_factory=pathlib.Path.cwd)

  @property
  def configs(self) -> pathlib.Path:
    """The folder of the configs that come with the code."""
    return self.root / "gin_configs"

  def given(self, name: str) -> pathlib.Path:
    """Returns the file that a person names on the command line.

    Raises:
      NotFound: there is none.
    """
    for base in (self.cwd, self.root):
      path = _path(base, os.path.expanduser(name))
      if _is_file(path):
        return path.resolve()
    raise NotFound(f"{name!r} is no file; {self._nearest(name)}")

  def included(self, name: str, folder: pathlib.Path) -> pathlib.Path:
    """Returns the file that a gin file in `folder` includes.

    Raises:
      NotFound: there is none, or it is out of bounds.
    """
    if not name.endswith(".gin"):
      raise NotFound(
        f"include {name!r}: expected a name ending in .gin; rename the file"
      )
    allowed = [base.resolve() for base in (folder, self.cwd, self.configs)]
    outside = False
    for base in (folder, self.cwd, self.root, self.configs):
      path = _path(base, name)
      if not _is_file(path):
        continue
      path = path.resolve()
      if any(path.is_relative_to(parent) for parent in allowed):
        return path
      outside = True
    if outside:
      raise NotFound(
        f"include {name!r} leads out of the including file's folder,"
        f" {self.configs} and the current folder; copy the file into one"
      )
    raise NotFound(f"include {name!r} does not exist; {self._nearest(name)}")

  def shown(self, path: pathlib.Path) -> str:
    """Returns `path` as a person in the current folder would type it."""
    cwd = self.cwd.resolve()
    return str(path.relative_to(cwd) if path.is_relative_to(cwd) else path)

  def _nearest(self, name: str) -> str:
    # Folders are rarely misspelt: what is alike in them says nothing.
    known = {
      path.stem: str(path.relative_to(self.root))
      for path in sorted(self.configs.rglob("*.gin"))
    }
    match = problems.nearest(pathlib.Path(name).stem, known)
    return f"did you mean '{known[match]}'?" if match else "check the path"


def _path(base: pathlib.Path, name: str) -> pathlib.Path:
  if "\0" in name or len(name) > 4096:
    raise NotFound("a path of NUL characters or of excessive length; mend it")
  return base / name


def _is_file(path: pathlib.Path) -> bool:
  try:
    return path.is_file()
  except OSError:  # a folder that may not be entered, a name too long
    return False


def text(path: pathlib.Path) -> str:
  """Returns the text of a gin file.

  Raises:
    NotFound: it cannot be read, is no text or is too large to be a config.
  """
  try:
    with path.open("rb") as file:
      content = file.read(_LARGEST_FILE + 1)
  except OSError as error:
    raise NotFound(f"cannot be read ({error.strerror}); check it") from None
  if len(content) > _LARGEST_FILE:
    raise NotFound("is larger than 256 KiB; is it a gin file?")
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise NotFound(
      f"is not UTF-8 (byte {error.start}, line {line}); save it as UTF-8"
    ) from None
