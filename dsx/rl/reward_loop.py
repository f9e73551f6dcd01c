"""Training a reward model, from a `RewardTraining` to checkpoints and a plot.

Goes on from the newest good checkpoint of its workdir; the order in which
preferences are read follows from the seed, so that a resumed run ends with the
same parameters, bit for bit.

Routers' biases stay those of the policy, and neither MTP nor balance losses
take part: an epoch of preferences is short.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsx.parallel import sharding as sharding_lib
from dsx.rl import preferences as preferences_lib
from dsx.rl import reward_batches
from dsx.rl import reward_model
from dsx.rl import reward_plot
from dsx.rl import reward_training
from dsx.rl import reward_update
from dsx.training import checkpoint as checkpoint_lib
from dsx.training import metrics as metrics_lib
from dsx.training import preemption as preemption_lib
from dsx.training import pretrained
from dsx.training import progress as progress_lib
from dsx.training import state as state_lib
from dsx.training import workdir as workdir_lib

_MOST_REFUSED = 10  # updates in a row that were not finite


def train(
  run: reward_training.RewardTraining,
  workdir: str | os.PathLike[str],
  *,
  resume_command: str = "",
) -> dict[str, Any]:
  """Trains to the end, or until asked to stop.

  Args:
    run: what to train.
    workdir: where everything goes; a run found there is gone on with.
    resume_command: what a person types to go on, for the summary.

  Returns:
    The summary, as it is in `summary.json`.

  Raises:
    ValueError: in one line, what is wrong with the files, the folder or the
      numbers.
  """
  mesh = run.devices()
  policy = pretrained.find(run.init)
  read = preferences_lib.read(run.preferences)
  workdir = _claim(pathlib.Path(workdir), run)
  trainer = _Trainer(run, policy, read, mesh, workdir)
  with trainer.checkpoints:
    variables = None
    if not trainer.checkpoints.steps():
      variables = policy.read(mesh=mesh, sharding=run.sharding)
    with sharding_lib.use(mesh, run.sharding):
      return trainer.train(variables, resume_command)


def _claim(path: pathlib.Path, run) -> pathlib.Path:
  """Makes the folder, or finds that it holds this very run."""
  path.mkdir(parents=True, exist_ok=True)
  saved, identity = path / workdir_lib.IDENTITY, run.identity()
  if saved.exists() and (path / workdir_lib.CHECKPOINTS).is_dir():
    found = workdir_lib.difference(json.loads(saved.read_text()), identity)
    if found:
      name, before, now = found
      raise workdir_lib.WorkdirError(
        f"workdir {path} holds a run with {name}={before!r}, this one has"
        f" {now!r}: give another --workdir, or the old value to resume"
      )
  workdir_lib.describe(
    path, **{workdir_lib.IDENTITY: json.dumps(identity, indent=1)}
  )
  return path


class _Trainer:
  """One run: its model, its data, and what it has done so far."""

  def __init__(self, run, policy: pretrained.Pretrained, read, mesh, workdir):
    self.run, self.workdir, self.mesh = run, workdir, mesh
    self.policy = policy
    config = policy.model.config
    self.model = reward_model.RewardModel(config, policy.dtypes, run.execution)
    self.optimizer = run.optimizer.transformation()
    boxed = state_lib.abstract(self.model, self.optimizer)
    self.placement = state_lib.shardings(boxed, run.sharding, mesh)
    self.target = state_lib.restorable(boxed, self.placement)
    self.checkpoints = checkpoint_lib.Checkpointer(
      workdir / workdir_lib.CHECKPOINTS, max_to_keep=run.keep_checkpoints
    )
    longest = min(run.longest, config.max_position_embeddings)
    encoder = reward_batches.Encoder(policy.vocabulary, run.template, run.part)
    training, held_out = preferences_lib.split(read, run.held_out)
    self.training, left_out = _fitting(encoder, training, longest)
    self.held_out, more = _fitting(encoder, held_out, longest)
    self.left_out = left_out + more
    self.pairs = isinstance(read[0], preferences_lib.Pair)
    if len(self.training) * run.epochs < run.batch_size:
      raise ValueError(
        f"batch_size={run.batch_size}: expected at most the"
        f" {len(self.training)} preferences that there are to train on, times"
        f" epochs={run.epochs}; lower it, or give more"
      )
    self.order = reward_batches.order(
      len(self.training), run.batch_size, run.epochs, run.seed
    )
    losses = functools.partial(reward_update.losses, self.model, self.pairs)
    rows = sharding_lib.batch_sharding(mesh, leading=1)
    plain = sharding_lib.replicated(mesh)
    self._take = jax.jit(
      functools.partial(reward_update.step, losses, self.optimizer),
      in_shardings=(self.placement, (rows, rows, rows), plain),
      out_shardings=(self.placement, plain),
      donate_argnums=0,
    )
    self._measure = jax.jit(
      losses,
      in_shardings=(
        self.placement.params,
        self.placement.router_bias,
        (sharding_lib.batch_sharding(mesh),) * 3,
      ),
    )

  def _begin(self, variables):
    """The state to go on from, and a note on where it comes from."""
    if variables is None:
      restored = self.checkpoints.restore({"state": self.target})
      words = [f"resumed at step {restored.step:,}", *restored.notes]
      return restored.arrays["state"], "; ".join(words)
    state = state_lib.initialise(
      self.model, self.optimizer, self.placement, self.run.seed
    )
    made = reward_model.from_policy(variables, {"params": state.params})
    placed = jax.device_put(
      made,
      {
        "params": self.placement.params,
        "router_bias": self.placement.router_bias,
      }
      if "router_bias" in made
      else {"params": self.placement.params},
    )
    # An array of its own, because a step takes the state's memory.
    placed = jax.tree.map(jnp.copy, placed)
    state = state.replace(
      params=placed["params"], router_bias=placed.get("router_bias", {})
    )
    return state, f"from {self.policy.description}"

  def train(self, variables, resume_command: str) -> dict[str, Any]:
    """Takes every step; returns the summary.

    Args:
      variables: of the policy; None to go on from the newest checkpoint.
      resume_command: for the summary.
    """
    run = self.run
    state, note = self._begin(variables)
    step = first = int(state.step)
    total, saved = len(self.order), first if self.checkpoints.steps() else None
    kind = "pairs" if self.pairs else "labels"
    print(
      f"reward model: {len(self.training):,} {kind} to train on,"
      f" {len(self.held_out):,} held out, {self.left_out:,} left out as too"
      f" long; {total:,} steps, {note}",
      flush=True,
    )
    began, refused = time.monotonic(), 0
    with (
      metrics_lib.Writer(self.workdir, first if first else None) as writer,
      preemption_lib.Preemption() as preemption,
    ):
      for step in range(first + 1, total + 1):
        batch = self._batch(self.order[step - 1])
        rate = np.float32(run.rate(step - 1))
        state, seen = self._take(state, batch, rate)
        seen = jax.tree.map(float, jax.tree.map(np.asarray, seen))
        refused = 0 if seen.pop("finite") else refused + 1
        if refused >= _MOST_REFUSED:
          raise ValueError(
            f"{refused} updates in a row up to step {step} were not finite:"
            " expected finite gradients; lower learning_rate"
          )
        if step % run.log_every == 0 or step in (1, total):
          record = {"kind": "train", "step": step, "learning_rate": rate}
          writer.write(record | seen)
          left = (total - step) * (time.monotonic() - began) / (step - first)
          print(
            f"step {step:,}/{total:,}  loss {seen['loss']:.4f}  accuracy"
            f" {seen['accuracy']:.3f}  ETA {progress_lib.duration(left)}",
            flush=True,
          )
        due = run.evaluate_every and step % run.evaluate_every == 0
        if due or step == total:
          self._evaluate(writer, state, step)
        if run.checkpoint_every and step % run.checkpoint_every == 0:
          self._save(state, step)
          saved = step
        if preemption.requested() and step < total:
          print(f"stopped after step {step:,}; to go on: {resume_command}")
          break
    if saved != step:
      self._save(state, step)
    self.checkpoints.wait()
    return self._finish(state, step, total, resume_command)

  def _batch(self, numbers):
    found = [self.training[number] for number in numbers]
    parts = self.run.batch_size // self.run.micro_batch
    rows = reward_batches.batch(found, parts)
    return jax.device_put(
      tuple(rows), sharding_lib.batch_sharding(self.mesh, leading=1)
    )

  def _evaluate(self, writer, state, step: int) -> None:
    score = self.score(state)
    if score is not None:
      writer.write({"kind": "validation", "step": step, **score})
      print(
        f"held out after step {step:,}: loss {score['loss']:.4f}, accuracy"
        f" {score['accuracy']:.3f}",
        flush=True,
      )

  def score(self, state) -> dict[str, float] | None:
    """Mean loss and accuracy on what is held out; None if nothing is."""
    if not self.held_out:
      return None
    size, sums = self.run.micro_batch, np.zeros(3)
    for start in range(0, len(self.held_out), size):
      part = self.held_out[start : start + size]
      # The last batch is filled up; what fills it is not counted.
      rows = reward_batches.batch([*part, *[part[0]] * (size - len(part))], 1)
      rows = jax.tree.map(lambda x: x[0], rows)
      loss, right, margin = self._measure(
        state.params, state.router_bias, tuple(rows)
      )
      n = len(part)
      sums += [float(np.sum(np.asarray(x)[:n])) for x in (loss, right, margin)]
    loss, right, margin = (sums / len(self.held_out)).tolist()
    return {"loss": loss, "accuracy": right, "margin": margin}

  def _save(self, state, step: int) -> None:
    metadata = {"step": step, "run": self.run.identity()} | self._describes()
    self.checkpoints.save(step, {"state": state}, metadata)

  def _describes(self) -> dict[str, Any]:
    """What a scorer has to know of the model."""
    return {
      "config": dataclasses.asdict(self.model.config),
      "dtypes": dataclasses.asdict(self.model.dtypes),
      "vocabulary": self.policy.vocabulary.name,
      "pairs": self.pairs,
    }

  def _finish(self, state, step, total, resume_command) -> dict[str, Any]:
    done = step == total
    reward_plot.write(self.workdir)
    records = metrics_lib.read(self.workdir)
    last = {r["kind"]: r for r in records}
    summary = {
      "steps": step,
      "finished": done,
      "held_out": last.get("validation", {}).get("accuracy"),
      "train_loss": last.get("train", {}).get("loss"),
      "preferences": len(self.training),
      "left_out": self.left_out,
      "state_digest": state_lib.digest(state, step) if done else None,
      "resume_command": resume_command,
    }
    summary = {
      name: None if isinstance(x, float) and not math.isfinite(x) else x
      for name, x in summary.items()
    }
    text = json.dumps(summary, indent=1)
    workdir_lib.describe(self.workdir, **{workdir_lib.SUMMARY: text})
    return summary


def _fitting(encoder, found, longest: int):
  """Preferences in tokens, and how many are too long."""
  encoded = [encoder.preference(preference) for preference in found]
  kept = [e for e in encoded if max(map(len, e.texts)) <= longest]
  return kept, len(encoded) - len(kept)
