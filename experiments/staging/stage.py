"""What a road is: its stages, in order, as a gin file describes them.

A stage is one of the binaries with gin files of its own. What it takes from an
earlier stage it names: `{zero}` in a binding is the folder of the stage `zero`.
"""

import dataclasses
import re
from typing import Literal

Binary = Literal[
  "pretrain",
  "sft",
  "grpo",
  "make_problems",
  "rejection_sample",
  "reward_model",
]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
# What a gin dictionary begins with is never a bare word in braces.
PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
# What the evaluation's bindings call the stage that is evaluated.
EVALUATED = "stage"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One run.

  Attributes:
    name: what later stages call it, and what its folder begins with.
    binary: what runs it, `experiments.<binary>`.
    gin_files: as its --gin_file.
    gin_bindings: as its --gin_bindings, with names of earlier stages in braces
      for their folders.
    reads: files that no stage makes; what they contain counts as a setting.
    title: what tables and plots call it; empty for its name.
    evaluate: whether its model is evaluated. A stage that makes no model has
      none to evaluate.
  """

  name: str
  binary: Binary
  gin_files: tuple[str, ...] = ()
  gin_bindings: tuple[str, ...] = ()
  reads: tuple[str, ...] = ()
  title: str = ""
  evaluate: bool = True

  def __post_init__(self):
    if not _NAME.fullmatch(self.name) or self.name == EVALUATED:
      raise ValueError(
        f"name={self.name!r}: expected small letters, digits and '_', and not"
        f" {EVALUATED!r}; rename the stage"
      )

  @property
  def label(self) -> str:
    """Its title, or its name."""
    return self.title or self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """How the stages' models are compared.

  Attributes:
    gin_files: of `experiments.evaluate_reasoning`.
    gin_bindings: with `{stage}` for the folder of the stage.
    reads: as a stage's.
  """

  gin_files: tuple[str, ...] = ()
  gin_bindings: tuple[str, ...] = ()
  reads: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Road:
  """All stages.

  Attributes:
    stages: in the order in which they run.
    evaluation: of their models; None for none.
    seed: of every stage.
    title: of the report.
  """

  stages: tuple[Stage, ...]
  evaluation: Evaluation | None = None
  seed: int = 0
  title: str = "The road"

  def __post_init__(self):
    seen: list[str] = []
    for stage in self.stages:
      if stage.name in seen:
        raise ValueError(
          f"stages: two are named {stage.name!r}: expected different names;"
          " rename one"
        )
      for binding in stage.gin_bindings:
        for name in PLACEHOLDER.findall(binding):
          if name not in seen:
            raise ValueError(
              f"stages: {stage.name!r} binds {binding!r}: expected in braces"
              f" one of the stages before it, {', '.join(seen) or 'none'};"
              " rename or reorder"
            )
      seen.append(stage.name)
    if self.evaluation is not None:
      for binding in self.evaluation.gin_bindings:
        for name in PLACEHOLDER.findall(binding):
          if name not in (EVALUATED, *seen):
            raise ValueError(
              f"evaluation: {binding!r}: expected {{{EVALUATED}}} or the name"
              " of a stage in braces; change it"
            )
