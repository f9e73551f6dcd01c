"""Which Hugging Face tensors make up which dsx parameter, both ways.

dsx stacks layers and experts on leading axes and keeps matrices as
[in, out]; DeepSeek's files hold one tensor per layer and expert, [out, in].
The three tables below say all of it. A `Leaf` is one parameter of dsx with
the names of its pieces: loading fills the parameter from them, saving cuts it
into them.
"""

from collections.abc import Iterator
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.parallel import sharding

KEEP, TRANSPOSE = "keep", "transpose"

# (dsx path below the model, Hugging Face name, transform)
_MODEL = (
  ("embed_tokens/embedding", "model.embed_tokens.weight", KEEP),
  ("norm/scale", "model.norm.weight", KEEP),
  ("lm_head/kernel", "lm_head.weight", TRANSPOSE),
)

# (dsx path below a block, name below `model.layers.{layer}.`, transform)
_BLOCK = (
  ("input_layernorm/scale", "input_layernorm.weight", KEEP),
  ("post_attention_layernorm/scale", "post_attention_layernorm.weight", KEEP),
  ("self_attn/q_proj/kernel", "self_attn.q_proj.weight", TRANSPOSE),
  ("self_attn/q_a_proj/kernel", "self_attn.q_a_proj.weight", TRANSPOSE),
  ("self_attn/q_a_layernorm/scale", "self_attn.q_a_layernorm.weight", KEEP),
  ("self_attn/q_b_proj/kernel", "self_attn.q_b_proj.weight", TRANSPOSE),
  (
    "self_attn/kv_a_proj_with_mqa/kernel",
    "self_attn.kv_a_proj_with_mqa.weight",
    TRANSPOSE,
  ),
  ("self_attn/kv_a_layernorm/scale", "self_attn.kv_a_layernorm.weight", KEEP),
  ("self_attn/kv_b_proj/kernel", "self_attn.kv_b_proj.weight", TRANSPOSE),
  ("self_attn/o_proj/kernel", "self_attn.o_proj.weight", TRANSPOSE),
  *(
    (f"mlp/{owner}{matrix}/kernel", f"mlp.{dotted}{matrix}.weight", TRANSPOSE)
    for owner, dotted in (("", ""), ("shared_experts/", "shared_experts."))
    for matrix in ("gate_proj", "up_proj", "down_proj")
  ),
  *(
    (
      f"mlp/experts/{matrix}",
      f"mlp.experts.{{expert}}.{matrix}.weight",
      TRANSPOSE,
    )
    for matrix in ("gate_proj", "up_proj", "down_proj")
  ),
  ("mlp/gate/kernel", "mlp.gate.weight", TRANSPOSE),
  (
    "mlp/gate/e_score_correction_bias",
    "mlp.gate.e_score_correction_bias",
    KEEP,
  ),
)

# (dsx path below `mtp_{k}`, name below its layer, transform)
_MTP = (
  ("enorm/scale", "enorm.weight", KEEP),
  ("hnorm/scale", "hnorm.weight", KEEP),
  ("eh_proj/kernel", "eh_proj.weight", TRANSPOSE),
  ("norm/scale", "shared_head.norm.weight", KEEP),
)

# What each MTP layer of a file repeats, and the tensor that it repeats.
_COPIES = (
  ("embed_tokens.weight", "model.embed_tokens.weight"),
  ("shared_head.head.weight", "lm_head.weight"),
)


class Leaf(NamedTuple):
  """One parameter of dsx and the tensors that it is made of.

  Attributes:
    path: keys into `variables`, the collection first.
    shape: shape of the parameter.
    stacked: how many of its leading axes count pieces.
    names: names of the pieces in the order of those axes.
    transform: `keep`, or `transpose` if a piece is stored [out, in].
  """

  path: tuple[str, ...]
  shape: tuple[int, ...]
  stacked: int
  names: tuple[str, ...]
  transform: str

  @property
  def piece_shape(self) -> tuple[int, ...]:
    """Shape of each piece in the file."""
    shape = self.shape[self.stacked :]
    return shape[::-1] if self.transform == TRANSPOSE else shape

  def pieces(self) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index into the leading axes, name) of every piece."""
    indices = itertools.product(*map(range, self.shape[: self.stacked]))
    return zip(indices, self.names, strict=True)


@functools.lru_cache(maxsize=8)
def leaves(config: config_lib.DeepSeekConfig) -> tuple[Leaf, ...]:
  """All parameters of the model that `config` describes."""
  model = deepseek.DeepSeek(config)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  found = []
  for keys, leaf in jax.tree_util.tree_leaves_with_path(sharding.unbox(shapes)):
    path = tuple(key.key for key in keys)
    found.append(_leaf(path, leaf.shape, config))
  return tuple(found)


def _unboxed(shapes):

  return sharding.unbox(shapes)


def _leaf(path, shape, config) -> Leaf:
  """The leaf at `path` (collection, part of the model, ...)."""
  part, below = path[1], path[2:]
  first, layers = config.first_k_dense_replace, config.num_hidden_layers
  if part == "dense_layers":
    return _block_leaf(path, shape, below, range(first), True)
  if part == "moe_layers":
    return _block_leaf(path, shape, below, range(first, layers), True)
  if part.startswith("mtp_"):
    layer = layers + int(part.removeprefix("mtp_"))
    if below[0] == "block":
      return _block_leaf(path, shape, below[1:], (layer,), False)
    name, transform = _find(_MTP, below)
    names = (f"model.layers.{layer}.{name}",)
    return Leaf(path, shape, 0, names, transform)
  name, transform = _find(_MODEL, path[1:])
  return Leaf(path, shape, 0, (name,), transform)


def _block_leaf(path, shape, below, layers, stacked: bool) -> Leaf:
  name, transform = _find(_BLOCK, below)
  axes = int(stacked) + ("{expert}" in name)
  experts = range(shape[axes - 1]) if "{expert}" in name else (0,)
  names = tuple(
    f"model.layers.{layer}.{name.format(expert=expert)}"
    for layer in layers
    for expert in experts
  )
  return Leaf(path, shape, axes, names, transform)


def _find(table, below) -> tuple[str, str]:
  wanted = "/".join(below)
  for path, name, transform in table:
    if path == wanted:
      return name, transform
  raise ValueError(
    f"parameter {wanted!r} has no Hugging Face name; add it to the tables of "
    "dsx/convert/name_map.py"
  )


def mtp_prefix(config: config_lib.DeepSeekConfig, module: int) -> str:
  """What the names of all tensors of an MTP module begin with."""
  return f"model.layers.{config.num_hidden_layers + module}."


def copies(config: config_lib.DeepSeekConfig) -> dict[str, str]:
  """Tensors that MTP layers repeat in a file, each with its original."""
  return {
    mtp_prefix(config, module) + name: original
    for module in range(config.num_nextn_predict_layers)
    for name, original in _COPIES
  }
