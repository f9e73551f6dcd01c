"""The trials of a sweep: their bindings, their folders, and how far they are.

A trial's folder bears a name made of what the trial binds. So it is found
again whatever other trials the sweep has by then.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import re
from typing import Any

from experiments import preflight
from experiments.bindings import problems
from experiments.bindings import sources
from experiments.sweeping import space

FOLDER = "trials"
LOG = "log.txt"
_DESCRIPTION = "trial.json"
_ENDED = "ended.json"
_LOCK = "lock"
_LONGEST_NAME = 80
MOST = 10_000


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of a sweep.

  Attributes:
    choices: what it binds.
    seed: of the run, or None.
  """

  choices: tuple[space.Choice, ...]
  seed: int | None = None

  @property
  def bindings(self) -> list[str]:
    """Its gin bindings."""
    return [choice.binding for choice in self.choices]

  @property
  def digest(self) -> str:
    """Eight characters that stand for what it binds."""
    content = json.dumps([sorted(self.bindings), self.seed])
    return hashlib.sha256(content.encode()).hexdigest()[:8]

  @property
  def name(self) -> str:
    """A name for a folder, which a person can tell from the others."""
    words = [f"{short(c.key)}={c.text}" for c in self.choices]
    words += [] if self.seed is None else [f"seed={self.seed}"]
    safe = re.sub(r"[^A-Za-z0-9_.=-]+", "-", ",".join(words), flags=re.ASCII)
    return f"{safe[:_LONGEST_NAME].strip('-.')}-{self.digest}".lstrip("-")

  def label(self) -> str:
    """What it binds, in one line."""
    words = [f"{short(c.key)}={c.text}" for c in self.choices]
    words += [] if self.seed is None else [f"seed={self.seed}"]
    return problems.printable(" ".join(words) or "the run as it is")


def short(key: str) -> str:
  """The field of a key.

  >>> short("schedules.Schedule.learning_rate")
  'learning_rate'
  """
  return key.rpartition(".")[-1]


def trials(
  grids: Sequence[Sequence[space.Choice]],
  draws: Sequence[space.Draw],
  *,
  count: int = 1,
  draw_seed: int = 0,
  seeds: Sequence[int | None] = (None,),
) -> list[Trial]:
  """Every combination of the grids, with every draw, with every seed.

  Args:
    grids: values of each axis.
    draws: what is drawn; each point of the grid gets the same draws.
    count: draws.
    draw_seed: of the draws.
    seeds: of the runs.

  Raises:
    problems.Refused: something is varied twice, or there are too many.
  """
  keys = [row[0].key for row in grids] + [draw.key for draw in draws]
  places = [row[0].place for row in grids] + [draw.place for draw in draws]
  for position, key in enumerate(keys):
    if key in keys[:position]:
      message = f"{key} is varied twice; leave one out"
      raise problems.Refused([problems.Problem(places[position], message)])
  total = len(seeds) * count
  for row in grids:
    total *= len(row)
  if total > MOST:
    message = f"{total} trials: expected at most {MOST}; vary less"
    raise problems.Refused([problems.Problem(places[0], message)])
  found = [
    Trial((*point, *(draw.at(draw_seed, number) for draw in draws)), seed)
    for point in itertools.product(*grids)
    for number in range(count)
    for seed in seeds
  ]
  return list(dict.fromkeys(found))  # a draw from few values may come again


def check(
  found: Sequence[Trial],
  files: Sequence[str],
  bindings: Sequence[str],
  *,
  target: str,
) -> dict[str, str]:
  """Checks every trial as it will be run, before any of them is.

  Returns:
    A digest of all that is bound, by name of the trial.

  Raises:
    problems.Refused: some trial binds something wrong.
  """
  index = sources.Sources(preflight.PACKAGES)
  wrong: list[problems.Problem] = []
  digests = {}
  for trial in found:
    try:
      program = preflight.check(
        files,
        [*bindings, *trial.bindings],
        target=target,
        seed=trial.seed,
        index=index,
      )
    except problems.Refused as error:
      wrong += [_placed(p, trial, len(bindings)) for p in error.problems]
      continue
    lines = program.text([target]).splitlines()
    bound = sorted(line.rpartition("  # ")[0] or line for line in lines)
    content = "\n".join(bound)
    digests[trial.name] = hashlib.sha256(content.encode()).hexdigest()
  if wrong:
    raise problems.Refused(wrong)
  return digests


def _placed(problem, trial: Trial, before: int) -> problems.Problem:
  """The problem, with the place that the person wrote."""
  own = problem.place.line - before - 1
  if problem.place.file != "--gin_bindings" or own < 0:
    return problem
  return problems.Problem(trial.choices[own].place, problem.message)


class Record:
  """What a trial has left in its folder.

  Attributes:
    folder: its workdir.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def summary(self) -> dict[str, Any]:
    """The run's summary; empty before it ends."""
    return _json(self.folder / "summary.json")

  @property
  def finished(self) -> bool:
    """Whether the run came to the end of its schedule."""
    # One that was asked to stop leaves a summary without this.
    return bool(self.summary().get("state_digest"))

  def status(self) -> str:
    """finished, running, failed (with its code), stopped or waiting."""
    if self.finished:
      return "finished"
    if not self.folder.is_dir():
      return "waiting"
    with self.lock() as mine:
      if not mine:
        return "running"
    ended = _json(self.folder / _ENDED)
    if ended.get("code"):
      return f"failed ({ended['code']})"
    return "stopped" if (self.folder / "metrics.jsonl").exists() else "waiting"

  def is_of(self, digest: str) -> bool:
    """Whether what was begun here, if anything, bound the same."""
    return _json(self.folder / _DESCRIPTION).get("bound", digest) == digest

  def claim(self, trial: Trial, digest: str) -> None:
    """Makes the folder, and writes down whose it is."""
    self.folder.mkdir(parents=True, exist_ok=True)
    description = {
      "bindings": trial.bindings,
      "seed": trial.seed,
      "bound": digest,
    }
    path = self.folder / _DESCRIPTION
    path.write_text(json.dumps(description, indent=1) + "\n")

  def ended(self, code: int) -> None:
    """Writes down the exit code of the last attempt."""
    (self.folder / _ENDED).write_text(json.dumps({"code": code}) + "\n")

  @contextlib.contextmanager
  def lock(self) -> Iterator[int | None]:
    """Gives a file descriptor that holds the trial, or None if it is held.

    Whoever inherits the descriptor holds it too: a trial whose sweep was
    killed keeps its folder until it ends.
    """
    descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        yield None
        return
      except OSError:
        pass  # a file system without locks
      yield descriptor
    finally:
      os.close(descriptor)

  def last_line(self) -> str:
    """What the last attempt said last."""
    try:
      text = (self.folder / LOG).read_bytes()[-4096:].decode(errors="replace")
    except OSError:
      return ""
    lines = [line for line in text.splitlines() if line.strip()]
    return problems.printable(lines[-1]) if lines else ""


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
