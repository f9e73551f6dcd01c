"""Everything that a training step changes, as one explicit pytree.

Router biases stand beside the parameters, not among them: the optimizer never
sees them (section 2.1.2). The position in the data is the host's
(`loop.py`), because it counts sequences past what int32 holds.
"""

import hashlib
from typing import Any

from flax import linen as nn
import flax.struct
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax

from dsx.parallel import sharding as sharding_lib
from dsx.training import leaves as leaves_lib


@flax.struct.dataclass
class TrainState:
  """The state of training.

  Attributes:
    step: int32 [], optimizer steps taken or skipped.
    params: master weights.
    opt_state: optax state; moments have the parameters' shapes.
    router_bias: float32 biases of every router.
    skipped: int32 [], updates refused because they were not finite.
    skipped_in_a_row: int32 [], how many of them were the latest steps.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  router_bias: Any
  skipped: jax.Array
  skipped_in_a_row: jax.Array


def _create(model, optimizer: optax.GradientTransformation, key) -> TrainState:
  variables = model.init(key, jnp.zeros((1, 8), jnp.int32))
  params = variables["params"]
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    params=params,
    opt_state=optimizer.init(params),
    router_bias=variables.get("router_bias", {}),
    skipped=zero,
    skipped_in_a_row=zero,
  )


def abstract(
  model: nn.Module, optimizer: optax.GradientTransformation
) -> TrainState:
  """Shapes and dtypes of the state, still boxed with logical axes."""
  # Nothing is computed, not even a key: the mesh may be of devices elsewhere.
  return jax.eval_shape(lambda: _create(model, optimizer, jax.random.key(0)))


def shardings(boxed: TrainState, rules: sharding_lib.Sharding, mesh):
  """Where each leaf of the state lives.

  Args:
    boxed: from `abstract`.
    rules: the sharding strategy.
    mesh: the device mesh.

  Returns:
    A `TrainState` of NamedShardings.
  """

  def place(tree, table):
    return sharding_lib.shardings(tree, table, mesh)

  return TrainState(
    step=place(boxed.step, rules.parameters),
    params=place(boxed.params, rules.parameters),
    opt_state=place(boxed.opt_state, rules.optimizer),
    router_bias=place(boxed.router_bias, rules.parameters),
    skipped=place(boxed.skipped, rules.parameters),
    skipped_in_a_row=place(boxed.skipped_in_a_row, rules.parameters),
  )


def initialise(model, optimizer, placement: TrainState, seed: int):
  """The first state, made in place on its devices.

  Args:
    model: the model.
    optimizer: the optimizer.
    placement: from `shardings`.
    seed: of the initial weights.
  """

  def create(key):
    return sharding_lib.unbox(_create(model, optimizer, key))

  return jax.jit(create, out_shardings=placement)(jax.random.key(seed))


def started(model, optimizer, placement: TrainState, variables):
  """The first state of a run that starts from weights.

  Args:
    model: the model.
    optimizer: the optimizer.
    placement: from `shardings`.
    variables: `params` and, if the model has one, `router_bias`, on the
      devices; taken over.

  Raises:
    ValueError: they are not of the model.
  """
  wanted = sharding_lib.unbox(abstract(model, optimizer))
  given = (variables["params"], variables.get("router_bias", {}))
  found, expected = (
    {
      (name, leaf.shape, str(leaf.dtype))
      for name, leaf in leaves_lib.named(
        {"params": params, "router_bias": bias}
      ).items()
    }
    for params, bias in (given, (wanted.params, wanted.router_bias))
  )
  if found != expected:
    name, shape, dtype = min(found ^ expected)
    owner = "the weights" if (name, shape, dtype) in found else "the model"
    raise ValueError(
      f"init: {name!r} {shape} {dtype} is of {owner} alone: expected the same "
      "arrays of both; bind the config that the weights are of"
    )

  def create(params, router_bias):
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
      step=zero,
      params=params,
      opt_state=optimizer.init(params),
      router_bias=router_bias,
      skipped=zero,
      skipped_in_a_row=zero,
    )

  create = jax.jit(create, out_shardings=placement, donate_argnums=(0, 1))
  return create(*given)


def restorable(boxed: TrainState, placement: TrainState):
  """ShapeDtypeStructs with shardings: the target of a restore."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    sharding_lib.unbox(boxed),
    placement,
  )


def whole(leaf) -> np.ndarray:
  """The global value of an array on this host (a collective if it is split).

  Raises:
    nothing; every process must call it for the same leaves in the same order.
  """
  split = isinstance(leaf, jax.Array) and not (
    leaf.is_fully_addressable or leaf.is_fully_replicated
  )
  if split:
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(leaf)


def digest(state: TrainState, sequences: int) -> str:
  """sha256 over all that must be equal after a resume.

  The order is fixed: `params`, `opt_state`, `router_bias`, each in the order
  of its sorted key paths; per leaf the path in UTF-8, the dtype's name, the
  shape as little-endian int64, the values in C order. Last the data position
  in sequences, as a little-endian int64. Lengths are not separated, because
  the paths already differ wherever shapes can.

  Args:
    state: the training state.
    sequences: training sequences consumed.

  Returns:
    64 hexadecimal digits; the same for every mesh.
  """
  sha = hashlib.sha256()
  for part in ("params", "opt_state", "router_bias"):
    leaves = jax.tree_util.tree_flatten_with_path(getattr(state, part))[0]
    named = {part + jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for name in sorted(named):
      value = np.ascontiguousarray(whole(named[name]))
      sha.update(name.encode())
      sha.update(value.dtype.name.encode())
      sha.update(np.asarray(value.shape, "<i8").tobytes())
      sha.update(value.tobytes())
  sha.update(np.asarray([sequences], "<i8").tobytes())
  return sha.hexdigest()
