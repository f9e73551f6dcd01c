"""The two programs of an update, over micro-batches of packed answers.

Sums of a micro-batch are its share of the whole step's: what divides them is
known before, and they only add up.

Legend (parallel/axes.py): N answers, B rows, L columns; M micro-batches.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from dsx.models import deepseek
from dsx.ops import routing
from dsx.rl import grpo
from dsx.rl import mismatch
from dsx.rl import policy
from dsx.rl import rows as rows_lib
from dsx.training import state as state_lib
from dsx.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Static:
  """What a program is compiled for.

  Attributes:
    model: the policy.
    settings: an object with the fields of `update.Settings`.
    vocab_size: ids from here on only pad the model's vocabulary.
    raw: whether sampler and trainer are compared at temperature 1.
  """

  model: deepseek.DeepSeek
  settings: Any
  vocab_size: int | None
  raw: bool

  def forward(self, variables, rows, scalars, **kwargs) -> policy.Passed:
    """`policy.forward` of a micro-batch."""
    return policy.forward(
      self.model,
      variables,
      rows,
      scalars["temperature"],
      vocab_size=self.vocab_size,
      chunk=self.settings.vocabulary_chunk,
      **kwargs,
    )


def recompute(static: Static, variables, reference, rows, scalars):
  """Log-probabilities [M, B, L] by name, and `mismatch.Sums`.

  Args:
    static: what the program is for.
    variables: of the policy, or None.
    reference: of the reference policy, or None.
    rows: `rows.Rows` of [M, B, L, ...].
    scalars: `temperature` and int32 `micro_batches`.
  """
  correction = static.settings.correction

  def micro(one):
    found, sums = {}, None
    if variables is not None:
      passed = static.forward(
        variables,
        one,
        scalars,
        replay=static.settings.replay,
        entropy=True,
        raw=static.raw,
      )
      ours, theirs = passed.scores, one.sampled_logprob
      if passed.raw is not None:
        ours, theirs = passed.raw, one.logprob
      weight, sums = mismatch.compare(ours.logp, theirs, one.mask, correction)
      found |= {
        "old": passed.scores.logp,
        "entropy": passed.scores.entropy,
        "importance": weight,
      }
    if reference is not None:
      passed = static.forward(reference, one, scalars, replay=False)
      found["reference"] = passed.scores.logp
    return found, sums

  def add(i, carry):
    lists, sums = carry
    one = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, False), rows)
    found, own = micro(one)
    lists = jax.tree.map(
      lambda all_, x: lax.dynamic_update_index_in_dim(all_, x, i, 0),
      lists,
      found,
    )
    if own is not None:
      most = jnp.maximum(sums.most, own.most)
      sums = jax.tree.map(jnp.add, sums, own)._replace(most=most)
    return lists, sums

  first = jax.tree.map(lambda x: x[0], rows)
  found, sums = jax.eval_shape(micro, first)
  count = rows.inputs.shape[0]
  start = (
    jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), found),
    jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums),
  )
  with jax.named_scope(step_lib.MICRO_BATCHES):
    return lax.fori_loop(0, scalars["micro_batches"], add, start)


def step(
  static: Static, optimizer, state: state_lib.TrainState, batch, scalars
):
  """One step of the optimizer.

  Args:
    static: what the program is for.
    optimizer: gives the direction.
    state: of training.
    batch: `rows`, and float32 [M, B, L] `old`, `importance` and perhaps
      `reference`.
    scalars: `temperature`, `learning_rate`, int32 `micro_batches`; of answers
      `advantage` float32 [N] and `length` int32 [N], 0 for what does not count.

  Returns:
    (state, facts), each float32 [], as `Updater.update` has them.
  """
  settings = static.settings
  divide_by = {
    "answers": grpo.denominator(scalars["length"], settings.objective),
    "tokens": _tokens(batch["rows"], scalars),
  }
  grad = jax.grad(functools.partial(_loss, static), has_aux=True)

  def micro(one):
    return grad(state.params, state.router_bias, one, divide_by, scalars)

  grads, facts = step_lib.accumulated(micro, batch, scalars["micro_batches"])
  bias, more = _biases(settings, state.router_bias, facts.pop("load"))
  state, taken = step_lib.applied(
    optimizer, state, grads, facts["loss"], scalars["learning_rate"], bias
  )
  tokens = jnp.maximum(facts["tokens"], 1.0)
  for name in ("kl", "clipped", "ratio", "entropy"):
    facts[name] = facts[name] / tokens
  if not settings.objective.entropy_coefficient:
    del facts["entropy"]
  if "reference" not in batch:
    del facts["kl"]
  return state, facts | more | taken


def _tokens(rows: rows_lib.Rows, scalars):
  """Targets and columns of a whole step: what MTP and balance divide by."""
  used = jnp.arange(rows.mask.shape[0]) < scalars["micro_batches"]

  def count(x):
    return jnp.maximum((x.sum((1, 2)) * used).sum(), 1).astype(jnp.float32)

  return {"targets": count(rows.mask), "read": count(rows.segments > 0)}


def _loss(static: Static, params, router_bias, batch, divide_by, scalars):
  """A micro-batch's share of the loss, and facts that add up."""
  settings, rows = static.settings, batch["rows"]
  objective = settings.objective
  entropy = bool(objective.entropy_coefficient)
  passed = static.forward(
    {"params": params, "router_bias": router_bias},
    rows,
    scalars,
    replay=settings.replay,
    entropy=entropy,
    mtp=settings.mtp,
  )
  answers = grpo.Answers(
    sequence=rows.sequence,
    mask=rows.mask,
    old=batch["old"],
    reference=batch.get("reference", batch["old"]),
    importance=batch["importance"],
    advantage=scalars["advantage"],
    length=scalars["length"],
  )
  loss, facts = grpo.loss(
    passed.scores.logp,
    answers,
    objective,
    divide_by["answers"],
    passed.scores.entropy if entropy else None,
  )
  facts = {**facts, "load": passed.aux["load"]}
  total = loss
  if settings.mtp_weight:
    if settings.mtp_detached:
      kernel = lax.stop_gradient(passed.kernel)
      passed = passed._replace(kernel=kernel)
    sums = policy.mtp_losses(static.model, passed, rows, rows.mask)
    facts["mtp_loss"] = sums.mean() / divide_by["tokens"]["targets"]
    total += settings.mtp_weight * facts["mtp_loss"]
  if settings.balance_weight:
    tokens = (rows.segments > 0).sum(1).astype(jnp.float32)
    weighed = (passed.aux["balance_loss"] * tokens).sum()
    facts["balance_loss"] = weighed / divide_by["tokens"]["read"]
    total += settings.balance_weight * facts["balance_loss"]
  facts["loss"] = loss
  return total, lax.stop_gradient(facts)


def _biases(settings, router_bias, load):
  """Router biases after a step, and what `load` [M, E] says of balance."""
  speed = settings.bias_update_speed
  if not speed or not load.shape[0]:
    return router_bias, {}
  trained = settings.mtp != "none"
  moved = {
    name: bias
    for name, bias in router_bias.items()
    if trained or not name.startswith("mtp_")
  }
  stepped = step_lib.router_biases(moved, load, speed)
  violation = routing.max_violation(load).max()
  return {**router_bias, **stepped}, {"max_violation": violation}
