"""Which problems a run learns from, and which it is examined with.

From files (`data/problems.py`), from generators (`data/arithmetic.py`,
`data/courtesy.py`), or both. No problem may be on both sides.
"""

from collections.abc import Sequence
import dataclasses
import functools
import glob
import hashlib
import pathlib

from dsx.data import arithmetic
from dsx.data import courtesy
from dsx.data import problems as problems_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exercises:
  """Problems on both sides.

  Attributes:
    files: globs of files of problems to train on.
    held_out_files: globs of files of problems to evaluate with.
    generated: problems of both kinds, made rather than read.
  """

  files: tuple[str, ...] = ()
  held_out_files: tuple[str, ...] = ()
  generated: tuple[arithmetic.Generated | courtesy.Generated, ...] = ()

  def __post_init__(self):
    for field in ("files", "held_out_files"):
      value = getattr(self, field)
      if isinstance(value, str):
        raise ValueError(
          f"{field}={value!r}: expected a tuple of globs; write ({value!r},)"
        )
      object.__setattr__(self, field, tuple(value))
    object.__setattr__(self, "generated", tuple(self.generated))
    if not self.files and not self.generated:
      raise ValueError(
        "files=(): expected globs of files of problems, or generated ones; give"
        " either"
      )

  def train(self) -> list[problems_lib.Problem]:
    """Problems to train on, in the order of files and generators.

    Raises:
      ValueError: a file is missing or wrong, or two problems bear one name.
    """
    return self._side("files", "train")

  def held_out(self) -> list[problems_lib.Problem]:
    """Problems to evaluate with; none if nothing says which.

    Raises:
      ValueError: as `train`; or a problem is among those to train on.
    """
    found = self._side("held_out_files", "held_out")
    known = {problem.prompt for problem in self.train()}
    for problem in found:
      if problem.prompt in known:
        raise ValueError(
          f"held_out_files: problem {problem.name!r} is trained on as well:"
          " expected others; take it out of either side"
        )
    return found

  def _side(self, field: str, split: arithmetic.Split):
    found: list[problems_lib.Problem] = []
    for file in _files(field, getattr(self, field)):
      found += problems_lib.read(file)
    for generated in self.generated:
      found += _made(generated, split)
    names = set()
    for problem in found:
      if problem.name in names:
        raise ValueError(
          f"{field}: two problems are named {problem.name!r}: expected"
          " different names; rename one"
        )
      names.add(problem.name)
    return found


def digest(problems: Sequence[problems_lib.Problem]) -> str:
  """sha256 of problems and their order, so that others are told apart."""
  if not problems:
    return hashlib.sha256().hexdigest()
  return problems_lib.digest(problems)


@functools.lru_cache(maxsize=16)
def _made(
  generated: arithmetic.Generated, split: arithmetic.Split
) -> tuple[problems_lib.Problem, ...]:
  """Generated problems, which take seconds to find and are asked for often."""
  return tuple(generated.problems(split))


def _files(field: str, globs: Sequence[str]) -> list[str]:
  """Files of globs, in order, each once."""
  found: dict[str, None] = {}
  for pattern in globs:
    matches = sorted(glob.glob(str(pathlib.Path(pattern).expanduser())))
    if not matches:
      raise ValueError(
        f"{field}: {pattern!r} matches no file: expected one at least; correct"
        " it, or make the problems first"
      )
    found |= dict.fromkeys(matches)
  return list(found)
