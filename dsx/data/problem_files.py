"""Files of generated problems, of solutions to some, and of preferences.

  train.jsonl, held_out.jsonl   problems (`problems`)
  samples.jsonl                 prompts and responses to fine-tune on (`sft`)
  preferences.jsonl             prompts with a better and a worse response

What a road begins with: a cold start's few solutions (or none but their form),
general data, pairs for a reward model. All of that follows from seeds, and
nothing that is held out is among samples or preferences.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
from typing import Any
from typing import Literal

from dsx.data import arithmetic
from dsx.data import courtesy
from dsx.data import problems as problems_lib

SAMPLES = "samples.jsonl"
PREFERENCES = "preferences.jsonl"
Generated = arithmetic.Generated | courtesy.Generated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solved:
  """Responses to the first problems of a generator.

  Attributes:
    problems: of which.
    count: how many; at most `problems.train`.
    form: of responses, see `arithmetic.solution`.
    format_only: share of arithmetic's that have the form of a solution and no
      more.
    steps: whether arithmetic's chains of thought show how.
  """

  problems: Generated
  count: int
  form: Literal["tags", "summary"] = "tags"
  format_only: float = 0.0
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
    if not 0 <= self.format_only <= 1:
      raise ValueError(
        f"format_only={self.format_only!r}: expected a share, 0 to 1; change it"
      )

  def samples(self) -> list[dict[str, str]]:
    """A prompt and a response for each, and which problem that is."""
    return [self._sample(problem) for problem in self._problems()]

  def preferences(self) -> list[dict[str, str]]:
    """A better and a worse response to each request of `courtesy`."""
    return [
      {
        "prompt": problem.prompt,
        "chosen": courtesy.good(problem, self.form),
        "rejected": courtesy.poor(problem, self.form),
      }
      for problem in self._problems()
      if problem.domain == "courtesy"
    ]

  def _problems(self) -> list[problems_lib.Problem]:
    return self.problems.problems("train")[: self.count]

  def _sample(self, problem: problems_lib.Problem) -> dict[str, str]:
    source = "solution"
    if problem.domain == "courtesy":
      response = courtesy.good(problem, self.form)
    else:
      drawn = random.Random(f"form {problem.name}").random()
      blind = drawn < self.format_only
      source = "form" if blind else source
      response = arithmetic.solution(
        problem, form=self.form, format_only=blind, steps=self.steps
      )
    return {
      "prompt": problem.prompt,
      "response": response,
      "problem": problem.name,
      "domain": problem.domain,
      "source": source,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemFiles:
  """What to write.

  Attributes:
    generated: problems; may be none if there are solutions.
    solved: solutions, and preferences where there are any; may be none.
    seed: of the order of these.
  """

  generated: tuple[Generated, ...] = ()
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
    for name, records in (
      (SAMPLES, [r for solved in self.solved for r in solved.samples()]),
      (PREFERENCES, [r for s in self.solved for r in s.preferences()]),
    ):
      if records:
        kind = name.removesuffix(".jsonl")
        summary[kind] = len(records)
        summary[f"{kind}_digest"] = self._write(folder / name, records)
    return summary

  def _write(self, file: pathlib.Path, records: list[dict[str, str]]) -> str:
    """Writes lines in an order of their own; returns their sha256."""
    lines = [
      json.dumps(record, ensure_ascii=False, sort_keys=True)
      for record in records
    ]
    lines.sort(key=self._place)
    content = "".join(f"{line}\n" for line in lines).encode()
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, file)
    return hashlib.sha256(content).hexdigest()

  def _place(self, line: str) -> bytes:
    return hashlib.sha256(f"{self.seed} {line}".encode()).digest()
