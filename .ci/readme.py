"""Turns README's commands into the script that `.ci/run` runs.

README's first fenced `sh` block installs dsx and trains README's model, the
second installs what tests need and runs them. CI runs both as they stand, but
for two things: lines that clone the repository and enter it are left out, and
the training command is given further flags, so that it takes a few steps.

  python3 .ci/readme.py README.md --workdir=/tmp/run ... > script

Everything after README's path goes behind the training command.
"""

import re
import shlex
import sys

TRAINING = re.compile(r"\bpython3? -m experiments\.pretrain\b")
TESTS = re.compile(r"\bpytest\b")
LEFT_OUT = re.compile(r"^\s*(git clone|cd)\b")


def blocks(text: str) -> list[list[str]]:
  """The commands of every fenced `sh` block; a continued line is one."""
  fenced = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
  return [
    re.sub(r"\\\n\s*", "", block).strip().splitlines() for block in fenced
  ]


def split(commands: list[str], pattern: re.Pattern) -> int:
  """The place of the only command that matches a pattern."""
  found = [place for place, line in enumerate(commands) if pattern.search(line)]
  if len(found) != 1:
    sys.exit(
      f"README.md: expected one command with {pattern.pattern!r} in\n  "
      + "\n  ".join(commands)
    )
  return found[0]


def script(text: str, flags: list[str]) -> str:
  """A bash script of all stages, each announced by `stage NAME`."""
  found = blocks(text)
  if len(found) < 2:
    sys.exit(f"README.md: expected two sh blocks at least, found {len(found)}")
  first, second = found[:2]
  first = [line for line in first if not LEFT_OUT.match(line)]
  train, test = split(first, TRAINING), split(second, TESTS)
  # Pipes and comments behind the command stay behind it.
  command = re.match(r"[^#|&;]*", first[train]).group()
  rest = first[train][len(command) :]
  training = f"{command.rstrip()} {shlex.join(flags)} {rest}".rstrip()
  return "\n".join(
    [
      "stage install",
      *first[:train],
      "stage training",
      training,
      *first[train + 1 :],
      "stage 'install for tests'",
      *second[:test],
      "stage lint",
      "ruff check .",
      "ruff format --check .",
      "stage types",
      "pyright",
      "stage tests",
      *second[test:],
      "",
    ]
  )


if __name__ == "__main__":
  with open(sys.argv[1], encoding="utf-8") as readme:
    print(script(readme.read(), sys.argv[2:]), end="")
