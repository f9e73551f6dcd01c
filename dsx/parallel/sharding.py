"""From logical axis names to mesh axes: the rules, checked.

Three strategies for parameters and optimizer state:

  replicated     every device holds everything (plain data parallel)
  zero1          experts over node x local, the other parameters replicated;
                 optimizer state spread over node x local, that of the experts
                 over data as well (DeepSeek-V3's own, section 3.2)
  fully_sharded  parameters spread like the optimizer state

Where experts are spread over node x local, tokens travel to them
(`expert.py`). Tensor parallelism is on whenever the mesh's `tensor` axis is
larger than 1, with any of the three.
"""

import contextlib
import dataclasses
import math
from typing import Literal

from flax import linen as nn
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from dsx.parallel import axes

Rules = tuple[tuple[str, tuple[str, ...] | str | None], ...]

_TENSOR: Rules = (
  (axes.HEADS, axes.TENSOR),
  (axes.MLP, axes.TENSOR),
  (axes.EXPERT_MLP, axes.TENSOR),
  (axes.VOCAB, axes.TENSOR),
)
_REPLICATED: Rules = (
  *_TENSOR,
  (axes.LAYERS, None),
  (axes.EMBED, None),
  (axes.LATENT, None),
  (axes.LATENT_IN, None),
  (axes.EXPERTS, None),
  (axes.EXPERT_EMBED, None),
  (axes.ROUTER, None),
  (axes.NORM, None),
)


def _changed(rules: Rules, *changes) -> Rules:
  replaced = {name for name, _ in changes}
  return (*changes, *(rule for rule in rules if rule[0] not in replaced))


_EXPERTS_SPREAD = _changed(_REPLICATED, (axes.EXPERTS, axes.EXPERT_MESH_AXES))
_SPREAD = _changed(
  _EXPERTS_SPREAD,
  (axes.EMBED, axes.EXPERT_MESH_AXES),
  (axes.LATENT_IN, axes.EXPERT_MESH_AXES),
  (axes.EXPERT_EMBED, axes.DATA),
)
_PARAMETERS = {
  "replicated": _REPLICATED,
  "zero1": _EXPERTS_SPREAD,
  "fully_sharded": _SPREAD,
}
_OPTIMIZER = _PARAMETERS | {"zero1": _SPREAD}
_ACTIVATIONS: Rules = (
  (axes.BATCH, axes.BATCH_MESH_AXES),
  (axes.LENGTH, axes.CONTEXT),
  (axes.ACT_EMBED, None),
  (axes.ACT_HEADS, axes.TENSOR),
  (axes.ACT_MLP, axes.TENSOR),
  (axes.ACT_VOCAB, axes.TENSOR),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharding:
  """Where parameters, optimizer state and activations live.

  Attributes:
    strategy: `replicated`, `zero1` or `fully_sharded`.
    overrides: further (logical axis, mesh axes) pairs that replace the
      strategy's own for parameters and optimizer state alike.
  """

  strategy: Literal["replicated", "zero1", "fully_sharded"] = "fully_sharded"
  overrides: tuple[tuple[str, tuple[str, ...] | str | None], ...] = ()

  def __post_init__(self):
    if self.strategy not in _PARAMETERS:
      raise ValueError(
        f"strategy={self.strategy!r}: expected replicated, zero1 or "
        "fully_sharded; fix sharding.Sharding.strategy"
      )
    known = [name for name, _ in _REPLICATED]
    for name, part in self.overrides:
      _check_known("logical axis", name, known)
      for mesh_axis in _mesh_axes(part):
        _check_known("mesh axis", mesh_axis, axes.MESH_AXES)

  @property
  def parameters(self) -> Rules:
    """Rules for parameters."""
    return _changed(_PARAMETERS[self.strategy], *self.overrides)

  @property
  def optimizer(self) -> Rules:
    """Rules for optimizer state."""
    return _changed(_OPTIMIZER[self.strategy], *self.overrides)

  @property
  def activations(self) -> Rules:
    """Rules for activations."""
    width = _mesh_axes(dict(self.parameters)[axes.EMBED])
    batch = tuple(a for a in axes.BATCH_MESH_AXES if a not in width)
    return (*_ACTIVATIONS, (axes.LOOKUP_BATCH, batch))


def _check_known(kind: str, name: str, known) -> None:
  # Otherwise a misspelt override would be no override, silently.
  if name not in known:
    raise ValueError(
      f"overrides: {kind} {name!r} is unknown: expected one of "
      f"{', '.join(known)}; fix sharding.Sharding.overrides"
    )


def _mesh_axes(part) -> tuple[str, ...]:
  return (part,) if isinstance(part, str) else tuple(part or ())


def spec(names, rules: Rules) -> PartitionSpec:
  """Mesh axes of an array whose dimensions bear the logical `names`.

  Raises:
    ValueError: for a name without a rule, or if two dimensions would lie on
      the same mesh axis.

  >>> spec(("vocab", "embed"), _SPREAD)
  PartitionSpec('tensor', ('node', 'local'))
  """
  table = dict(rules)
  parts, taken = [], {}
  for name in names:
    if name is not None and name not in table:
      raise ValueError(
        f"logical axis {name!r} has no rule; known: {sorted(table)}"
      )
    part = table[name] if name is not None else None
    parts.append(part)
    for mesh_axis in _mesh_axes(part):
      if mesh_axis in taken:
        raise ValueError(
          f"logical axes {taken[mesh_axis]!r} and {name!r} of one array "
          f"{tuple(names)} both lie on mesh axis {mesh_axis!r}; give one of "
          "them another axis in sharding.Sharding.overrides"
        )
      taken[mesh_axis] = name
  return PartitionSpec(*parts)


def _is_boxed(leaf) -> bool:
  return isinstance(leaf, nn.LogicallyPartitioned)


def unbox(boxed):
  """The arrays of a tree of boxed ones, without constraining them."""
  return jax.tree.map(
    lambda x: x.value if _is_boxed(x) else x, boxed, is_leaf=_is_boxed
  )


def pieces(name: str) -> int:
  """Into how many pieces the current mesh and rules divide a logical axis.

  1 where there is no mesh, or no rule.
  """
  mesh = jax.sharding.get_abstract_mesh()
  part = dict(nn.get_logical_axis_rules()).get(name)
  return math.prod(mesh.shape.get(axis, 1) for axis in _mesh_axes(part))


def shardings(boxed, rules: Rules, mesh: jax.sharding.Mesh):
  """NamedShardings of a tree of boxed (logically partitioned) shapes.

  Args:
    boxed: variables from `jax.eval_shape(model.init, ...)`, still boxed;
      leaves without names are replicated.
    rules: logical to mesh axes.
    mesh: the device mesh.

  Returns:
    A tree like the unboxed variables.

  Raises:
    ValueError: if a dimension does not divide by its mesh axes.
  """

  def leaf(path, x):
    if not _is_boxed(x):
      return NamedSharding(mesh, PartitionSpec())
    sharding = NamedSharding(mesh, spec(x.names, rules))
    _check_divides(jax.tree_util.keystr(path), x.value.shape, sharding)
    return sharding

  return jax.tree_util.tree_map_with_path(leaf, boxed, is_leaf=_is_boxed)


def _check_divides(path: str, shape, sharding: NamedSharding) -> None:
  for dim, part in zip(shape, sharding.spec, strict=False):
    names = _mesh_axes(part)
    pieces = 1
    for name in names:
      pieces *= sharding.mesh.shape[name]
    if dim % pieces:
      raise ValueError(
        f"{path} has shape {tuple(shape)}: its dimension {dim} does not "
        f"divide over mesh axes {names} of {pieces} devices; change the mesh "
        "or sharding.Sharding"
      )


def batch_sharding(mesh: jax.sharding.Mesh, leading: int = 0) -> NamedSharding:
  """Sharding of [..., B, L]: B over the batch axes after `leading` axes."""
  parts = (None,) * leading + (axes.BATCH_MESH_AXES,)
  return NamedSharding(mesh, PartitionSpec(*parts))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh, sharding: Sharding):
  """Makes `mesh` and the rules of `sharding` current while tracing.

  `jax.set_mesh`, because under the old `with mesh:` Linen drops logical
  constraints silently.
  """
  rules = (*sharding.activations, *sharding.parameters)
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield
