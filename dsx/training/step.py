"""One optimizer step: micro-batches, update, router biases.

Pure functions, jitted once per run. Gradients, losses and expert loads of
micro-batches add up to those of the global batch, so that neither the number
of devices nor the number of micro-batches changes a step (beyond rounding).
The bias step sees the loads of the whole batch, once per optimizer step;
evaluation and recomputation never reach it.

Legend (parallel/axes.py): B batch, L length, E experts; M micro-batches.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import optax

from dsx.models import language_model
from dsx.ops import platforms
from dsx.ops import routing
from dsx.parallel import scheduling
from dsx.training import losses
from dsx.training import optimizer as optimizer_lib
from dsx.training import state as state_lib

# The loop over them bears this name in the compiled program, which does not
# know its length.
MICRO_BATCHES = "micro_batches"


def denominators(batch, micro_batches):
  """What the sums over a global batch [M, B, L+1] are divided by."""
  used = jnp.arange(batch["tokens"].shape[0]) < micro_batches  # [M]
  masks = jax.vmap(lambda b: losses.target_mask(b, 0))(batch)
  targets = (masks.sum((1, 2)) * used).sum()
  sequences = used.sum() * batch["tokens"].shape[1]
  return {
    "targets": jnp.maximum(targets, 1).astype(jnp.float32),
    "sequences": sequences.astype(jnp.float32),
  }


def gradients(model: language_model.Model, params, router_bias, batch, scalars):
  """Gradients and metrics of a global batch, accumulated over micro-batches.

  Args:
    model: the model.
    params: parameters.
    router_bias: router biases.
    batch: leaves [M, B, L+1]; only the first `micro_batches` of M count.
    scalars: `mtp_weight`, `balance_weight` and int32 `micro_batches`.

  Returns:
    (gradients like params, metrics of `losses.total` for the global batch).
  """
  divide_by = denominators(batch, scalars["micro_batches"])
  loss = functools.partial(losses.total, model)
  grad = jax.grad(loss, has_aux=True)

  def micro(one):
    return grad(params, router_bias, one, divide_by, scalars)

  return accumulated(micro, batch, scalars["micro_batches"])


def accumulated(function, batch, micro_batches):
  """Sums of what a function returns for each micro-batch.

  Args:
    function: of a micro-batch; returns a tree of arrays.
    batch: leaves [M, ...].
    micro_batches: int32 [], how many of M count, at least 1.
  """

  def micro(i):
    return function(
      jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, False), batch)
    )

  if jax.tree.leaves(batch)[0].shape[0] == 1:
    return micro(0)

  def add(i, total):
    return jax.tree.map(jnp.add, total, micro(i))

  zero = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(micro, 0)
  )
  with jax.named_scope(MICRO_BATCHES):
    return lax.fori_loop(0, micro_batches, add, zero)


def router_biases(router_bias, load, speed):
  """Steps every router's bias by its own row of `load` [M, E].

  Rows are in the order of `DeepSeek.features`: expert layers, then MTP
  modules.
  """
  if not router_bias:
    return router_bias
  stepped, row = {}, 0
  names = [n for n in ("moe_layers",) if n in router_bias]
  names += sorted(
    (n for n in router_bias if n != "moe_layers"),
    key=lambda n: int(n.removeprefix("mtp_")),
  )
  for name in names:
    bias = jax.tree.leaves(router_bias[name])[0]
    rows = 1 if bias.ndim == 1 else bias.shape[0]
    own = load[row : row + rows].reshape(bias.shape)
    row += rows
    stepped[name] = jax.tree.map(
      lambda b, own=own: routing.bias_step(b, own, speed), router_bias[name]
    )
  return stepped


def train_step(
  model: language_model.Model,
  optimizer: optax.GradientTransformationExtraArgs,
  state: state_lib.TrainState,
  batch,
  scalars,
):
  """Takes one optimizer step, or refuses it if it is not finite.

  Args:
    model: the model.
    optimizer: gives the direction; this step multiplies the learning rate.
    state: the training state.
    batch: leaves [M, B, L+1].
    scalars: `learning_rate`, `bias_update_speed`, `balance_weight`,
      `mtp_weight` float32 and `micro_batches` int32 (section 4.2's phases).

  Returns:
    (state, metrics): `loss`, `mtp_loss`, `balance_loss`, `load`, `dropped`,
    `grad_norm`, `max_violation` [M], `finite`.
  """
  grads, metrics = gradients(
    model, state.params, state.router_bias, batch, scalars
  )
  bias = router_biases(
    state.router_bias, metrics["load"], scalars["bias_update_speed"]
  )
  state, taken = applied(
    optimizer, state, grads, metrics["loss"], scalars["learning_rate"], bias
  )
  violation = routing.max_violation(metrics["load"])
  return state, metrics | taken | {"max_violation": violation}


def applied(optimizer, state, grads, loss, learning_rate, router_bias):
  """Moves the state along gradients, unless they or the loss are not finite.

  Args:
    optimizer: gives the direction.
    state: the training state.
    grads: gradients.
    loss: what they are of, float32 [].
    learning_rate: float32 [].
    router_bias: what the router biases become.

  Returns:
    (state, its step counted, taken or not; `grad_norm` and `finite`).
  """
  grad_norm = optimizer_lib.global_norm(grads)
  finite = optimizer_lib.all_finite(loss, grad_norm)
  # A refused step keeps the moments (`take`) and moves nothing (rate 0).
  direction, opt_state = optimizer.update(
    grads, state.opt_state, state.params, grad_norm=grad_norm, take=finite
  )
  rate = jnp.where(finite, learning_rate, 0.0)
  params = jax.tree.map(
    lambda p, d: (p - rate * d).astype(p.dtype), state.params, direction
  )
  bias = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    router_bias,
    state.router_bias,
  )
  refused = jnp.logical_not(finite).astype(jnp.int32)
  return state_lib.TrainState(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    router_bias=bias,
    skipped=state.skipped + refused,
    skipped_in_a_row=(state.skipped_in_a_row + refused) * refused,
  ), {"grad_norm": grad_norm, "finite": finite}


def compiled(model, optimizer, placement: state_lib.TrainState):
  """`train_step`, jitted with its state donated and placed.

  Args:
    model: the model.
    optimizer: the optimizer.
    placement: shardings of the state.

  Returns:
    A function (state, batch, scalars) -> (state, metrics).
  """
  return jax.jit(
    functools.partial(train_step, model, optimizer),
    in_shardings=(placement, None, None),
    out_shardings=(placement, None),
    donate_argnums=0,
    compiler_options=scheduling.options(
      model.execution.overlap, platforms.target()
    ),
  )
