"""Kills a training run again and again, and asks what it lost.

  python -m benchmarks.kill_resume [--kills=20] [--record]

Trains a small DeepSeek-V3 once undisturbed, and once killed with SIGKILL at
random steps, every other time while a checkpoint is being written. After each
kill the same command is typed again. In the end both runs are compared bit for
bit: parameters, optimizer state, router biases, average of parameters and keys
by the checksums of their last checkpoints, every loss and every batch step by
step, those that were done again included. --record writes the result to
docs/reliability.md.
"""

import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags

from benchmarks import interrupted_runs
from benchmarks import report
from dsx.training import checkpoint

_KILLS = flags.DEFINE_integer("kills", 20, "How often to kill.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments of the kills.")
_STEPS = flags.DEFINE_integer("steps", 2000, "About how long the run is.")
_RECORD = flags.DEFINE_bool("record", False, "Write docs/reliability.md.")

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_GIN = "gin_configs/runs/ci.gin"
_EVERY = 100  # steps between checkpoints
_LIMIT = 300  # seconds that any one process may take


@dataclasses.dataclass(frozen=True)
class Kill:
  """One kill.

  Attributes:
    aimed_at_save: whether it waited for a save to be under way.
    step: the newest step in the metrics when the process was dead.
    saving: whether a checkpoint was left unfinished on the disk.
    complete: the newest complete checkpoint, or None.
    began: what the killed process had said of where it began.
  """

  aimed_at_save: bool
  step: int
  saving: bool
  complete: int | None
  began: str


def command(folder: pathlib.Path, workdir: pathlib.Path) -> list[str]:
  """The training command; resuming takes the same one."""
  bindings = [
    f"pipeline.Data.files = ('{folder}/corpus/*.txt',)",
    f"pipeline.Data.cache_dir = '{folder}/data'",
    # Batches of 16 after the ramp, sequences of 32.
    f"schedules.Schedule.total_tokens = {_STEPS.value * 16 * 32}",
    "schedules.Schedule.batch_ramp_tokens = 469_000_000_000",
    f"pretraining.Pretraining.checkpoint_every = {_EVERY}",
    "pretraining.Pretraining.evaluate_every = 250",
    "pretraining.Pretraining.sample_tokens = 0",
  ]
  start = [sys.executable, "-m", "benchmarks.recorded_pretrain"]
  start += [f"--gin_file={_GIN}", f"--workdir={workdir}"]
  return start + [f"--gin_bindings={binding}" for binding in bindings]


class Process:
  """A training process; `with` makes sure that it ends."""

  def __init__(self, folder: pathlib.Path, workdir: pathlib.Path):
    """Starts it."""
    self._output = tempfile.TemporaryFile("w+")
    # Kept compiled programs spare every restart the better part of a minute.
    environment = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    self._process = subprocess.Popen(
      command(folder, workdir),
      cwd=_ROOT,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=self._output,
      stderr=subprocess.STDOUT,
    )
    self._deadline = time.monotonic() + _LIMIT

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    if self._process.poll() is None:
      self.kill()
    self._output.close()

  def running(self) -> bool:
    """Whether it runs still; raises TimeoutError if for too long."""
    if time.monotonic() > self._deadline:
      raise TimeoutError(f"no end after {_LIMIT} s:\n{self.output()}")
    return self._process.poll() is None

  def kill(self) -> None:
    """Ends it as a power cut would."""
    os.kill(self._process.pid, signal.SIGKILL)
    self._process.wait()

  def finish(self) -> None:
    """Waits for a good end."""
    while self.running():
      time.sleep(0.05)
    if self._process.returncode:
      raise RuntimeError(
        f"ended with {self._process.returncode}:\n{self.output()}"
      )

  def output(self) -> str:
    """What it has printed."""
    self._output.seek(0)
    return self._output.read()


def kill_once(folder, workdir, target: int, aim: bool, rng) -> Kill | None:
  """Starts or resumes the run and kills it at or after a step.

  Returns:
    The kill; None if the run came to its end first.
  """
  before = interrupted_runs.newest_step(workdir)
  with Process(folder, workdir) as process:
    started = False
    while process.running():
      step = interrupted_runs.newest_step(workdir)
      # A resume first drops records past its checkpoint; it may redo `target`.
      started = started or (step != before or before == 0) and step > 0
      if (
        started
        and step >= target
        and (not aim or interrupted_runs.unfinished(workdir))
      ):
        time.sleep(rng.uniform(0, 0.25 if aim else 0.05))
        break
      time.sleep(0.001)
    else:
      process.finish()
      return None
    process.kill()
    said = process.output()
  found = re.search(r"(from scratch|resumed at step [^\n]*)", said)
  complete = checkpoint.Checkpointer(workdir / "checkpoints").steps()
  return Kill(
    aimed_at_save=aim,
    step=interrupted_runs.newest_step(workdir),
    saving=interrupted_runs.unfinished(workdir),
    complete=complete[-1] if complete else None,
    began=found[1] if found else "not told yet",
  )


def batches(workdir: pathlib.Path) -> dict[int, set[str]]:
  """Digests of the batches by step; one each, if all went well."""
  found = collections.defaultdict(set)
  for line in (workdir / "batches.jsonl").read_text().splitlines():
    # A kill may leave half a line, and the next one right behind it.
    for step, digest in re.findall(
      r'\{"step": (\d+), "sha256": "([0-9a-f]{64})"\}', line
    ):
      found[int(step)].add(digest)
  return found


def compare(calm: pathlib.Path, killed: pathlib.Path):
  """Rows (what, how many, whether equal) of the comparison."""
  summaries = [
    json.loads((w / "summary.json").read_text()) for w in (calm, killed)
  ]
  digests = [summary["state_digest"] for summary in summaries]
  leaves = interrupted_runs.checksums(calm)
  once, again = batches(calm), batches(killed)
  yield "`state_digest`", digests[0][:16], digests[0] == digests[1]
  arrays = f"{len(leaves)} arrays"
  yield (
    "last checkpoints (average and keys too)",
    arrays,
    leaves == interrupted_runs.checksums(killed),
  )
  calm_records, killed_records = (
    interrupted_runs.records(calm),
    interrupted_runs.records(killed),
  )
  kept = f"{len(calm_records)} records"
  yield "metrics, exact", kept, calm_records == killed_records
  yield "batches, redone ones too", f"{len(once)} steps", once == again


def experiment(folder: pathlib.Path, kills: int, seed: int):
  """Runs all of it.

  Returns:
    (kills, rows of `compare`, steps of the run).
  """
  rng = random.Random(seed)
  interrupted_runs.corpus(folder / "corpus")
  calm, killed = folder / "calm", folder / "killed"
  with Process(folder, calm) as process:
    process.finish()
  steps = json.loads((calm / "summary.json").read_text())["steps"]
  print(f"undisturbed: {steps} steps", flush=True)
  done: list[Kill] = []
  for i, target in enumerate(
    sorted(rng.sample(range(1, steps - _EVERY), kills))
  ):
    kill = kill_once(folder, killed, target, aim=i % 2 == 1, rng=rng)
    if kill is None:
      raise RuntimeError(
        f"the run ended before kill {i + 1}; give more --steps"
      )
    done.append(kill)
    print(f"kill {i + 1}: {kill}", flush=True)
  with Process(folder, killed) as process:
    process.finish()
  return done, list(compare(calm, killed)), steps


def render(kills: list[Kill], rows, steps: int, seconds: float) -> str:
  """Both tables, with what they were made with."""
  saving = sum(kill.saving for kill in kills)
  lines = [
    report.table(
      ["kill", "began", "killed after step", "save under way", "complete"],
      [
        [
          str(i),
          kill.began,
          str(kill.step),
          "yes" if kill.saving else "no",
          "none" if kill.complete is None else f"step {kill.complete}",
        ]
        for i, kill in enumerate(kills, 1)
      ],
    ),
    report.table(
      ["compared with the undisturbed run", "", "bit-identical"],
      [[*map(str, row[:2]), "yes" if row[2] else "**no**"] for row in rows],
    ),
    f"{len(kills)} kills over {steps} steps, {saving} with an unfinished "
    f"checkpoint on the disk, in {seconds:.0f} s. A checkpoint every {_EVERY} "
    f"steps. {interrupted_runs.conditions()}",
    f"    python -m benchmarks.kill_resume --kills={len(kills)} "
    f"--seed={_SEED.value} --steps={_STEPS.value}",
  ]
  return "\n\n".join(lines)


def main(argv):
  """Runs the experiment and prints, or records, its tables."""
  if argv[1:]:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  folder = pathlib.Path(tempfile.mkdtemp(prefix="dsx_kill_"))
  try:
    start = time.monotonic()
    kills, rows, steps = experiment(folder, _KILLS.value, _SEED.value)
    seconds = time.monotonic() - start
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  text = render(kills, rows, steps, seconds)
  print(text)
  if _RECORD.value:
    interrupted_runs.record("kill_resume", text)
  return 0 if all(equal for _, _, equal in rows) else 1


if __name__ == "__main__":
  app.run(main)
