"""A package of dataclasses and Linen modules for the preflight to read.

It stands for dsx in tests: small, and with every kind of annotation. It is
written to a folder at run time, so that tests can tell what was imported.
"""

import pathlib
import sys
import tempfile

from absl.testing import parameterized
import gin

from experiments import preflight
from experiments.bindings import problems
from experiments.bindings import search
from experiments.bindings import sources

NAME = "dsx_toy"
RUN = "dsx_toy.top.Run"

_PARTS = '''
"""Parts."""

import dataclasses
import enum
import os as _os
import subprocess
from typing import Literal

Mode = Literal["fast", "slow"]


class Colour(enum.Enum):
  RED = "red"
  BLUE = "blue"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
  width: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(Base):
  """Part."""

  depth: int = 2
  rate: float = 0.5
  mode: Mode = "fast"
  colour: Colour = Colour.RED
  note: "str | None" = None
  inner: "Base | None" = None
  hidden: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True)
class Other:
  size: int


@dataclasses.dataclass(frozen=True)
class _Private:
  size: int = 0


class Plain:
  def __init__(self, command: str = ""):
    subprocess.run(command, shell=True)


def make(*, size: int, rate: float = 1.0) -> Part:
  """Makes a part."""
  return Part(depth=size, rate=rate)


def run(command: str) -> int:
  """Runs a command."""
  return subprocess.call(command, shell=True)
'''

_TOP = '''
"""Top."""

from collections.abc import Callable
import dataclasses

from {name} import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Run."""

  part: parts.Part
  steps: int = 10
  rate: float | None = None
  ready: bool = False
  title: str = "run"
  files: tuple[str, ...] = ()
  sizes: tuple[int, int] = (1, 2)
  weights: list[float] = dataclasses.field(default_factory=list)
  table: dict[str, int] = dataclasses.field(default_factory=dict)
  extra: parts.Part | None = None
  spare: parts.Other = parts.Other(3)
  others: tuple[parts.Part, ...] = ()
  reward: Callable[[str], int] | None = None
  seed: int = 0
  anything: object = None
'''

_NETS = '''
"""Nets."""

from flax import linen as nn


class Net(nn.Module):
  features: int
  names: tuple[str, str] = ("a", "b")

  def __call__(self, x):
    return x
'''


def write(name: str) -> pathlib.Path:
  """Writes the package `name` into a new folder that Python then finds."""
  folder = pathlib.Path(tempfile.mkdtemp())
  package = folder / name
  package.mkdir()
  (package / "__init__.py").write_text('"""Toy."""\n')
  (package / "parts.py").write_text(_PARTS)
  (package / "top.py").write_text(_TOP.replace("{name}", name))
  (package / "nets.py").write_text(_NETS)
  (package / "broken.py").write_text('"""Broken."""\n\nclass Part\n')
  sys.path.insert(0, str(folder))
  return folder


HEAD = """\
from __gin__ import dynamic_registration
from dsx_toy import parts
from dsx_toy import top
"""
GOOD = (
  HEAD
  + """
STEPS = 7
top.Run.part = @parts.Part()
top.Run.steps = %STEPS
"""
)

_written: dict[str, pathlib.Path] = {}


class ToyTestCase(parameterized.TestCase):
  """Writes gin files into a folder of their own and checks them."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    if NAME not in _written:
      _written[NAME] = write(NAME)

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.index = sources.Sources([NAME])
    self.path = search.SearchPath(root=self.folder, cwd=self.folder)

  def write(self, name, text):
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

  def check(self, files=("run.gin",), bindings=(), **more):
    return preflight.check(
      files,
      bindings,
      target=more.pop("target", RUN),
      index=self.index,
      path=self.path,
      **more,
    )

  def mistakes(self, *arguments, **more):
    with self.assertRaises(problems.Refused) as caught:
      self.check(*arguments, **more)
    return [str(problem) for problem in caught.exception.problems]


def build(text):
  """Returns the `Run` that gin builds from `text`."""
  gin.clear_config()
  gin.parse_config(text)
  from dsx_toy import top

  try:
    return gin.get_configurable(top.Run)()
  finally:
    gin.clear_config()
