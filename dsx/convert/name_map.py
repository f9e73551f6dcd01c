"""Which Hugging Face tensors make up which dsx parameter, both ways.

dsx stacks layers and experts on leading axes and keeps matrices as
[in, out]; DeepSeek's files hold one tensor per layer and expert, [out, in].
The three tables below say all of it. A `Leaf` is one parameter of dsx with
the names of its pieces: loading fills the parameter from them, saving cuts it
into them.

Variables have one of two layouts: `stacked`, for training, has one array for
all layers of a kind; `layers`, for inference, a block of its own for every
layer. Experts are stacked in both.

Nothing is permuted. The rotary coordinates of queries and keys stay side by
side, as DeepSeek's files have them: `ops/rope.py` reads them so, and is the
only place that knows of it.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import functools
import math
import re
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from dsx.models import dense_config
from dsx.models import language_model
from dsx.parallel import sharding

KEEP, TRANSPOSE = "keep", "transpose"
STACKED, LAYERS = "stacked", "layers"
LAYOUTS = (STACKED, LAYERS)
# What the scales of an FP8 matrix are called, after the matrix.
SCALES = "_scale_inv"
_LAYER = "model.layers.{layer}."
_STACKS = ("dense_layers", "moe_layers")

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
  # Of dense models.
  ("self_attn/k_proj/kernel", "self_attn.k_proj.weight", TRANSPOSE),
  ("self_attn/v_proj/kernel", "self_attn.v_proj.weight", TRANSPOSE),
  ("self_attn/q_proj/bias", "self_attn.q_proj.bias", KEEP),
  ("self_attn/k_proj/bias", "self_attn.k_proj.bias", KEEP),
  ("self_attn/v_proj/bias", "self_attn.v_proj.bias", KEEP),
  ("self_attn/q_norm/scale", "self_attn.q_norm.weight", KEEP),
  ("self_attn/k_norm/scale", "self_attn.k_norm.weight", KEEP),
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
    stacked: how many of its leading axes count pieces: layers, experts.
    pattern: name of a piece, with `{layer}` and `{expert}`.
    first_layer: the layer that index 0 of a stack is.
    transform: `keep`, or `transpose` if a piece is stored [out, in].
    axes: logical axes (parallel/axes.py), one for each dimension.
  """

  path: tuple[str, ...]
  shape: tuple[int, ...]
  stacked: int
  pattern: str
  first_layer: int
  transform: str
  axes: tuple[str | None, ...]

  @property
  def piece_shape(self) -> tuple[int, ...]:
    """Shape of each piece in the file."""
    shape = self.shape[self.stacked :]
    return shape[::-1] if self.transform == TRANSPOSE else shape

  @property
  def n_pieces(self) -> int:
    """How many tensors of the file make up the parameter."""
    return math.prod(self.shape[: self.stacked])

  @property
  def is_bias(self) -> bool:
    """Whether it is a router bias, float32 whatever the weights are."""
    return self.path[0] == "router_bias"

  @property
  def is_linear(self) -> bool:
    """Whether it is a linear layer of a block.

    These are what DeepSeek keeps in FP8: neither embedding and output head
    nor the router, the norms, and what joins an MTP module to the model.
    """
    matrix = "_proj" in self.path[-1] or "_proj" in self.path[-2]
    matrix = matrix and self.path[-1] != "bias"
    return matrix and self.path[-2] != "eh_proj"

  def pieces(self) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index into the leading axes, name) of every piece, made lazily."""
    has_experts = "{expert}" in self.pattern
    for index in _indices(self.shape[: self.stacked]):
      expert = index[-1] if has_experts else None
      layer = index[0] if len(index) > has_experts else 0
      layer += self.first_layer
      yield index, self.pattern.format(layer=layer, expert=expert)


def _indices(shape) -> Iterator[tuple[int, ...]]:
  # itertools.product and np.ndindex hold whole ranges, and a damaged
  # config.json may announce a billion layers.
  if not shape:
    yield ()
    return
  for first in range(shape[0]):
    for rest in _indices(shape[1:]):
      yield (first, *rest)


@functools.lru_cache(maxsize=8)
def leaves(
  config: language_model.Config, layout: str = STACKED
) -> tuple[Leaf, ...]:
  """All parameters of the model that `config` describes.

  Args:
    config: the model.
    layout: `stacked` or `layers`.
  """
  if layout == LAYERS:
    return tuple(
      part for leaf in leaves(config) for part in _of_each_layer(leaf)
    )
  model = language_model.build(config)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  boxes = jax.tree_util.tree_leaves_with_path(
    shapes, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  found = []
  for keys, box in boxes:
    path = tuple(key.key for key in keys)
    shape = sharding.unbox(box).shape
    names = getattr(box, "names", (None,) * len(shape))
    found.append(_leaf(path, shape, config, names))
  return tuple(found)


def _leaf(path, shape, config, names) -> Leaf:
  """The leaf at `path` (collection, part of the model, ...)."""
  part, below = path[1], path[2:]
  if part in _STACKS:
    first = config.first_k_dense_replace if part == "moe_layers" else 0
    return _block_leaf(path, shape, below, first, True, names)
  if part.startswith("mtp_"):
    layer = config.num_hidden_layers + int(part.removeprefix("mtp_"))
    if below[0] == "block":
      return _block_leaf(path, shape, below[1:], layer, False, names)
    name, transform = _find(_MTP, below)
    return Leaf(path, shape, 0, _LAYER + name, layer, transform, names)
  name, transform = _find(_MODEL, path[1:])
  return Leaf(path, shape, 0, name, 0, transform, names)


def _block_leaf(path, shape, below, first: int, layers: bool, names) -> Leaf:
  name, transform = _find(_BLOCK, below)
  stacked = layers + ("{expert}" in name)
  return Leaf(path, shape, stacked, _LAYER + name, first, transform, names)


def _of_each_layer(leaf: Leaf) -> Iterator[Leaf]:
  """The leaf of every layer of a stack; any other leaf as it is."""
  if leaf.path[1] not in _STACKS:
    yield leaf
    return
  for layer in range(leaf.first_layer, leaf.first_layer + leaf.shape[0]):
    yield leaf._replace(
      path=(leaf.path[0], f"layers_{layer}", *leaf.path[2:]),
      shape=leaf.shape[1:],
      stacked=leaf.stacked - 1,
      first_layer=layer,
      axes=leaf.axes[1:],
    )


def _find(table, below) -> tuple[str, str]:
  wanted = "/".join(below)
  for path, name, transform in table:
    if path == wanted:
      return name, transform
  raise ValueError(
    f"parameter {wanted!r} has no Hugging Face name; add it to the tables of "
    "dsx/convert/name_map.py"
  )


def layout_of(parts: Iterable[str]) -> str:
  """The layout of variables with these parts of a model."""
  return LAYERS if any(re.match(r"layers_\d", p) for p in parts) else STACKED


def layer_of(name: str) -> int | None:
  """The layer that a tensor of a file belongs to, or None."""
  match = re.match(r"model\.layers\.(\d{1,9})\.", name)
  return None if match is None else int(match.group(1))


def copies(config: language_model.Config) -> dict[str, str]:
  """Tensors that MTP layers repeat in a file, each with its original."""
  first = config.num_hidden_layers
  return {
    _LAYER.format(layer=first + module) + name: original
    for module in range(config.num_nextn_predict_layers)
    for name, original in _COPIES
  }


def accepted_copies(config: language_model.Config) -> dict[str, str]:
  """Tensors that a file may repeat, each with its original.

  They are those of `copies`, and the output head of a dense model whose
  embedding is its head: files have it or not.
  """
  found = copies(config)
  if isinstance(config, dense_config.DenseConfig):
    if config.tie_word_embeddings:
      found["lm_head.weight"] = "model.embed_tokens.weight"
  return found


@functools.lru_cache(maxsize=8)
def linear(config: language_model.Config) -> frozenset[str]:
  """Names of the matrices of linear layers, which can be FP8."""
  return frozenset(
    name
    for leaf in leaves(config)
    if leaf.is_linear
    for _, name in leaf.pieces()
  )


def natural(name: str):
  """Sorts layer 10 after layer 9, so that a layer's tensors lie together."""
  return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
