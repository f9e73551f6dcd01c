"""Damages checkpoints and restores them, with the manifest and without it.

  python -m benchmarks.checkpoint_faults [--checkpoints=WORKDIR/checkpoints]

Copies one step, flips single bits of it at random, a fair share in each kind of
file, and restores each copy twice. Then truncates, empties, deletes and links
every file in turn, and fills a disk during a save (a small tmpfs; that part
needs root). Without --checkpoints it saves a made-up state and also reports how
long a save blocks.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import datetime
import logging
import os
import pathlib
import platform
import random
import shutil
import subprocess
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np

from dsx.training import checkpoint
from dsx.training import leaves as leaves_lib
from dsx.training import manifest as manifest_lib
from dsx.training import orbax_store

_CHECKPOINTS = flags.DEFINE_string(
  "checkpoints", None, "A directory of checkpoints; its newest step is copied."
)
_MEGABYTES = flags.DEFINE_integer(
  "megabytes", 30, "Size of the state that is made up without --checkpoints."
)
_FLIPS = flags.DEFINE_integer("flips", 200, "How many single-bit flips to try.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice of bits.")
_APPEND = flags.DEFINE_boolean(
  "append", False, "Whether to append the tables to docs/benchmarks.md."
)


# What a restore can come to, and what the tables call it.
_VERDICTS = {
  "detected": "detected",
  "missed": "missed",
  "refused": "Orbax alone: refused",
  "harmless": "arrays right",
  "wrong": "**arrays wrong**",
}


def kind_of(name: str) -> str:
  """Says what a file of a step is, given its path in it."""
  if name == manifest_lib.NAME:
    return "manifest"
  if name == orbax_store.METADATA:
    return "JSON metadata"
  if not name.startswith("arrays/"):
    return "Orbax, step"
  if name.endswith("manifest.ocdbt"):
    return "OCDBT manifest"
  return "array chunks" if "/d/" in name else "Orbax, arrays"


def made_up_state(megabytes: int) -> dict[str, jax.Array]:
  """A tree of 100 arrays of random numbers, some large and most small."""
  rng = np.random.default_rng(0)
  large = megabytes * 250_000 // 25
  return {
    f"layer_{i}": jax.device_put(
      rng.normal(size=(large // 256, 256) if i % 4 == 0 else (256,)).astype(
        np.float32
      )
    )
    for i in range(100)
  }


def time_saves(directory: pathlib.Path, megabytes: int) -> str:
  """Saves five times and says how long it took, in one line."""
  state = made_up_state(megabytes)
  blocked, total = [], []
  with checkpoint.Checkpointer(directory) as checkpoints:
    for step in range(5):
      start = time.perf_counter()
      checkpoints.save(step, state, {"step": step})
      blocked.append(time.perf_counter() - start)
      checkpoints.wait()
      total.append(time.perf_counter() - start)
    start = time.perf_counter()
    checkpoints.restore(state)
    restored = time.perf_counter() - start
  return (
    f"{sum(leaf.nbytes for leaf in state.values()) / 1e6:.0f} MB in"
    f" {len(state)} arrays, median of 5 saves: blocked"
    f" {sorted(blocked)[2]:.3f} s, complete after {sorted(total)[2]:.3f} s;"
    f" restored and verified in {restored:.3f} s"
  )


class Patient:
  """A copy of a step to be damaged, and the two ways to restore it."""

  def __init__(self, source: pathlib.Path, room: pathlib.Path):
    """Copies the step into `room`."""
    self.step = int(source.name)
    self.path = room / source.name
    shutil.copytree(source, self.path)
    found = manifest_lib.read(self.path)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    self.targets = {
      name: jax.ShapeDtypeStruct(
        leaf.shape, _dtype(leaf.dtype), sharding=device
      )
      for name, leaf in found.leaves.items()
    }
    self._checkpoints = checkpoint.Checkpointer(room)
    self._store = orbax_store.OrbaxStore(60)
    self._right = self._read()
    self.files = [*manifest_lib.list_files(self.path), manifest_lib.NAME]

  def close(self) -> None:
    """Ends Orbax's threads."""
    self._checkpoints.close()
    self._store.close()

  def verdict(self) -> str:
    """'detected' or 'missed': what dsx makes of the step as it is now."""
    target = leaves_lib.nested(self.targets)
    try:
      self._checkpoints.restore(target, step=self.step)
    except checkpoint.CheckpointError:
      return "detected"
    return "missed"

  def orbax_alone(self) -> str:
    """'refused', 'harmless' or 'wrong': what Orbax reads as arrays."""
    try:
      read = self._read()
    except Exception:
      return "refused"
    same = all(
      np.array_equal(_bits(leaf), _bits(self._right[name]))
      for name, leaf in read.items()
    )
    return "harmless" if same else "wrong"

  def _read(self) -> dict[str, jax.Array]:
    plain = {
      name: leaves_lib.plain(leaf) for name, leaf in self.targets.items()
    }
    return self._store.read(self.path, plain, partial=False)

  @contextlib.contextmanager
  def damaged(self, name: str, change: Callable[[pathlib.Path], None]):
    """Changes a file for a while."""
    file = self.path / name
    data = file.read_bytes()
    try:
      change(file)
      yield
    finally:
      file.unlink(missing_ok=True)
      file.write_bytes(data)


def _dtype(name: str):
  if name.startswith("key<"):
    return jax.random.key(0, impl=name[4:-1]).dtype
  return jax.numpy.dtype(name)


def _bits(leaf: jax.Array) -> np.ndarray:
  return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)


def _flip(bit: int) -> Callable[[pathlib.Path], None]:
  def change(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)

  return change


def _truncate(file: pathlib.Path) -> None:
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _link(file: pathlib.Path) -> None:
  step = next(path for path in file.parents if path.name.isdigit())
  outside = step.parent / "outside"
  file.rename(outside)
  file.symlink_to(outside)


def flips(patient: Patient, count: int, rng: random.Random) -> Iterator[str]:
  """Yields the table of flipped bits, a line at a time."""
  by_kind = collections.defaultdict(list)
  for name in sorted(patient.files):
    if (patient.path / name).stat().st_size:
      by_kind[kind_of(name)].append(name)
  yield _row("file", "files", "bytes", "flips", *_VERDICTS.values())
  yield _row(*["---"] * 9)
  sums = collections.Counter()
  kinds = sorted(by_kind)
  tried = collections.Counter(kinds[i % len(kinds)] for i in range(count))
  for kind in kinds:
    sizes = [(patient.path / name).stat().st_size for name in by_kind[kind]]
    found = collections.Counter()
    for _ in range(tried[kind]):
      # Within a kind every bit is as likely as every other.
      [name] = rng.choices(by_kind[kind], sizes)
      bit = rng.randrange(8 * (patient.path / name).stat().st_size)
      with patient.damaged(name, _flip(bit)):
        found.update((patient.verdict(), patient.orbax_alone()))
    sums += found
    counts = [found[verdict] for verdict in _VERDICTS]
    yield _row(kind, len(sizes), sum(sizes), tried[kind], *counts)
  yield _row("all", "", "", count, *(sums[verdict] for verdict in _VERDICTS))


def _row(*cells) -> str:
  return "| " + " | ".join(map(str, cells)) + " |"


def whole_files(patient: Patient) -> Iterator[str]:
  """Yields the table of files cut, emptied, deleted or linked."""
  yield _row("change of each file in turn", "tried", *_VERDICTS.values())
  yield _row(*["---"] * 7)
  changes = {
    "cut in half": _truncate,
    "emptied": lambda file: file.write_bytes(b""),
    "one byte more": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "deleted": pathlib.Path.unlink,
    "a link to the same bytes outside": _link,
  }
  for label, change in changes.items():
    found = collections.Counter()
    for name in patient.files:
      if not (patient.path / name).stat().st_size:
        continue
      with patient.damaged(name, change):
        found.update((patient.verdict(), patient.orbax_alone()))
    tried = found["detected"] + found["missed"]
    yield _row(label, tried, *(found[verdict] for verdict in _VERDICTS))


def full_disk(room: pathlib.Path) -> str:
  """Saves into a tmpfs until it is full, and says what that was like."""
  place = room / "tmpfs"
  place.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    return "full disk: not tried, mounting a tmpfs is not permitted here"
  try:
    with checkpoint.Checkpointer(place / "c", max_to_keep=9) as checkpoints:
      state = made_up_state(8)
      for step in range(9):
        try:
          checkpoints.save(step, state, {})
          checkpoints.wait()
        except checkpoint.CheckpointError as error:
          restored = checkpoints.restore(state)
          free = shutil.disk_usage(place).free // 1e6
          return (
            f"full disk: `{error}`; afterwards step {restored.step} restores,"
            f" {free:.0f} MB are free"
          )
      return "full disk: never full"
  finally:
    subprocess.run(["umount", str(place)], check=True)


def main(argv: list[str]) -> None:
  """Prints the tables."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  logging.getLogger("absl").setLevel(logging.ERROR)
  lines = [
    f"\n## Damaged checkpoints, {datetime.date.today()}",
    f"\n`python -m benchmarks.checkpoint_faults --flips={_FLIPS.value}"
    f" --seed={_SEED.value}`; {os.cpu_count()} x {platform.machine()}, Python"
    f" {platform.python_version()}, jax {jax.__version__}.\n",
  ]
  print("\n".join(lines))

  def say(line: str) -> None:
    lines.append(line)
    print(line, flush=True)

  with tempfile.TemporaryDirectory() as folder:
    room = pathlib.Path(folder)
    source = room / "made_up"
    if _CHECKPOINTS.value is None:
      say(time_saves(source, _MEGABYTES.value) + ".\n")
    else:
      source = pathlib.Path(_CHECKPOINTS.value)
    steps = checkpoint.Checkpointer(source).steps()
    if not steps:
      raise app.UsageError(f"--checkpoints={source}: no complete step there")
    (room / "patient").mkdir()
    patient = Patient(source / str(steps[-1]), room / "patient")
    for line in flips(patient, _FLIPS.value, random.Random(_SEED.value)):
      say(line)
    say("")
    for line in whole_files(patient):
      say(line)
    if patient.verdict() != "missed":
      raise RuntimeError("the undamaged copy does not restore")
    patient.close()
    say("\n" + full_disk(room) + ".")
  if _APPEND.value:
    with open("docs/benchmarks.md", "a") as file:
      file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
  app.run(main)
