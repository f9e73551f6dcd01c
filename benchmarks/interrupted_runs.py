"""What the experiments on interrupted runs share: text, progress, comparison.

Two runs are compared bit for bit; their results go to docs/reliability.md.
"""

from collections.abc import Mapping
import datetime
import json
import pathlib
import platform
import random
import re

from benchmarks import report
from dsx.training import checkpoint
from dsx.training import manifest
from dsx.training import metrics
from experiments import provenance

_PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs/reliability.md"
# What a step's record says of the clock and not of the training.
_CLOCK = {"tokens_per_second", "mfu", "data_wait"}


def corpus(folder: pathlib.Path) -> None:
  """Writes 40 small text files, the same every time."""
  rng = random.Random(0)
  words = (
    "the router sends every token to the experts that know it best".split()
  )
  folder.mkdir()
  for i in range(40):
    text = " ".join(rng.choice(words) for _ in range(600))
    (folder / f"{i:02d}.txt").write_text(text)


def newest_step(workdir: pathlib.Path) -> int:
  """The newest step in the metrics."""
  path = workdir / metrics.FILE_NAME
  if not path.exists():
    return 0
  with path.open("rb") as file:
    file.seek(max(0, path.stat().st_size - 4096))
    found = re.findall(rb'"step":(\d+),', file.read())
  return int(found[-1]) if found else 0


def unfinished(workdir: pathlib.Path) -> bool:
  """Whether a checkpoint is there that is not complete."""
  folder = workdir / "checkpoints"
  if not folder.is_dir():
    return False
  names = [path for path in folder.iterdir() if path.name[0].isdigit()]
  return any(not (path / manifest.NAME).exists() for path in names)


def records(workdir: pathlib.Path) -> list[str]:
  """Every record of the metrics, without the clock."""
  kept = []
  for record in metrics.read(workdir):
    plain = {k: v for k, v in record.items() if k not in _CLOCK}
    kept.append(json.dumps(plain, sort_keys=True))
  return sorted(kept)


def checksums(workdir: pathlib.Path) -> Mapping[str, manifest.Leaf]:
  """Shape, dtype and checksum of every array of the last checkpoint."""
  folder = workdir / "checkpoints"
  step = checkpoint.Checkpointer(folder).steps()[-1]
  return manifest.read(folder / str(step)).leaves


def conditions() -> str:
  """Day, machine, libraries and commit, as the end of a sentence."""
  versions = provenance.provenance()
  libraries = ", ".join(
    f"{name} {versions[name]}"
    for name in ("jax", "orbax-checkpoint", "grain", "numpy")
  )
  return (
    f"{datetime.date.today().isoformat()}, {report.processor()}, "
    f"Python {platform.python_version()}, {libraries}, commit "
    f"{versions['commit'][:10]}."
  )


def record(name: str, text: str) -> None:
  """Replaces the part of docs/reliability.md that a script has written.

  Args:
    name: of the script, in the comments around its part.
    text: Markdown.
  """
  first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
  page = _PAGE.read_text()
  head, _, rest = page.partition(first)
  _, found, tail = rest.partition(last)
  if not found:
    raise ValueError(
      f"{_PAGE}: expected {first} and {last} in it; put them back"
    )
  _PAGE.write_text(f"{head}{first}\n\n{text}\n\n{last}{tail}")
