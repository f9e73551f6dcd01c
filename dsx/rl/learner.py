"""One run of reinforcement learning: its pieces, put together.

`loop.py` takes the steps; this is what it takes them with.
"""

import dataclasses
import hashlib
import pathlib
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from dsx import cost
from dsx.data import vocab as vocab_lib
from dsx.models import deepseek
from dsx.rl import advantages
from dsx.rl import alarms as alarms_lib
from dsx.rl import examiner as examiner_lib
from dsx.rl import exercises
from dsx.rl import explorer as explorer_lib
from dsx.rl import keeper as keeper_lib
from dsx.rl import pending as pending_lib
from dsx.rl import reinforcement
from dsx.rl import rewards as rewards_lib
from dsx.rl import rollout as rollout_lib
from dsx.rl import update as update_lib
from dsx.training import host_memory
from dsx.training import observer
from dsx.training import starting
from dsx.training import state as state_lib


class Learner:
  """A run in this process: what it learns with."""

  def __init__(
    self,
    run: reinforcement.Reinforcement,
    workdir: pathlib.Path,
    grader: rewards_lib.Grader,
    mesh: jax.sharding.Mesh,
  ):
    """Builds model, sampler, updates, problems and files of `workdir`.

    Args:
      run: what to learn.
      workdir: where checkpoints and records go.
      grader: of answers.
      mesh: the devices.
    """
    self.run, self.workdir, self.mesh = run, workdir, mesh
    if jax.default_backend() == "cpu":
      host_memory.keep_freed()
    self.vocabulary = vocab_lib.load(run.vocabulary)
    if self.vocabulary.size > run.config.vocab_size:
      raise observer.TrainingError(
        f"config.vocab_size={run.config.vocab_size}: expected at least"
        f" {self.vocabulary.size}, the size of vocabulary {run.vocabulary!r};"
        " raise it"
      )
    self.train = run.problems.train()
    self.held_out = run.problems.held_out()
    self.general = run.general.train() if run.general else []
    grader.check([*self.train, *self.held_out, *self.general])
    self.problems_digest = hashlib.sha256(
      "".join(map(exercises.digest, (self.train, self.general))).encode()
    ).hexdigest()
    self.model = deepseek.DeepSeek(run.config, run.dtypes, run.execution)
    self.optimizer = run.optimizer.transformation()
    boxed = state_lib.abstract(self.model, self.optimizer)
    self.placement = state_lib.shardings(boxed, run.sharding, mesh)
    self.target = state_lib.restorable(boxed, self.placement)
    size = self.vocabulary.size
    alone = mesh.size == 1
    self.roller = rollout_lib.Roller(
      run.config,
      run.rollout_dtypes or run.dtypes,
      decoding=dataclasses.replace(run.decoding, record_experts=run.replays),
      eos=self.vocabulary.special["eos"],
      vocab_size=size,
      mesh=None if alone else mesh,
      sharding=run.sharding,
    )
    self.updater = update_lib.Updater(
      self.model,
      self.optimizer,
      run.update,
      sampling=run.sampling,
      vocab_size=size,
      placement=self.placement,
      mesh=None if alone else mesh,
    )
    self.explorer = explorer_lib.Explorer(
      run, self.vocabulary, self.roller, grader, self.train, self.general
    )
    self.examiner = None
    if any(problem.kind != "open" for problem in self.held_out):
      self.examiner = examiner_lib.Examiner(
        self.held_out,
        evaluation=run.evaluation,
        template=run.template,
        vocabulary=self.vocabulary,
        grader=grader,
        form=run.rewards.form,
        shown=run.shown_problems,
      )
    self.keeper = keeper_lib.Keeper(
      run,
      workdir,
      target=self.target,
      needs_reference=self.updater.needs_reference,
      problems=self.problems_digest,
    )
    self.parameters = cost.parameters(run.config)
    self.parameters += cost.mtp_parameters(run.config)

  # Beginning, and going on.

  def begin(self) -> tuple[keeper_lib.Progress, str]:
    """Where the run goes on from, and a note on where that comes from."""
    if self.keeper.checkpoints.steps():
      return self.keeper.restored()
    if self.run.init is not None:
      run = self.run
      starting.check(self.run.init, run.config, run.vocabulary)
      started = starting.load(
        self.run.init,
        run.config,
        run.dtypes,
        mesh=self.mesh,
        sharding=run.sharding,
      )
      self.keeper.start, note = started.record, started.note
      state = state_lib.started(
        self.model, self.optimizer, self.placement, started.variables
      )
    else:
      note = "from new weights"
      state = state_lib.initialise(
        self.model, self.optimizer, self.placement, self.run.seed
      )
    progress = keeper_lib.Progress(
      state=state, reference=None, watch=alarms_lib.Watch(self.run.alarms)
    )
    if self.updater.needs_reference:
      progress.reference = _copied(progress.variables)
    return progress, note

  # One rollout, and one step.

  def explore(self, progress: keeper_lib.Progress) -> None:
    """Draws answers for the next steps, if none are left."""
    used = progress.step - progress.rollout_step
    if progress.rollout is not None and used < self.run.updates_per_rollout:
      return
    self._refresh(progress)
    number = progress.step // self.run.updates_per_rollout
    progress.rollout = None  # memory for both may be much
    self.roller.load(progress.variables, version=progress.step)
    explored = self.explorer.explore(progress.step, progress.place)
    began = time.monotonic()
    recomputed = self.updater.recompute(
      progress.state, explored.samples, progress.reference
    )
    seconds = time.monotonic() - began
    rewards, counted = explored.rewards, explored.counted
    objective = self.run.update.objective
    if objective.kl_in_reward:
      divergence = recomputed.divergence.reshape(rewards.shape)
      rewards = rewards - objective.kl_coefficient * divergence
    if recomputed.refusal:
      logging.warning("step %d: %s", progress.step, recomputed.refusal)
      counted = np.zeros_like(counted)
    better, _ = advantages.advantages(
      rewards, counted, standardise=objective.standardise
    )
    order = self._dealt(number, len(explored.samples))
    progress.place = explored.place
    progress.tokens += int(explored.facts["answer_tokens"])
    progress.rollout_step = progress.step
    progress.rollout = pending_lib.Rollout(
      number=number,
      samples=[explored.samples[i] for i in order],
      advantages=np.asarray(better, np.float32).reshape(-1)[order],
      counted=counted.reshape(-1)[order],
      logprobs={
        name: [of[i] for i in order] for name, of in recomputed.logprobs.items()
      },
      facts={
        **explored.facts,
        **recomputed.facts,
        "refused": float(bool(recomputed.refusal)),
        "seconds_recompute": seconds,
      },
    )

  def _dealt(self, number: int, n: int) -> np.ndarray:
    """The answers in the order in which updates take them: R1 deals at random.

    Args:
      number: of the rollout.
      n: answers.
    """
    if self.run.updates_per_rollout == 1:
      return np.arange(n)
    return np.random.default_rng((self.run.seed, number)).permutation(n)

  def _refresh(self, progress: keeper_lib.Progress) -> None:
    """Makes the policy the reference when its time has come (R1: 400)."""
    every = self.run.reference_every
    due = every and progress.step - progress.reference_step >= every
    if due and progress.reference is not None:
      progress.reference = _copied(progress.variables)
      progress.reference_step = progress.step

  def take(self, progress: keeper_lib.Progress) -> dict[str, Any]:
    """Takes a step; returns its record."""
    run, step, rollout = self.run, progress.step, progress.rollout
    assert rollout is not None
    parts = run.updates_per_rollout
    part = rollout.part(step - progress.rollout_step, parts)
    began = time.monotonic()
    progress.state, facts = self.updater.update(
      progress.state,
      part.samples,
      part.advantages,
      part.logprobs,
      counted=part.counted,
      learning_rate=run.rate(step),
    )
    clock = {
      name: seconds / parts
      for name, seconds in rollout.facts.items()
      if name.startswith("seconds_")
    }
    clock["seconds_update"] = time.monotonic() - began
    generate = rollout.facts["seconds_generate"]
    return {
      **rollout.facts,
      **facts,
      "rollout": rollout.number,
      "problems": progress.place.problems,
      "answer_tokens": progress.tokens,
      "age": step - progress.rollout_step,
      "learning_rate": run.rate(step),
      "reference_step": progress.reference_step,
      **clock,
      "seconds": sum(clock.values()),
      "tokens_per_second": rollout.facts["answer_tokens"] / max(generate, 1e-9),
    }

  def examine(
    self, progress: keeper_lib.Progress
  ) -> examiner_lib.Examination | None:
    """Examines the policy; None if there is nothing to examine it with."""
    progress.examined = progress.step
    if self.examiner is None:
      return None
    self.roller.load(progress.variables, version=progress.step)
    longest = self.run.longest(progress.step)
    return self.examiner.examine(self.roller, max_new_tokens=longest)

  def describe(self, note: str) -> str:
    """The run in a few lines, before its first step."""
    run, devices = self.run, self.mesh.devices.flat
    return (
      f"policy: {self.parameters:,} parameters,"
      f" {cost.active_parameters(run.config):,} active\n"
      f"problems: {len(self.train):,} to learn from, {len(self.held_out):,}"
      " held out"
      + (f", {len(self.general):,} general" if self.general else "")
      + f"\nrun: {run.steps:,} steps of {run.prompts_per_step} x"
      f" {run.group_size} answers, {run.updates_per_rollout} to a rollout, on"
      f" {len(devices)} {devices[0].device_kind} device(s), {note}"
    )


# Arrays of its own, because a step takes the state's memory.
_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
