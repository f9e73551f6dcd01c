"""Prepared data and trained workdirs of toy size, made without TensorFlow."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dsx.data import packing
from dsx.data import pipeline
from dsx.data import records
from dsx.data import store
from dsx.data import vocab
from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.training import checkpoint
from dsx.training import pretraining
from dsx.training import schedules
from dsx.training import state as state_lib
from dsx.training import workdir as workdir_lib
from tests.training import tiny

LENGTH = 16
_TEXTS = {
  "train": "def spam(eggs):\n  return eggs\n" * 12,
  "validation": "class Café:\n  pass\n" * 10,
}


def data(folder: pathlib.Path, texts=None) -> pipeline.Data:
  """Writes text as a prepared data set and returns what reads it."""
  folder.mkdir(parents=True)
  vocabulary = vocab.ByteVocabulary()
  layout = records.Layout(LENGTH, vocabulary.size, ["tokens"])
  splits = {}
  for split, text in (texts or _TEXTS).items():
    tokens = np.array(vocabulary.encode(text), np.int32)
    writer = store.Writer(folder, split, layout)
    for record in packing.pack([{"tokens": tokens}], LENGTH):
      writer.write(record)
    size = len(text.encode())
    counts = {"documents": 1, "bytes": size, "tokens": len(tokens)}
    splits[split] = counts | writer.close()
  store.write_metadata(
    folder,
    {
      "sequence_length": LENGTH,
      "vocabulary_digest": vocabulary.digest,
      "vocab_size": vocabulary.size,
      "token_bytes": vocabulary.token_bytes.tolist(),
      "features": ["tokens"],
      "splits": splits,
      "digest": "",
      "bigram_bits_per_byte": 2.5,
    },
  )
  return pipeline.Data(sequence_length=LENGTH, prepared=str(folder))


def model_config(**changes) -> config_lib.DeepSeekConfig:
  """One expert layer and one MTP module over bytes."""
  fields = {
    "vocab_size": 320,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
  }
  return tiny.model_config(**(fields | changes))


def run(source: pipeline.Data, **changes) -> pretraining.Pretraining:
  """A run of the tiny model on bytes, on one device, with an average."""
  fields = {
    "config": model_config(),
    "data": source,
    "schedule": schedules.Schedule(
      total_tokens=2048,
      sequence_length=LENGTH,
      batch_size_start=8,
      batch_size=8,
    ),
    "mesh": mesh_lib.MeshShape(data=8),
    "ema_decay": 0.9,
    "final_evaluation_records": 11,
  }
  return pretraining.Pretraining(**(fields | changes))


def state_of(of: pretraining.Pretraining, seed: int) -> state_lib.TrainState:
  """An initial state, with router biases that are not zero."""
  model = deepseek.DeepSeek(of.config, of.dtypes, of.execution)
  optimizer = of.optimizer.transformation()
  boxed = state_lib.abstract(model, optimizer)
  placement = state_lib.shardings(boxed, of.sharding, mesh_lib.make(of.mesh))
  state = state_lib.initialise(model, optimizer, placement, seed=seed)
  bias = jax.tree.map(lambda b: b + jnp.float32(0.01), state.router_bias)
  return dataclasses.replace(state, router_bias=bias)


def changed(tree, factor: float):
  """The tree of arrays times `factor`."""
  return jax.tree.map(lambda x: x * jnp.float32(factor), tree)


def save(workdir, of: pretraining.Pretraining, states: dict) -> None:
  """Fills a workdir as training would; the average is half the parameters.

  Args:
    workdir: the folder.
    of: the run.
    states: by step.
  """
  workdir = workdir_lib.claim(workdir, of)
  with checkpoint.Checkpointer(workdir / workdir_lib.CHECKPOINTS) as keeper:
    for step, state in states.items():
      arrays = {"state": state}
      if of.ema_decay is not None:
        arrays["ema"] = changed(state.params, 0.5)
      sequences = of.schedule.position(step).sequence
      metadata = {
        "step": step,
        "sequences": sequences,
        "tokens": sequences * LENGTH,
        "wall_seconds": 1.0,
        "run": of.identity(),
      }
      keeper.save(step, arrays, metadata)
