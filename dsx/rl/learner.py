"""One run of reinforcement learning: its pieces, put together.

`loop.py` takes the steps; this is what it takes them with, and what is saved
of it.
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
from dsx.rl import pending as pending_lib
from dsx.rl import reinforcement
from dsx.rl import rewards as rewards_lib
from dsx.rl import rollout as rollout_lib
from dsx.rl import update as update_lib
from dsx.training import checkpoint as checkpoint_lib
from dsx.training import host_memory
from dsx.training import observer
from dsx.training import starting
from dsx.training import state as state_lib
from dsx.training import step_directory
from dsx.training import workdir as workdir_lib


@dataclasses.dataclass(kw_only=True)
class Progress:
  """All that changes as a run goes on, and so all that is saved.

  Attributes:
    state: of training.
    reference: variables of the reference policy, or None.
    reference_step: updates that it had taken.
    place: in problems and draws.
    tokens: of answers that were drawn.
    rollout: whose answers are being learnt from; None before the first.
    rollout_step: updates taken when they were drawn.
    examined: updates taken at the latest examination; -1 for none yet.
    watch: what alarms have seen.
  """

  state: state_lib.TrainState
  reference: Any
  reference_step: int = 0
  place: explorer_lib.Place = explorer_lib.Place()
  tokens: int = 0
  rollout: pending_lib.Rollout | None = None
  rollout_step: int = 0
  examined: int = -1
  watch: alarms_lib.Watch

  @property
  def step(self) -> int:
    """Updates taken, refused ones included."""
    return int(self.state.step)

  @property
  def variables(self) -> dict[str, Any]:
    """The policy's."""
    return {"params": self.state.params, "router_bias": self.state.router_bias}

  def digest(self) -> str:
    """sha256 over all that must be equal after a resume."""
    parts = {"policy": self.state.params, "reference": self.reference or {}}
    sha = hashlib.sha256()
    whole = self.state.replace(params=parts)
    sha.update(state_lib.digest(whole, self.place.problems).encode())
    sha.update(repr((self.reference_step, *self.place, self.tokens)).encode())
    return sha.hexdigest()


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
    self.checkpoints = checkpoint_lib.Checkpointer(
      workdir / workdir_lib.CHECKPOINTS, max_to_keep=run.keep_checkpoints
    )
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
    self.start: dict | None = None  # which weights the run began with
    self.saved: int | None = None  # the newest good checkpoint's step
    self.parameters = cost.parameters(run.config)
    self.parameters += cost.mtp_parameters(run.config)
    self._wall_before, self._started = 0.0, time.monotonic()
    self._digests: dict[int, str] = {}  # of rollouts' files
    self._needed: dict[int, int | None] = {}  # rollouts by checkpoint

  # Beginning, and going on.

  def begin(self) -> tuple[Progress, str]:
    """Where the run goes on from, and a note on where that comes from."""
    if self.checkpoints.steps():
      return self._restored()
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
      self.start, note = started.record, started.note
      state = state_lib.started(
        self.model, self.optimizer, self.placement, started.variables
      )
    else:
      note = "from new weights"
      state = state_lib.initialise(
        self.model, self.optimizer, self.placement, self.run.seed
      )
    progress = Progress(
      state=state, reference=None, watch=alarms_lib.Watch(self.run.alarms)
    )
    if self.updater.needs_reference:
      progress.reference = _copied(progress.variables)
    return progress, note

  def _restored(self) -> tuple[Progress, str]:
    """The newest checkpoint that is good and has its rollout."""
    notes, incomplete = [], []
    for step in self.checkpoints.steps()[::-1]:
      try:
        found = self._restore(step, notes)
      except pending_lib.PendingError as error:
        incomplete.append(step)
        notes.append(f"step {step} is passed over: {error}")
      except checkpoint_lib.CheckpointError as error:
        notes.append(f"step {step} is passed over: {error}")
      else:
        for lost in incomplete:  # its number is needed again
          step_directory.StepDirectory(
            self.workdir / workdir_lib.CHECKPOINTS
          ).set_aside(lost)
        return found
      logging.warning("%s", notes[-1])
    raise checkpoint_lib.CheckpointError(
      f"no good step in {self.workdir / workdir_lib.CHECKPOINTS}:"
      f" {'; '.join(notes)}"
    )

  def _restore(self, step: int, notes: list[str]) -> tuple[Progress, str]:
    metadata = self.checkpoints.metadata(step)
    rollout = None
    if metadata["rollout"] is not None:
      rollout = pending_lib.read(self.workdir, **metadata["rollout"])
      self._digests[rollout.number] = metadata["rollout"]["digest"]
    target = {"state": self.target}
    if self.updater.needs_reference:
      target["reference"] = {
        "params": self.target.params,
        "router_bias": self.target.router_bias,
      }
    restored = self.checkpoints.restore(target, step=step)
    self._check_same(metadata)
    self.start = metadata["start"]
    self.saved = step
    self._wall_before = metadata["wall_seconds"]
    progress = Progress(
      state=restored.arrays["state"],
      reference=restored.arrays.get("reference"),
      reference_step=metadata["reference_step"],
      place=explorer_lib.Place(**metadata["place"]),
      tokens=metadata["tokens"],
      rollout=rollout,
      rollout_step=metadata["rollout_step"],
      examined=metadata["examined"],
      watch=alarms_lib.Watch(self.run.alarms, metadata["watch"]),
    )
    words = [f"resumed at step {step:,}", *notes, *restored.notes]
    return progress, "; ".join(words)

  def _check_same(self, metadata: dict) -> None:
    """Refuses to go on with other problems or another beginning."""
    if metadata["problems"] != self.problems_digest:
      raise observer.TrainingError(
        f"workdir {self.workdir} was trained on problems with digest"
        f" {metadata['problems'][:12]}, the same settings name"
        f" {self.problems_digest[:12]} now: bring the old files back, or give"
        " another --workdir"
      )
    if self.run.init is not None and metadata["start"] is not None:
      starting.check_same(self.run.init, metadata["start"])

  def save(self, progress: Progress) -> None:
    """Starts saving a checkpoint."""
    step, rollout = progress.step, self._waiting(progress)
    kept = None
    if rollout is not None:
      # The file of a rollout never changes: one serves several checkpoints.
      if rollout.number not in self._digests:
        self._digests[rollout.number] = pending_lib.write(self.workdir, rollout)
      digest = self._digests[rollout.number]
      kept = {"number": rollout.number, "digest": digest}
    arrays = {"state": progress.state}
    if progress.reference is not None:
      arrays["reference"] = progress.reference
    metadata = {
      "step": step,
      "sequences": progress.place.problems,
      "tokens": progress.tokens,
      "wall_seconds": self.wall_seconds(),
      "run": self.run.identity(),
      "start": self.start,
      "data": self.problems_digest,
      "problems": self.problems_digest,
      "place": progress.place._asdict(),
      "reference_step": progress.reference_step,
      "rollout": kept,
      "rollout_step": progress.rollout_step,
      "examined": progress.examined,
      "watch": progress.watch.state(),
    }
    self.checkpoints.save(step, arrays, metadata)
    self.saved = step
    self._forget(step, rollout)

  def _waiting(self, progress: Progress) -> pending_lib.Rollout | None:
    """The rollout, if any of its answers were not learnt from yet."""
    used = progress.step - progress.rollout_step
    left = used < self.run.updates_per_rollout
    return progress.rollout if left else None

  def _forget(self, step: int, rollout: pending_lib.Rollout | None) -> None:
    """Removes rollouts of checkpoints that are gone."""
    self._needed[step] = None if rollout is None else rollout.number
    for old in set(self.checkpoints.steps()) - self._needed.keys():
      kept = self.checkpoints.metadata(old)["rollout"]
      self._needed[old] = None if kept is None else kept["number"]
    # The save has only begun: what the older steps need stays for now.
    alive = {step, *self.checkpoints.steps()}
    self._needed = {s: n for s, n in self._needed.items() if s in alive}
    numbers = [n for n in self._needed.values() if n is not None]
    pending_lib.keep_only(self.workdir, numbers)
    self._digests = {n: d for n, d in self._digests.items() if n in numbers}

  def wall_seconds(self) -> float:
    """Seconds that this run has taken, earlier processes included."""
    return self._wall_before + time.monotonic() - self._started

  # One rollout, and one step.

  def explore(self, progress: Progress) -> None:
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

  def _refresh(self, progress: Progress) -> None:
    """Makes the policy the reference when its time has come (R1: 400)."""
    every = self.run.reference_every
    due = every and progress.step - progress.reference_step >= every
    if due and progress.reference is not None:
      progress.reference = _copied(progress.variables)
      progress.reference_step = progress.step

  def take(self, progress: Progress) -> dict[str, Any]:
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

  def examine(self, progress: Progress) -> examiner_lib.Examination | None:
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
