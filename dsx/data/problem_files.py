"""Files of generated problems and of solutions to some of them.

  train.jsonl, held_out.jsonl   problems (`problems`)
  samples.jsonl                 prompts and responses to fine-tune on (`sft`)

What a cold start learns from: few solutions, or none but their form, of
problems that are not held out.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any
from typing import Literal

from dsx.data import arithmetic
from dsx.data import problems as problems_lib

SAMPLES = "samples.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solved:
  """Solutions to the first problems of a generator.

  Attributes:
    problems: of which.
    count: how many; at most `problems.train`.
    form: of responses, see `arithmetic.solution`.
    format_only: likewise.
    steps: likewise.
  """

  problems: arithmetic.Generated
  count: int
  form: Literal["tags", "summary"] = "tags"
  format_only: bool = False
  steps: bool = True

  def __post_init__(self):
    if not 1 <= self.count <= self.problems.train:
      raise ValueError(
        f"count={self.count!r}: expected 1 to problems.train="
        f"{self.problems.train}; change either"
      )
    if self.form not in ("tags", "summary"):
      raise ValueError(
        f"form={self.form!r}: expected tags or summary; change it"
      )

  def lines(self) -> list[dict[str, Any]]:
    """A prompt and a response for each, and which problem that is."""
    return [
      {
        "prompt": problem.prompt,
        "response": arithmetic.solution(
          problem,
          form=self.form,
          format_only=self.format_only,
          steps=self.steps,
        ),
        "problem": problem.name,
        "domain": problem.domain,
        "source": "form" if self.format_only else "solution",
      }
      for problem in self.problems.problems("train")[: self.count]
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemFiles:
  """What to write.

  Attributes:
    generated: problems; may be none if there are solutions.
    solved: solutions; may be none.
    seed: of the order of solutions.
  """

  generated: tuple[arithmetic.Generated, ...] = ()
  solved: tuple[Solved, ...] = ()
  seed: int = 0

  def __post_init__(self):
    object.__setattr__(self, "generated", tuple(self.generated))
    object.__setattr__(self, "solved", tuple(self.solved))
    if not self.generated and not self.solved:
      raise ValueError(
        "generated=(): expected generators of problems, or solutions in solved;"
        " give either"
      )

  def write(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes the files that there is something for.

    Returns:
      For each file its number of lines, and the sha256 of its content.

    Raises:
      ValueError: a generator has not so many problems.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {}
    for split in arithmetic.SPLITS if self.generated else ():
      found = [p for g in self.generated for p in g.problems(split)]
      problems_lib.write(folder / f"{split}.jsonl", found)
      summary[split] = len(found)
      summary[f"{split}_digest"] = problems_lib.digest(found)
    if self.solved:
      lines = [
        json.dumps(line, ensure_ascii=False, sort_keys=True)
        for solved in self.solved
        for line in solved.lines()
      ]
      lines.sort(key=self._place)
      content = "".join(f"{line}\n" for line in lines).encode()
      partial = folder / f"{SAMPLES}.partial"
      partial.write_bytes(content)
      os.replace(partial, folder / SAMPLES)
      summary["samples"] = len(lines)
      summary["samples_digest"] = hashlib.sha256(content).hexdigest()
    return summary

  def _place(self, line: str) -> bytes:
    return hashlib.sha256(f"{self.seed} {line}".encode()).digest()
