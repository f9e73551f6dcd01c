"""An update of a reward model: losses of rows, over micro-batches.

Legend (parallel/axes.py): B rows, L tokens of a row; M micro-batches, N pairs
or labelled responses of one.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from dsx.rl import reward_model
from dsx.training import optimizer as optimizer_lib
from dsx.training import state as state_lib


def rewards(model: reward_model.RewardModel, params, router_bias, rows):
  """Float32 [B], the reward of each row.

  Args:
    model: the model.
    params: its parameters.
    router_bias: of its routers, or {}.
    rows: (tokens [B, L], length [B]).
  """
  tokens, length = rows
  places = jnp.arange(tokens.shape[1])[None, :]
  variables = {"params": params}
  if router_bias:
    variables["router_bias"] = router_bias
  found: Any = model.apply(variables, tokens, valid=places < length[:, None])
  return reward_model.last(found[0], length)


def losses(model, pairs: bool, params, router_bias, rows):
  """(loss, right, margin), each [N], of rows as `reward_batches.Rows`."""
  tokens, length, good = rows
  found = rewards(model, params, router_bias, (tokens, length))
  if pairs:
    loss, right = reward_model.pair_losses(found)
    chosen, rejected = jnp.split(found, 2)
    return loss, right, chosen - rejected
  loss, right = reward_model.label_losses(found, good)
  return loss, right, jnp.where(good, found, -found)


def step(losses_of, optimizer, state: state_lib.TrainState, batch, rate):
  """An update of rows in micro-batches [M, B, ...]."""
  n = batch[2].shape[0] * batch[2].shape[1]

  def total(params, rows):
    loss, right, margin = losses_of(params, state.router_bias, rows)
    sums = {"loss": loss.sum(), "accuracy": right.sum() * 1.0}
    sums["margin"] = margin.sum()
    return loss.sum() / n, jax.tree.map(lambda x: x / n, sums)

  grad = jax.grad(total, has_aux=True)

  def add(sums, rows):
    return jax.tree.map(jnp.add, sums, grad(state.params, rows)), None

  first = jax.tree.map(lambda x: x[0], batch)
  if batch[2].shape[0] == 1:
    grads, seen = grad(state.params, first)
  else:
    zero = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype),
      jax.eval_shape(grad, state.params, first),
    )
    (grads, seen), _ = lax.scan(add, zero, batch)
  norm = optimizer_lib.global_norm(grads)
  finite = optimizer_lib.all_finite(seen["loss"], norm)
  direction, opt_state = optimizer.update(
    grads, state.opt_state, state.params, grad_norm=norm, take=finite
  )
  rate = jnp.where(finite, rate, 0.0)
  params = jax.tree.map(
    lambda p, d: (p - rate * d).astype(p.dtype), state.params, direction
  )
  refused = jnp.logical_not(finite).astype(jnp.int32)
  state = state.replace(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    skipped=state.skipped + refused,
    skipped_in_a_row=(state.skipped_in_a_row + refused) * refused,
  )
  return state, seen | {"grad_norm": norm, "finite": finite}
