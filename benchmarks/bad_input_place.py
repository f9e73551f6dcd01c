"""Where a case gives convert, generate or serve a bad input."""

import dataclasses
import pathlib
import re
import shutil
import subprocess

from benchmarks import bad_input_cases as cases
from benchmarks import bad_input_models as models

_LIMIT = 120  # seconds; who is still running by then accepted the input
_STATUS = re.compile(
  r"[\d.,]+ \w*B of .*%.*: "  # bytes
  r"|(Hugging Face folder|step [\d,]+ of) .*; (prompt|\d+ prompts|Decoding)"
  r"|[\d,]+ tokens?\b.*"  # how far generate came
)


class Place:
  """A folder of a case, with copies of the models as they are asked for.

  Attributes:
    folder: where it is.
    target: of conversions, unless they are given another.
    answers: of generation, if it is given `output`.
    output: the flag that says so.
  """

  def __init__(self, folder: pathlib.Path, made: pathlib.Path):
    """`made` holds the models, see `bad_input_models.make`."""
    self.folder = folder
    self.target = folder / "target"
    self.answers = folder / "answers.jsonl"
    self.output = f"--output={self.answers}"
    self._made = made

  def copy(self, name: str) -> pathlib.Path:
    """A model to spoil; the same one when it is asked for again."""
    copied = self.folder / name
    if not copied.exists():
      shutil.copytree(self._made / name, copied, symlinks=True)
    return copied

  def convert(self, model, *arguments, target=None) -> cases.Outcome:
    """Converts a model, by its name or folder, and looks at what is left."""
    source, target = self._folder(model), target or self.target
    before = _state(source), _state(target)
    words = f"--source={source}", f"--target={target}"
    outcome = self._call("convert", *words, *arguments)
    after = _state(source), _state(target)
    found = []
    if source not in (target, *target.parents) and before[0] != after[0]:
      found.append("SOURCE CHANGED")
    if models.is_whole(target) and before[1] != after[1]:
      found.append("TARGET LOOKS COMPLETE")
    return _with(outcome, found)

  def generate(self, model, *arguments, prompt="def ") -> cases.Outcome:
    """Generates with a model, by its name or folder, and looks for answers."""
    words = [f"--checkpoint={self._folder(model)}", "--vocabulary=byte"]
    words += [] if prompt is None else [f"--prompt={prompt}"]
    outcome = self._call("generate", *words, *arguments)
    return _with(outcome, ["ANSWERS"] if self.answers.is_file() else [])

  def serve(self, model, *arguments, **environment) -> cases.Outcome:
    """Serves a model, by its name or folder."""
    words = [f"--checkpoint={self._folder(model)}", "--vocabulary=byte"]
    words += ["--port=0", *arguments]
    return self._call("serve", *words, **environment)

  def _folder(self, model: str | pathlib.Path) -> pathlib.Path:
    return self.copy(model) if isinstance(model, str) else model

  def _call(self, binary: str, *arguments, **environment) -> cases.Outcome:
    try:
      outcome = cases.call(
        binary,
        arguments,
        compiled=self.folder / "compiled",
        limit=_LIMIT,
        **environment,
      )
    except subprocess.TimeoutExpired:
      return cases.Outcome(0, ["still running"], "", _LIMIT)
    lines = [line for line in outcome.lines if not _STATUS.match(line)]
    return dataclasses.replace(outcome, lines=lines)


def _state(folder: pathlib.Path) -> str:
  return models.digest(folder) if folder.is_dir() else ""


def _with(outcome: cases.Outcome, found: list[str]) -> cases.Outcome:
  return dataclasses.replace(outcome, output=outcome.output + " ".join(found))
