"""What a run of reinforcement learning would be, computing nothing.

The model and its memory are those of `training/dry_run.py`; what is added is
what a rollout takes.
"""

import math
from typing import Any
from typing import cast

from dsx import cost
from dsx.models import cache
from dsx.models import deepseek
from dsx.parallel import sharding as sharding_lib
from dsx.rl import reinforcement
from dsx.training import dry_run
from dsx.training import progress
from dsx.training import state as state_lib


def describe(run: reinforcement.Reinforcement) -> str:
  """The text of `--dry_run`.

  Args:
    run: what would be learnt.

  Raises:
    ValueError: the mesh does not divide what it should.
  """
  mesh = dry_run.abstract_mesh(cast(Any, run))  # asks for its mesh alone
  model = deepseek.DeepSeek(run.config, run.dtypes, run.execution)
  boxed = state_lib.abstract(model, run.optimizer.transformation())
  placement = state_lib.shardings(boxed, run.sharding, mesh)
  state = sharding_lib.unbox(boxed)
  memory: list[tuple[str, int]] = [*dry_run.memory_rows(state, placement)]
  if run.update.objective.kl_coefficient:
    parameters = next(size for what, size in memory if what == "parameters")
    memory.append(("reference", parameters))
  total = sum(size for _, size in memory)
  memory.append(("total", total))
  sizes = [(what, f"{size / 2**30:,.3f} GiB") for what, size in memory]
  return "\n".join(
    [
      *_policy(run),
      "",
      *_problems(run),
      "",
      *_rollouts(run),
      "",
      f"on each of {math.prod(mesh.shape.values()):,} device(s), apart from"
      " activations and the cache:",
      *dry_run.table(("what", "memory"), sizes),
    ]
  )


def _policy(run: reinforcement.Reinforcement) -> list[str]:
  config = run.config
  parameters = cost.parameters(config) + cost.mtp_parameters(config)
  start = "new weights" if run.init is None else run.init.path
  return [
    f"policy: {parameters:,} parameters, {cost.active_parameters(config):,}"
    f" active, from {start}"
  ]


def _problems(run: reinforcement.Reinforcement) -> list[str]:
  try:
    train, held_out = run.problems.train(), run.problems.held_out()
  except ValueError as error:  # of another machine, or yet to be made
    return [f"problems: {error}"]
  needed = run.steps * run.prompts_per_step
  lines = [
    f"problems: {len(train):,} to learn from, {len(held_out):,} held out;"
    f" {needed:,} are drawn in {run.steps:,} steps,"
    f" {needed / len(train):.2f} epochs"
  ]
  if run.general is not None:
    lines.append(
      f"general: {run.general_share:.0%} of the problems of the last"
      f" {run.general_steps:,} steps"
    )
  return lines


def _rollouts(run: reinforcement.Reinforcement) -> list[str]:
  answers = run.prompts_per_rollout * run.group_size
  longest = run.longest(run.steps)
  bytes_per_token = cache.n_layers(run.config, run.decoding.drafts)
  bytes_per_token *= cache.width(run.config) * 2
  full = run.decoding.slots * run.config.max_position_embeddings
  return [
    f"a rollout: {run.prompts_per_rollout:,} problems x {run.group_size}"
    f" answers = {answers:,}, of at most"
    f" {run.longest(0):,} tokens" + _later(run),
    f"  at most {progress.count(answers * longest)} tokens, for"
    f" {run.updates_per_rollout} update(s) of"
    f" {run.prompts_per_step * run.group_size:,} answers each",
    f"  {run.decoding.slots} at once; a cache of"
    f" {bytes_per_token / 1024:,.2f} KiB a token in bfloat16, at most"
    f" {full * bytes_per_token / 2**30:,.2f} GiB",
    f"updates: learning rate {run.learning_rate:g}, warm-up of"
    f" {run.warmup_steps:,}; a new reference every {run.reference_every:,}"
    if run.reference_every
    else f"updates: learning rate {run.learning_rate:g}, warm-up of"
    f" {run.warmup_steps:,}; the first reference stays",
  ]


def _later(run: reinforcement.Reinforcement) -> str:
  return "".join(
    f", {tokens:,} from step {step:,}" for step, tokens in run.lengthen
  )
