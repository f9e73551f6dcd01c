"""The run of `gin_configs/runs/ci.gin`, in this process or in another one.

Its data are written here, without TensorFlow. Programs that were compiled once
are kept, for the processes of a test and for the tests of a module.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np

from dsx.data import records
from dsx.data import store
from dsx.data import vocab
from dsx.training import pretraining
from experiments import configuration

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIN_FILE = "gin_configs/runs/ci.gin"
TARGET = "dsx.training.pretraining.Pretraining"
LENGTH = 32
_SPLITS = {"train": 256, "validation": 24}
_LIMIT_SECONDS = 300


def prepare(directory: pathlib.Path) -> pathlib.Path:
  """Writes a prepared data set of English-like text."""
  vocabulary = vocab.ByteVocabulary()
  layout = records.Layout(LENGTH, vocabulary.size, ["tokens"])
  rng = random.Random(0)
  words = "the router sends every token to some of the experts".split()
  directory.mkdir(parents=True)
  splits = {}
  for split, count in _SPLITS.items():
    writer = store.Writer(directory, split, layout)
    for _ in range(count):
      text = " ".join(rng.choices(words, k=LENGTH))
      tokens = np.asarray(vocabulary.encode(text)[: LENGTH + 1], np.int32)
      writer.write({"tokens": tokens})
    size = count * LENGTH
    splits[split] = {"documents": 1, "bytes": size, "tokens": size}
    splits[split] |= writer.close()
  store.write_metadata(
    directory,
    {
      "task": "text_files",
      "sequence_length": LENGTH,
      "vocabulary": vocabulary.name,
      "vocabulary_digest": vocabulary.digest,
      "vocab_size": vocabulary.size,
      "special": vocabulary.special,
      "token_bytes": vocabulary.token_bytes.tolist(),
      "features": ["tokens"],
      "splits": splits,
      "digest": "none",
      "bigram_bits_per_byte": 2.5,
    },
  )
  return directory


def build(data: pathlib.Path, **changes) -> pretraining.Pretraining:
  """The run on a prepared data set.

  Args:
    data: from `prepare`.
    **changes: fields of `Pretraining`, or `schedule__name` for one of its
      schedule, `config__name` for one of its model.
  """
  configuration.prepare(TARGET, [GIN_FILE], [binding(data)])
  run = configuration.build(TARGET)
  for name, value in changes.items():
    outer, _, inner = name.partition("__")
    if inner:
      value = dataclasses.replace(getattr(run, outer), **{inner: value})
    run = dataclasses.replace(run, **{outer: value})
  return run


def binding(data: pathlib.Path) -> str:
  """The gin binding that names a prepared data set."""
  return f"pipeline.Data.prepared = '{data}'"


def arguments(data: pathlib.Path, workdir: pathlib.Path, *more: str):
  """Arguments of `experiments.pretrain` for the run."""
  return [
    f"--gin_file={GIN_FILE}",
    f"--gin_bindings={binding(data)}",
    f"--workdir={workdir}",
    *more,
  ]


def start(
  arguments, *, devices: int = 8, module: str = "experiments.pretrain", **more
) -> subprocess.Popen:
  """Starts a process that trains; `outcome` waits for it.

  Args:
    arguments: from `arguments`.
    devices: CPU devices of the process.
    module: what to run.
    **more: environment variables.
  """
  environment = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    **more,
  }
  return subprocess.Popen(
    [sys.executable, "-m", module, *arguments],
    cwd=ROOT,
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def outcome(process: subprocess.Popen) -> tuple[int, str, str]:
  """Exit code, standard output and standard error; kills what hangs."""
  try:
    output, errors = process.communicate(timeout=_LIMIT_SECONDS)
  except subprocess.TimeoutExpired:
    process.kill()
    output, errors = process.communicate()
    errors += f"\nkilled after {_LIMIT_SECONDS} s"
  return process.returncode, output, errors


@contextlib.contextmanager
def folder():
  """A folder for a module's tests in which compiled programs are kept too."""
  path = pathlib.Path(tempfile.mkdtemp(dir=os.environ["TEST_TMPDIR"]))
  settings = {
    "jax_compilation_cache_dir": str(path / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  names = {name.upper(): str(value) for name, value in settings.items()}
  kept = {name: os.environ.get(name) for name in names}
  try:
    _configure(settings)
    os.environ.update(names)
    yield path
  finally:
    _configure(before)
    for name, value in kept.items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value
    shutil.rmtree(path, ignore_errors=True)


def _configure(settings) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  # JAX has decided by now whether and where it keeps programs.
  compilation_cache.reset_cache()
