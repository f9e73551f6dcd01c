"""Answers to the same held-out problems over a run, to be read side by side.

`completions/step_N.jsonl` has the first answers at an examination;
`completions.md` sets the first beside the last.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
import textwrap
from typing import Any

FOLDER = "completions"
FILE = "completions.md"

_COLUMN = 48  # characters
_MOST = 1200  # characters of an answer that are shown


def write(
  workdir: pathlib.Path, step: int, shown: Sequence[Mapping[str, Any]]
) -> None:
  """Keeps the answers of an examination.

  Args:
    workdir: of the run.
    step: updates taken.
    shown: of `examiner.Examination`.
  """
  folder = workdir / FOLDER
  folder.mkdir(exist_ok=True)
  text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in shown)
  _replace(folder / f"step_{step:06d}.jsonl", text)


def read(workdir: pathlib.Path) -> dict[int, list[dict[str, Any]]]:
  """The answers that were kept, by step."""
  found = {}
  for path in sorted((workdir / FOLDER).glob("step_*.jsonl")):
    lines = path.read_text().splitlines()
    step = int(path.stem.removeprefix("step_"))
    found[step] = [json.loads(line) for line in lines]
  return found


def compare(workdir: pathlib.Path) -> pathlib.Path | None:
  """Writes the first answers beside the last.

  Returns:
    The file; None if nothing was kept.
  """
  kept = {step: shown for step, shown in read(workdir).items() if shown}
  if not kept:
    return None
  first, last = min(kept), max(kept)
  parts = [f"# Held-out problems, before and after ({workdir.name})\n"]
  for before, after in zip(kept[first], kept[last], strict=False):
    parts.append(_section(before, after, first, last))
  path = workdir / FILE
  _replace(path, "\n".join(parts))
  return path


def _section(before, after, first: int, last: int) -> str:
  left = [_title(before, first), "", *_lines(before["answer"])]
  right = [_title(after, last), "", *_lines(after["answer"])]
  height = max(len(left), len(right))
  left += [""] * (height - len(left))
  right += [""] * (height - len(right))
  rows = [
    f"{a.ljust(_COLUMN)} | {b}".rstrip()
    for a, b in zip(left, right, strict=True)
  ]
  fence = "~~~~~~"  # which no answer is likely to hold
  prompt = "\n".join(f"> {line}" for line in before["prompt"].splitlines())
  return "\n".join([prompt, "", fence, *rows, fence, ""])


def _title(shown, step: int) -> str:
  verdict = "right" if shown["right"] else "wrong"
  return f"step {step:,}: {verdict}, {shown['tokens']:,} tokens"


def _lines(answer: str) -> list[str]:
  """An answer in lines of a column; the middle of a long one is left out."""
  if len(answer) > _MOST:
    half, left_out = _MOST // 2, len(answer) - _MOST
    answer = f"{answer[:half]}\n[{left_out:,} characters]\n{answer[-half:]}"
  lines = []
  for line in answer.splitlines():
    printable = "".join(c if c.isprintable() else "\ufffd" for c in line)
    lines += textwrap.wrap(printable, _COLUMN) or [""]
  return lines


def _replace(path: pathlib.Path, text: str) -> None:
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text)
  os.replace(partial, path)
