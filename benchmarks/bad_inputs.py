"""Gives the trainer every bad input there is and notes what it says.

  python -m benchmarks.bad_inputs [--record] [--only=REGEX]

Each case is a real command line in a fresh workdir. It passes if the process
ends with an exit code that is not 0, says why in one line on standard error,
and shows no traceback. Full disks are small tmpfs mounts, which takes root on
Linux; without it these cases are left out. --record writes docs/bad_inputs.md.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags

from benchmarks import report
from dsx.training import checkpoint
from experiments import provenance

_RECORD = flags.DEFINE_bool("record", False, "Write docs/bad_inputs.md.")
_ONLY = flags.DEFINE_string("only", ".", "Cases whose name matches this.")

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "docs" / "bad_inputs.md"
_GIN = "gin_configs/runs/ci.gin"
_LIMIT = 300  # seconds that any one process may take


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a command ended.

  Attributes:
    code: exit code.
    lines: of standard error.
    output: standard output.
    seconds: how long it took.
  """

  code: int
  lines: list[str]
  output: str
  seconds: float


class Place:
  """A folder with a corpus, its prepared data and kept compiled programs."""

  def __init__(self, folder: pathlib.Path):
    """Writes the corpus."""
    self.folder = folder
    self.workdir = folder / "workdir"
    self._corpus(folder / "corpus")
    self.data = f"pipeline.Data.files = ('{folder}/corpus/*.txt',)"

  def _corpus(self, folder: pathlib.Path) -> None:
    folder.mkdir()
    for i in range(40):
      text = f"Document {i} tells of {i * i} experts and a router. " * 40
      (folder / f"{i:02d}.txt").write_text(text)

  def fresh(self) -> None:
    """Removes the workdir."""
    shutil.rmtree(self.workdir, ignore_errors=True)

  def train(self, *more: str, gin: str = _GIN, workdir=None) -> Outcome:
    """Runs the trainer; bindings are arguments without a leading dash."""
    command = [sys.executable, "-m", "experiments.pretrain"]
    command += [f"--gin_file={gin}", f"--workdir={workdir or self.workdir}"]
    bindings = [
      f"pipeline.Data.cache_dir = '{self.folder}/data'",
      self.data,
      "pretraining.Pretraining.sample_tokens = 0",
      *(word for word in more if not word.startswith("--")),
    ]
    command += [f"--gin_bindings={binding}" for binding in bindings]
    command += [word for word in more if word.startswith("--")]
    environment = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    start = time.monotonic()
    done = subprocess.run(
      command,
      cwd=_ROOT,
      env=environment,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=_LIMIT,
      check=False,
    )
    seconds = time.monotonic() - start
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return Outcome(done.returncode, lines, done.stdout, seconds)

  def steps(self, workdir=None) -> list[int]:
    """The complete checkpoints."""
    folder = (workdir or self.workdir) / "checkpoints"
    return checkpoint.Checkpointer(folder).steps()


@contextlib.contextmanager
def tmpfs(folder: pathlib.Path, size: str):
  """Mounts a small file system; root alone may."""
  folder.mkdir(parents=True, exist_ok=True)
  mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
  subprocess.run(mount, check=True, capture_output=True)
  try:
    yield folder
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount(folder: pathlib.Path) -> bool:
  """Whether `tmpfs` works here."""
  try:
    with tmpfs(folder / "probe", "1m"):
      return True
  except (OSError, subprocess.CalledProcessError):
    return False


def trained(place: Place) -> Outcome:
  """Trains to the end, for what is to be damaged afterwards."""
  outcome = place.train()
  if outcome.code:
    raise RuntimeError("\n".join(outcome.lines))
  return outcome


def prepared(place: Place) -> pathlib.Path:
  """The prepared data set of the corpus."""
  found = [
    path
    for path in (place.folder / "data" / "prepared").iterdir()
    if (path / "metadata.json").exists() and not path.name.startswith(".")
  ]
  return found[0]


def bound(*words: str) -> Callable[[Place], Outcome]:
  """A case of bindings or flags alone."""
  return lambda place: place.train(*words)


def unknown_file(place: Place) -> Outcome:
  """A gin file whose name is misspelt."""
  return place.train(gin="gin_configs/runs/v3_tinny.gin")


def not_a_folder(place: Place) -> Outcome:
  """A workdir that is a file."""
  (place.folder / "file").write_text("")
  return place.train(workdir=place.folder / "file")


def below_a_file(place: Place) -> Outcome:
  """A workdir below a file."""
  (place.folder / "file").write_text("")
  return place.train(workdir=place.folder / "file" / "run")


def unwritable(place: Place) -> Outcome:
  """A workdir where nothing can be made."""
  return place.train(workdir="/proc/dsx")


def read_only(place: Place) -> Outcome:
  """A workdir on a disk that cannot be written."""
  with tmpfs(place.folder / "small", "1m") as small:
    remount = ["mount", "-o", "remount,ro", str(small)]
    subprocess.run(remount, check=True)
    return place.train(workdir=small / "run")


def full(place: Place) -> Outcome:
  """A workdir without room for one checkpoint."""
  with tmpfs(place.folder / "small", "512k") as small:
    return place.train(workdir=small / "run")


def filling_up(place: Place) -> Outcome:
  """A disk that is full after a few checkpoints."""
  with tmpfs(place.folder / "small", "4m") as small:
    outcome = place.train(workdir=small / "run")
    return _told(outcome, _recovers(place, small / "run"))


def filled_metrics(place: Place) -> Outcome:
  """A disk that somebody else has filled meanwhile."""
  with tmpfs(place.folder / "small", "24m") as small:
    run = small / "run"
    place.train("--gin.Pretraining.max_skipped_in_a_row=3", workdir=run)
    shutil.rmtree(run / "checkpoints" / str(place.steps(run)[-1]))
    (small / "ballast").write_bytes(b"\0" * (shutil.disk_usage(small).free))
    return _told(place.train(workdir=run), _recovers(place, run))


def _recovers(place: Place, run: pathlib.Path) -> str:
  """Whether the newest complete checkpoint goes on elsewhere."""
  steps = place.steps(run)
  if not steps:
    return "no checkpoint was complete yet"
  place.fresh()
  shutil.copytree(run, place.workdir, symlinks=True)
  outcome = place.train()
  words = f"resumed at step {steps[-1]}"
  good = outcome.code == 0 and words in outcome.output
  return f"{words} on another disk" if good else f"NOT {words}"


def _told(outcome: Outcome, more: str) -> Outcome:
  print(f"    {more}", flush=True)
  return dataclasses.replace(outcome, output=more)


def other_config(place: Place) -> Outcome:
  """The workdir of a run with another width."""
  trained(place)
  return place.train("config.DeepSeekConfig.hidden_size = 48")


def other_text(place: Place) -> Outcome:
  """A resume after the corpus has grown."""
  trained(place)
  with (place.folder / "corpus" / "00.txt").open("a") as stream:
    stream.write("one more line\n")
  return place.train()


def corrupt_record(place: Place) -> Outcome:
  """Flipped bits in the middle of a shard."""
  trained(place)
  shard = prepared(place) / "train-00000.array_record"
  content = bytearray(shard.read_bytes())
  for i in range(len(content) // 3, len(content) // 2, 64):
    content[i] ^= 1
  shard.write_bytes(content)
  place.fresh()
  return place.train()


def truncated_shard(place: Place) -> Outcome:
  """Half a shard."""
  trained(place)
  shard = prepared(place) / "train-00000.array_record"
  os.truncate(shard, shard.stat().st_size // 2)
  place.fresh()
  return place.train()


def empty_corpus(place: Place) -> Outcome:
  """Forty empty files."""
  for path in (place.folder / "corpus").iterdir():
    path.write_text("")
  return place.train()


def short_corpus(place: Place) -> Outcome:
  """Forty files of one letter."""
  for path in (place.folder / "corpus").iterdir():
    path.write_text("a")
  return place.train()


def not_utf8(place: Place) -> Outcome:
  """A file in another encoding."""
  path = place.folder / "corpus" / "07.txt"
  path.write_bytes(b"caf\xe9 au lait")
  return place.train()


def not_json(place: Place) -> Outcome:
  """A line that is no JSON."""
  path = place.folder / "corpus.jsonl"
  path.write_text('{"text": "good"}\n{"text": bad}\n')
  return place.train(
    "pipeline.Data.task = 'jsonl'", f"pipeline.Data.files = ('{path}',)"
  )


def damage(step: pathlib.Path) -> None:
  """Flips a bit of the largest file of a checkpoint."""
  files = [path for path in step.rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 16
  largest.write_bytes(content)


def damaged_newest(place: Place) -> Outcome:
  """A flipped bit in the newest checkpoint."""
  trained(place)
  digest = json.loads((place.workdir / "summary.json").read_text())
  damage(place.workdir / "checkpoints" / str(place.steps()[-1]))
  outcome = place.train()
  again = json.loads((place.workdir / "summary.json").read_text())
  same = digest["state_digest"] == again["state_digest"]
  said = re.search(r"resumed at step [^\n]*", outcome.output)
  return dataclasses.replace(
    outcome,
    output=f"printed: {said and said[0]}; state_digest "
    f"{'the same' if same else 'ANOTHER'} in the end",
  )


def damaged_all(place: Place) -> Outcome:
  """A flipped bit in every checkpoint."""
  trained(place)
  for step in place.steps():
    damage(place.workdir / "checkpoints" / str(step))
  return place.train()


_CASES: dict[str, Callable[[Place], Outcome]] = {
  "misspelt binding": bound("pretraining.Pretraining.log_evry = 5"),
  "misspelt class": bound("pretraining.Pretrainning.log_every = 5"),
  "binding never used": bound("mesh.Mesh.data = 2"),
  "wrong type": bound("pretraining.Pretraining.seed = 'one'"),
  "float for an int": bound("schedules.Schedule.total_tokens = 1e9"),
  "unknown gin file": unknown_file,
  "unknown flag": bound("--workdri=x"),
  "mesh that does not match the devices": bound("mesh.MeshShape.data = 3"),
  "mesh with two -1": bound("mesh.MeshShape.node = -1"),
  "batch not divisible by the micro-batch": bound(
    "pretraining.Pretraining.micro_batch_size = 5"
  ),
  "sequence longer than the positions": bound("SEQUENCE_LENGTH = 4096"),
  "two sequence lengths": bound("pipeline.Data.sequence_length = 16"),
  "rates that rise": bound("schedules.Schedule.final_learning_rate = 1.0"),
  "unknown strategy": bound("sharding.Sharding.strategy = 'zero9'"),
  "some of several processes' flags": bound("--process_id=1"),
  "workdir is a file": not_a_folder,
  "workdir below a file": below_a_file,
  "unwritable workdir": unwritable,
  "workdir on a read-only disk": read_only,
  "full workdir": full,
  "workdir filling up during the run": filling_up,
  "workdir full on resume": filled_metrics,
  "workdir of another config": other_config,
  "workdir of other text": other_text,
  "damaged newest checkpoint": damaged_newest,
  "all checkpoints damaged": damaged_all,
  "corrupt record": corrupt_record,
  "truncated shard": truncated_shard,
  "no file matches": bound("pipeline.Data.files = ('/nowhere/*.txt',)"),
  "empty corpus": empty_corpus,
  "corpus shorter than one sequence": short_corpus,
  "not UTF-8": not_utf8,
  "not JSON": not_json,
  "unknown task": bound("pipeline.Data.task = 'no_such_task'"),
  "unknown vocabulary": bound("pipeline.Data.vocabulary = '/no/bpe.json'"),
  "vocabulary larger than the config": bound(
    "config.DeepSeekConfig.vocab_size = 256"
  ),
  "learning rate that overflows": bound(
    "schedules.Schedule.learning_rate = 1e30",
    "pretraining.Pretraining.max_skipped_in_a_row = 3",
  ),
}
_NEED_MOUNT = (
  "workdir on a read-only disk",
  "full workdir",
  "workdir filling up during the run",
  "workdir full on resume",
)
_GOOD = ("damaged newest checkpoint",)  # it goes on, and says so


def passes(name: str, outcome: Outcome) -> bool:
  """Whether a case ended as it should."""
  if name in _GOOD:
    return outcome.code == 0 and "ANOTHER" not in outcome.output
  told = len(outcome.lines) == 1 and "Traceback" not in outcome.lines[0]
  return outcome.code > 0 and told and "NOT" not in outcome.output


def row(name: str, outcome: Outcome, folder: pathlib.Path) -> list[str]:
  """One line of the table."""
  said = outcome.lines[-1] if outcome.lines else ""
  if name in _GOOD or name in _NEED_MOUNT[2:]:
    said = "; ".join(filter(None, (said, f"({outcome.output})")))
  said = said.replace(str(folder), "DIR").replace(str(_ROOT), "REPOSITORY")
  said = said.replace("|", "\\|").replace("*", "\\*")
  return [name, said, str(outcome.code), f"{outcome.seconds:.0f}"]


def run(names) -> tuple[list[list[str]], list[str]]:
  """Tries every case; returns the rows and the names of those that failed."""
  rows, failed = [], []
  for name in names:
    with tempfile.TemporaryDirectory(prefix="dsx_bad_") as temporary:
      folder = pathlib.Path(temporary)
      compiled = pathlib.Path(tempfile.gettempdir(), f"dsx_bad_{os.getpid()}")
      compiled.mkdir(exist_ok=True)
      (folder / "compiled").symlink_to(compiled)
      outcome = _CASES[name](Place(folder))
      rows.append(row(name, outcome, folder))
    good = passes(name, outcome)
    failed += [] if good else [name]
    print(f"{'ok  ' if good else 'FAIL'} {rows[-1]}", flush=True)
    if not good:
      print("\n".join(outcome.lines[-12:]), flush=True)
  shutil.rmtree(compiled, ignore_errors=True)
  return rows, failed


def main(argv):
  """Tries the cases and prints, or records, the table."""
  if argv[1:]:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  names = [name for name in _CASES if re.search(_ONLY.value, name)]
  with tempfile.TemporaryDirectory() as temporary:
    if not can_mount(pathlib.Path(temporary)):
      print("no mounts here: cases of full disks are left out")
      names = [name for name in names if name not in _NEED_MOUNT]
  rows, failed = run(names)
  header = ["input", "what it printed", "exit code", "seconds"]
  text = report.table(header, rows)
  print(text)
  print(f"{len(rows) - len(failed)} of {len(rows)} as they should be")
  if _RECORD.value:
    versions = provenance.provenance()
    _PAGE.write_text(
      "# Bad inputs\n\nEvery bad input tried on `experiments.pretrain` "
      "with `gin_configs/runs/ci.gin`, what it printed on standard error (one "
      "line, no traceback), and its exit code. `DIR` stands for a temporary "
      "folder, `REPOSITORY` for this one; exit code 2 is a mistake found "
      "before JAX is imported. Seconds are those of a busy machine.\n\n"
      f"`python -m benchmarks.bad_inputs --record`, "
      f"{datetime.date.today().isoformat()}, {report.processor()}, Python "
      f"{versions['python']}, jax {versions['jax']}, commit "
      f"{versions['commit'][:10]}.\n\n{text}\n"
    )
  return 1 if failed else 0


if __name__ == "__main__":
  app.run(main)
