"""Gives the trainer every bad input there is and notes what it says.

  python -m benchmarks.bad_inputs [--record] [--only=REGEX]

Each case is a real command line in a fresh workdir. It passes if the process
ends with an exit code that is not 0, says why in one line on standard error,
and shows no traceback. Full disks are small tmpfs mounts, which takes root on
Linux; without it these cases are left out. --record writes the section
"Training" of docs/bad_inputs.md.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import re
import shutil

from absl import app
from absl import flags

from benchmarks import bad_input_cases as cases
from benchmarks import report
from dsx.training import checkpoint

_RECORD = flags.DEFINE_bool("record", False, "Write docs/bad_inputs.md.")
_ONLY = flags.DEFINE_string("only", ".", "Cases whose name matches this.")

_GIN = "gin_configs/runs/ci.gin"


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

  def train(self, *more: str, gin: str = _GIN, workdir=None) -> cases.Outcome:
    """Runs the trainer; bindings are arguments without a leading dash."""
    arguments = [f"--gin_file={gin}", f"--workdir={workdir or self.workdir}"]
    bindings = [
      f"pipeline.Data.cache_dir = '{self.folder}/data'",
      self.data,
      "pretraining.Pretraining.sample_tokens = 0",
      *(word for word in more if not word.startswith("--")),
    ]
    arguments += [f"--gin_bindings={binding}" for binding in bindings]
    arguments += [word for word in more if word.startswith("--")]
    return cases.call("pretrain", arguments, compiled=self.folder / "compiled")

  def steps(self, workdir=None) -> list[int]:
    """The complete checkpoints."""
    folder = (workdir or self.workdir) / "checkpoints"
    return checkpoint.Checkpointer(folder).steps()


def trained(place: Place) -> cases.Outcome:
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


def bound(*words: str) -> Callable[[Place], cases.Outcome]:
  """A case of bindings or flags alone."""
  return lambda place: place.train(*words)


def unknown_file(place: Place) -> cases.Outcome:
  """A gin file whose name is misspelt."""
  return place.train(gin="gin_configs/runs/v3_tinny.gin")


def not_a_folder(place: Place) -> cases.Outcome:
  """A workdir that is a file."""
  (place.folder / "file").write_text("")
  return place.train(workdir=place.folder / "file")


def below_a_file(place: Place) -> cases.Outcome:
  """A workdir below a file."""
  (place.folder / "file").write_text("")
  return place.train(workdir=place.folder / "file" / "run")


def unwritable(place: Place) -> cases.Outcome:
  """A workdir where nothing can be made."""
  return place.train(workdir="/proc/dsx")


def read_only(place: Place) -> cases.Outcome:
  """A workdir on a disk that cannot be written."""
  with cases.tmpfs(place.folder / "small", "1m") as small:
    cases.make_read_only(small)
    return place.train(workdir=small / "run")


def full(place: Place) -> cases.Outcome:
  """A workdir without room for one checkpoint."""
  with cases.tmpfs(place.folder / "small", "512k") as small:
    return place.train(workdir=small / "run")


def filling_up(place: Place) -> cases.Outcome:
  """A disk that is full after a few checkpoints."""
  with cases.tmpfs(place.folder / "small", "4m") as small:
    outcome = place.train(workdir=small / "run")
    return _told(outcome, _recovers(place, small / "run"))


def filled_metrics(place: Place) -> cases.Outcome:
  """A disk that somebody else has filled meanwhile."""
  with cases.tmpfs(place.folder / "small", "24m") as small:
    run = small / "run"
    place.train("--gin.Pretraining.max_skipped_in_a_row=3", workdir=run)
    shutil.rmtree(run / "checkpoints" / str(place.steps(run)[-1]))
    cases.fill(small)
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


def _told(outcome: cases.Outcome, more: str) -> cases.Outcome:
  print(f"    {more}", flush=True)
  return dataclasses.replace(outcome, output=more)


def other_config(place: Place) -> cases.Outcome:
  """The workdir of a run with another width."""
  trained(place)
  return place.train("config.DeepSeekConfig.hidden_size = 48")


def other_text(place: Place) -> cases.Outcome:
  """A resume after the corpus has grown."""
  trained(place)
  with (place.folder / "corpus" / "00.txt").open("a") as stream:
    stream.write("one more line\n")
  return place.train()


def corrupt_record(place: Place) -> cases.Outcome:
  """Flipped bits in the middle of a shard."""
  trained(place)
  shard = prepared(place) / "train-00000.array_record"
  content = bytearray(shard.read_bytes())
  for i in range(len(content) // 3, len(content) // 2, 64):
    content[i] ^= 1
  shard.write_bytes(content)
  place.fresh()
  return place.train()


def truncated_shard(place: Place) -> cases.Outcome:
  """Half a shard."""
  trained(place)
  shard = prepared(place) / "train-00000.array_record"
  os.truncate(shard, shard.stat().st_size // 2)
  place.fresh()
  return place.train()


def empty_corpus(place: Place) -> cases.Outcome:
  """Forty empty files."""
  for path in (place.folder / "corpus").iterdir():
    path.write_text("")
  return place.train()


def short_corpus(place: Place) -> cases.Outcome:
  """Forty files of one letter."""
  for path in (place.folder / "corpus").iterdir():
    path.write_text("a")
  return place.train()


def not_utf8(place: Place) -> cases.Outcome:
  """A file in another encoding."""
  path = place.folder / "corpus" / "07.txt"
  path.write_bytes(b"caf\xe9 au lait")
  return place.train()


def not_json(place: Place) -> cases.Outcome:
  """A line that is no JSON."""
  path = place.folder / "corpus.jsonl"
  path.write_text('{"text": "good"}\n{"text": bad}\n')
  return place.train(
    "pipeline.Data.task = 'jsonl'", f"pipeline.Data.files = ('{path}',)"
  )


def damaged_newest(place: Place) -> cases.Outcome:
  """A flipped bit in the newest checkpoint."""
  trained(place)
  digest = json.loads((place.workdir / "summary.json").read_text())
  cases.damage(place.workdir / "checkpoints" / str(place.steps()[-1]))
  outcome = place.train()
  again = json.loads((place.workdir / "summary.json").read_text())
  same = digest["state_digest"] == again["state_digest"]
  said = re.search(r"resumed at step [^\n]*", outcome.output)
  return dataclasses.replace(
    outcome,
    output=f"printed: {said and said[0]}; state_digest "
    f"{'the same' if same else 'ANOTHER'} in the end",
  )


def damaged_all(place: Place) -> cases.Outcome:
  """A flipped bit in every checkpoint."""
  trained(place)
  for step in place.steps():
    cases.damage(place.workdir / "checkpoints" / str(step))
  return place.train()


_CASES: dict[str, Callable[[Place], cases.Outcome]] = {
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


def passes(name: str, outcome: cases.Outcome) -> bool:
  """Whether a case ended as it should."""
  if name in _GOOD:
    return outcome.code == 0 and "ANOTHER" not in outcome.output
  return cases.is_one_line(outcome) and "NOT" not in outcome.output


def row(name: str, outcome: cases.Outcome, folder: pathlib.Path) -> list[str]:
  """One line of the table."""
  said = outcome.lines[-1] if outcome.lines else ""
  if name in _GOOD or name in _NEED_MOUNT[2:]:
    said = "; ".join(filter(None, (said, f"({outcome.output})")))
  return cases.row(name, said, outcome, folder)


def main(argv):
  """Tries the cases and prints, or records, the table."""
  if argv[1:]:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  names = [name for name in _CASES if re.search(_ONLY.value, name)]
  names = cases.mountable(names, _NEED_MOUNT)
  rows, failed = cases.run(
    names, lambda name, folder: _CASES[name](Place(folder)), passes, row
  )
  text = report.table(list(cases.HEADER), rows)
  print(text)
  print(f"{len(rows) - len(failed)} of {len(rows)} as they should be")
  if _RECORD.value:
    cases.record(
      "Training",
      "bad_inputs",
      f"Tried on `experiments.pretrain` with `{_GIN}`.",
      text,
    )
  return 1 if failed else 0


if __name__ == "__main__":
  app.run(main)
