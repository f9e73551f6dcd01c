"""Kills one of several training processes, again and again.

  python -m benchmarks.kill_peer [--kills=10] [--stops=1] [--record]

Four real processes train v3_tiny on this machine through experiments.launch:
once undisturbed, and once with a process, each time another one, killed with
SIGKILL at a random step, or stopped with SIGSTOP, as a machine that hangs. What
is measured is how long the others take to end and whether each names the one
that is lost; the launcher starts all of them again. In the end both runs are
compared bit for bit. Then one checkpoint is gone on with on 1, 2 and 8 devices.
--record writes the result to docs/reliability.md.
"""

from collections.abc import Iterator
import contextlib
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
from dsx.training import metrics
from dsx.training import step_directory

_KILLS = flags.DEFINE_integer("kills", 10, "How often to kill.")
_STOPS = flags.DEFINE_integer("stops", 1, "How often to stop one instead.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments and of the victims.")
_STEPS = flags.DEFINE_integer("steps", 150, "How long the run is.")
_PROCESSES = flags.DEFINE_integer("processes", 4, "How many train together.")
_RECORD = flags.DEFINE_bool("record", False, "Write docs/reliability.md.")

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_GIN = "gin_configs/runs/v3_tiny.gin"
_EVERY = 10  # steps between checkpoints
_LENGTH, _BATCH = 128, 8
_LIMIT = 600  # seconds that may pass without a new step
_MESHES = (1, 2, 8)  # devices on which the run is gone on with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kill:
  """One process lost.

  Attributes:
    sent: the name of the signal.
    victim: the process's number.
    step: the newest step in the metrics at that moment.
    seconds: until all the others had ended.
    named: how many of the others said which process it was.
    resumed: the checkpoint from which all went on, or None.
  """

  sent: str
  victim: int
  step: int
  seconds: float
  named: int
  resumed: int | None


def bindings(folder: pathlib.Path) -> list[str]:
  """The flags that make v3_tiny short, and its text small."""
  values = [
    "pipeline.Data.task = 'text_files'",
    f"pipeline.Data.files = ('{folder}/corpus/*.txt',)",
    f"pipeline.Data.cache_dir = '{folder}/data'",
    f"SEQUENCE_LENGTH = {_LENGTH}",
    f"schedules.Schedule.total_tokens = {_STEPS.value * _BATCH * _LENGTH}",
    f"pretraining.Pretraining.checkpoint_every = {_EVERY}",
    # The one in the middle is gone on with on other devices.
    "pretraining.Pretraining.keep_checkpoints = 1000",
    "pretraining.Pretraining.log_every = 1",
    "pretraining.Pretraining.evaluate_every = 50",
    "pretraining.Pretraining.final_evaluation_records = 64",
    "pretraining.Pretraining.sample_tokens = 0",
  ]
  return [f"--gin_bindings={value}" for value in values]


def environment(folder: pathlib.Path, **more: str) -> dict[str, str]:
  """Kept compiled programs spare every start the better part of a minute."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    **more,
  }


class Launcher:
  """A launched run; `with` makes sure that it ends, and its processes too."""

  def __init__(self, folder: pathlib.Path, workdir: pathlib.Path):
    """Starts it."""
    self._output = tempfile.NamedTemporaryFile("w+")
    self._step, self._progress = 0, time.monotonic()
    self._workdir = workdir
    self._process = subprocess.Popen(
      [
        *(sys.executable, "-m", "experiments.launch"),
        *(f"--gin_file={_GIN}", *bindings(folder), f"--workdir={workdir}"),
        *(f"--nodes={_PROCESSES.value}", "--devices_per_node=1"),
        f"--max_restarts={_KILLS.value + _STOPS.value}",
      ],
      cwd=_ROOT,
      env=environment(folder),
      stdin=subprocess.DEVNULL,
      stdout=self._output,
      stderr=subprocess.STDOUT,
    )

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    if self._process.poll() is None:
      self._process.kill()  # its processes die with it
      self._process.wait()
    self._output.close()

  def step(self) -> int:
    """The newest step; raises TimeoutError if there has been none for long."""
    step, now = interrupted_runs.newest_step(self._workdir), time.monotonic()
    if step != self._step:
      self._step, self._progress = step, now
    if now - self._progress > _LIMIT:
      raise TimeoutError(f"no step for {_LIMIT} s:\n{self.output()}")
    return step

  def running(self) -> bool:
    """Whether it runs still."""
    return self._process.poll() is None

  def finish(self) -> None:
    """Waits for a good end."""
    while self.running():
      self.step()
      time.sleep(0.1)
    if self._process.returncode:
      raise RuntimeError(
        f"ended with {self._process.returncode}:\n{self.output()}"
      )

  def members(self) -> dict[int, int]:
    """Process ids of the training processes, by number."""
    pid, found = self._process.pid, {}
    # One of them may end while it is looked at.
    with contextlib.suppress(OSError):
      children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
      for child in children.split():
        line = pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
        number = re.search(rb"\0--process_id=(\d+)\0", line)
        if number:
          found[int(number[1])] = int(child)
    return found

  def output(self) -> str:
    """What it and its processes have printed."""
    return pathlib.Path(self._output.name).read_text(errors="replace")


def lose_one(launcher: Launcher, target: int, sent: str, victim: int) -> Kill:
  """Kills or stops a process at a step; waits until all go on.

  Args:
    launcher: of the run.
    target: the step at which, or after which.
    sent: the signal's name.
    victim: the number of the process.
  """
  old = launcher.step()
  while launcher.running():
    # After a restart the records past the checkpoint are dropped: a new step
    # says that all processes train again.
    step = launcher.step()
    members = launcher.members()
    if step != old and step >= target and len(members) == _PROCESSES.value:
      break
    time.sleep(0.005)
  else:
    launcher.finish()
    raise RuntimeError("the run ended before all kills; give more --steps")
  pid = members[victim]
  said = len(launcher.output())
  began = time.monotonic()
  os.kill(pid, getattr(signal, sent))
  others = [other for number, other in members.items() if number != victim]
  while any(_alive(other) for other in others):
    if time.monotonic() - began > _LIMIT:
      raise TimeoutError(f"the others did not end:\n{launcher.output()}")
    time.sleep(0.01)
  seconds = time.monotonic() - began
  while not (again := _restart(launcher.output()[said:])):
    if time.monotonic() - began > _LIMIT or not launcher.running():
      raise RuntimeError(f"not started again:\n{launcher.output()}")
    time.sleep(0.05)
  text = launcher.output()[said:]
  naming = re.findall(
    rf"^\[(\d+)\] process {victim} on \S+ \(pid {pid}\) is lost: ", text, re.M
  )
  resumed = again["step"]
  return Kill(
    sent=sent,
    victim=victim,
    step=step,
    seconds=seconds,
    named=len(set(naming) - {str(victim)}),
    resumed=None if resumed is None else int(resumed.replace(",", "")),
  )


def _restart(text: str) -> re.Match[str] | None:
  """Where the launcher says that it starts again."""
  return re.search(
    r"^launcher: starting again, from (the beginning|step (?P<step>[\d,]+)) \(",
    text,
    re.M,
  )


def _alive(pid: int) -> bool:
  """Whether a process runs, and is not one that ended and is not reaped."""
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
  except OSError:
    return False
  return state.split()[0] not in "ZX"


def lose_many(folder: pathlib.Path, workdir: pathlib.Path) -> Iterator[Kill]:
  """Launches the run and disturbs it until it ends."""
  rng = random.Random(_SEED.value)
  count = _KILLS.value + _STOPS.value
  last = _STEPS.value - 2 * _EVERY
  targets = sorted(rng.sample(range(1, last), count))
  signals = ["SIGKILL"] * _KILLS.value + ["SIGSTOP"] * _STOPS.value
  rng.shuffle(signals)
  # Everybody in turn, process 0, which the others meet at, too.
  victims = [i % _PROCESSES.value for i in range(count)]
  rng.shuffle(victims)
  with Launcher(folder, workdir) as launcher:
    for what in zip(targets, signals, victims, strict=True):
      yield lose_one(launcher, *what)
    launcher.finish()


def go_on(folder: pathlib.Path, calm: pathlib.Path, devices: int):
  """Goes on with the undisturbed run's middle checkpoint in one process.

  Returns:
    (digests of batches by step, largest relative difference of a loss).
  """
  workdir = folder / f"on_{devices}"
  shutil.copytree(calm, workdir)
  steps = step_directory.StepDirectory(workdir / "checkpoints")
  middle = steps.complete()[len(steps.complete()) // 2]
  for step in steps.complete():
    if step > middle:
      steps.remove(step)
  before = losses(calm)
  count = f"--xla_force_host_platform_device_count={devices}"
  subprocess.run(
    [
      *(sys.executable, "-m", "benchmarks.recorded_pretrain"),
      *(f"--gin_file={_GIN}", *bindings(folder), f"--workdir={workdir}"),
    ],
    cwd=_ROOT,
    env=environment(folder, XLA_FLAGS=count),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    timeout=_LIMIT,
    check=True,
  )
  lines = (workdir / "batches.jsonl").read_text().splitlines()
  batches = {(r := json.loads(line))["step"]: r["sha256"] for line in lines}
  now = losses(workdir)
  worst = max(abs(now[i] / before[i] - 1) for i in now if i > middle)
  return batches, worst


def losses(workdir: pathlib.Path) -> dict[int, float]:
  """Training losses by step."""
  records = metrics.read(workdir)
  return {r["step"]: r["loss"] for r in records if r["kind"] == "train"}


def compare(calm: pathlib.Path, disturbed: pathlib.Path):
  """Rows (what, how many, whether equal) of the comparison."""
  digests = [
    json.loads((workdir / "summary.json").read_text())["state_digest"]
    for workdir in (calm, disturbed)
  ]
  yield "`state_digest`", digests[0][:16], digests[0] == digests[1]
  arrays = interrupted_runs.checksums(calm)
  equal = arrays == interrupted_runs.checksums(disturbed)
  yield "last checkpoints", f"{len(arrays)} arrays", equal
  ours, theirs = map(interrupted_runs.records, (calm, disturbed))
  yield "metrics, exact", f"{len(ours)} records", ours == theirs


def render(kills: list[Kill], rows, resumed, seconds: float) -> str:
  """The three tables, with what they were made with."""
  others = _PROCESSES.value - 1
  lost = report.table(
    [
      *("", "signal", "process", "at step", "others ended after"),
      *("who named it", "all went on from"),
    ],
    [
      [
        *(str(i), kill.sent, str(kill.victim), str(kill.step)),
        *(f"{kill.seconds:.1f} s", f"{kill.named} of {others}"),
        "the beginning" if kill.resumed is None else f"step {kill.resumed}",
      ]
      for i, kill in enumerate(kills, 1)
    ],
  )
  equal = report.table(
    ["compared with the undisturbed run", "", "bit-identical"],
    [[*map(str, row[:2]), "yes" if row[2] else "**no**"] for row in rows],
  )
  first = resumed[_MESHES[0]][0]
  meshes = report.table(
    ["devices", "steps taken", "same batches", "largest difference of a loss"],
    [
      [
        str(devices),
        f"{min(batches)} to {max(batches)}",
        "yes" if batches == first else "**no**",
        f"{worst:.1e}",
      ]
      for devices, (batches, worst) in resumed.items()
    ],
  )
  return "\n\n".join(
    [
      lost,
      equal,
      "The middle checkpoint of the undisturbed run, gone on with in one "
      f"process. Losses against those of the {_PROCESSES.value} processes:",
      meshes,
      f"{_STEPS.value} steps, a checkpoint every {_EVERY}, {seconds:.0f} s in "
      f"all. {interrupted_runs.conditions()}",
      f"    python -m benchmarks.kill_peer --kills={_KILLS.value} "
      f"--stops={_STOPS.value} --seed={_SEED.value} --steps={_STEPS.value}",
    ]
  )


def main(argv):
  """Runs the experiment and prints, or records, its tables."""
  if argv[1:]:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  folder = pathlib.Path(tempfile.mkdtemp(prefix="dsx_peer_"))
  calm, disturbed = folder / "calm", folder / "disturbed"
  start = time.monotonic()
  kills = []
  try:
    interrupted_runs.corpus(folder / "corpus")
    with Launcher(folder, calm) as launcher:
      launcher.finish()
    print(f"undisturbed: {time.monotonic() - start:.0f} s", flush=True)
    for kill in lose_many(folder, disturbed):
      kills.append(kill)
      print(f"{len(kills)}: {kill}", flush=True)
    rows = list(compare(calm, disturbed))
    resumed = {devices: go_on(folder, calm, devices) for devices in _MESHES}
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  text = render(kills, rows, resumed, time.monotonic() - start)
  print(text)
  if _RECORD.value:
    interrupted_runs.record("kill_peer", text)
  everybody = all(kill.named == _PROCESSES.value - 1 for kill in kills)
  return 0 if everybody and all(equal for _, _, equal in rows) else 1


if __name__ == "__main__":
  app.run(main)
