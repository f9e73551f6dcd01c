"""Two layouts of one model's variables: stacked for training, layers to decode.

A scan over layers wants their parameters stacked, and reads each layer by
slicing the stack. For one token that slice is a copy of the weights, as much
traffic as the whole computation, so that decoding keeps each layer's arrays
apart:

  stacked  dense_layers/..., moe_layers/... with a leading axis of layers
  layers   layers_0/..., layers_1/..., with the dense layers first

Everything else has one name in both.
"""

import jax
import jax.numpy as jnp

from dsx.models import config as config_lib

STACKS = ("dense_layers", "moe_layers")
_LAYER = "layers_"


def is_stacked(variables) -> bool:
  """Whether variables are in the layout of training."""
  return any(name in variables["params"] for name in STACKS)


def _ranges(config: config_lib.DeepSeekConfig):
  """(stack, numbers of its layers)."""
  dense, n = config.first_k_dense_replace, config.num_hidden_layers
  return (("dense_layers", range(dense)), ("moe_layers", range(dense, n)))


def stack_of(config: config_lib.DeepSeekConfig, number: int) -> str:
  """The stack that holds layer `number` in training."""
  return STACKS[number >= config.first_k_dense_replace]


def to_layers(config: config_lib.DeepSeekConfig, variables) -> dict:
  """Variables in the layout of decoding; no copy if they are already."""
  if not is_stacked(variables):
    return variables
  result = {}
  for collection, tree in variables.items():
    rest = {name: x for name, x in tree.items() if name not in STACKS}
    for stack, numbers in _ranges(config):
      for place, number in enumerate(numbers if stack in tree else ()):
        rest[f"{_LAYER}{number}"] = _taken(tree[stack], place)
    result[collection] = rest
  return result


def _taken(tree, place: int):
  return jax.tree.map(lambda x: x[place], tree)


def to_stacked(config: config_lib.DeepSeekConfig, variables) -> dict:
  """Variables in the layout of training; no copy if they are already."""
  if is_stacked(variables):
    return variables
  result = {}
  for collection, tree in variables.items():
    rest = {n: x for n, x in tree.items() if not n.startswith(_LAYER)}
    for stack, numbers in _ranges(config):
      parts = [tree[f"{_LAYER}{n}"] for n in numbers if f"{_LAYER}{n}" in tree]
      if parts:
        rest[stack] = jax.tree.map(lambda *xs: jnp.stack(xs), *parts)
    result[collection] = rest
  return result
