"""What a rendered job does: run with schedulers that only write things down."""

import os
import pathlib
import subprocess
from typing import Any

from hypothesis import strategies as st

from experiments.launching import job as job_lib

# What has meaning to bash, sbatch, YAML, Kubernetes, xpk or a terminal.
_TRICKS = [
  "",
  " ",
  "'",
  '"',
  "\\",
  "$(id)",
  "`id`",
  "$(DSX_PROCESS)",
  "$$(HOME)",
  "$$$",
  "${PATH}",
  "{args}",
  "%s",
  "!!",
  "a\n#SBATCH --wrap=id\nb",
  "'\n'; id; '",
  '"\n  - evil: true\n#',
  "--- # x",
  "- a",
  "a: b",
  "&a *a",
  "!!python/object/apply:os.system [id]",
  "1e3",
  "0x1F",
  "0o17",
  "1_000",
  "null",
  "~",
  "yes",
  "2001-01-01",
  "\t",
  "\r\n",
  "\x1b[2J",
  "\x7f\x85\u2028\ufeff\ufffe",
  "é\U0001f600",
  "*",
  "~root",
  "#",
  "-",
  "--",
  "\x01",
  "x) & (id",
  "EOF",
]
TEXTS = st.one_of(
  st.sampled_from(_TRICKS),
  st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    max_size=40,
  ),
  st.lists(st.sampled_from(_TRICKS), max_size=4).map("".join),
)
FOLDERS = TEXTS.map(lambda t: t.replace("/", "_")[:30]).filter(
  lambda t: t not in ("", ".", "..")
)
# Among them those that the scripts use themselves.
_NAMES = "after before code command first list most name queue restarts where"
VARIABLES = st.dictionaries(
  st.one_of(
    st.from_regex(r"DSX_V[A-Z0-9_]{1,9}", fullmatch=True),
    st.sampled_from(_NAMES.split()),
  ),
  TEXTS,
  max_size=4,
)

_WRITE_DOWN = """\
#!/bin/bash
# Writes its arguments, folder and variables, and ends as the file says.
out=$(mktemp "$RECORDS/XXXXXXXX")
printf '%s\\0' "$PWD" "$@" > "$out"
env -0 > "$out.env"
echo "$out" >> "$RECORDS/order"
"""


def job(**changes: Any) -> job_lib.Job:
  """A job of two machines with `changes`."""
  fields: dict[str, Any] = {
    "name": "v3-small",
    "program": ("python", "-m", "experiments.pretrain"),
    "arguments": (),
    "workdir": "/shared/runs/v3_small",
    "folder": "/",
    "nodes": 2,
    "max_restarts": 0,
  }
  return job_lib.Job(**{**fields, **changes})


class Machine:
  """A folder of programs that write down how they are called."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.programs = folder / "programs"
    self.records = folder / "records"
    self.programs.mkdir()
    self.records.mkdir()

  def program(self, name: str, then: str = "") -> None:
    """Makes a program that writes itself down and then does `then`."""
    path = self.programs / name
    path.write_text(_WRITE_DOWN + then)
    path.chmod(0o755)

  def bash(self, *words: str) -> subprocess.CompletedProcess:
    """Runs bash with these programs first in its path."""
    for record in self.records.iterdir():
      record.unlink()
    return subprocess.run(
      ["/bin/bash", *words],
      env={
        "PATH": f"{self.programs}{os.pathsep}/usr/bin:/bin",
        "RECORDS": str(self.records),
        "LC_ALL": "C.UTF-8",
      },
      cwd=self.folder,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      check=False,
    )

  def script(self, text: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a script, after bash has found its syntax right."""
    path = self.folder / "script.sh"
    path.write_text(text, encoding="utf-8", newline="")
    syntax = self.bash("-n", str(path))
    assert syntax.returncode == 0, syntax.stderr
    return self.bash(str(path), *arguments)

  def calls(self) -> list[tuple[str, list[str], dict[str, str]]]:
    """Folder, arguments and variables of every call, in order."""
    order = self.records / "order"
    found = []
    for name in order.read_text().split() if order.exists() else ():
      folder, *words = pathlib.Path(name).read_bytes().decode().split("\0")[:-1]
      pairs = pathlib.Path(f"{name}.env").read_bytes().decode().split("\0")[:-1]
      found.append((folder, words, dict(p.split("=", 1) for p in pairs)))
    return found


def expanded(text: str, variables: dict[str, str]) -> str:
  """What Kubernetes makes of a container's command or variable.

  $(NAME) becomes the variable's value, or stays where there is none; $$ becomes
  $; any other $ stays.
  """
  out, rest = "", text
  while rest:
    if rest.startswith("$$"):
      out, rest = out + "$", rest[2:]
    elif rest.startswith("$(") and ")" in rest:
      name, _, rest = rest[2:].partition(")")
      out += variables.get(name, f"$({name})")
    else:
      out, rest = out + rest[0], rest[1:]
  return out
