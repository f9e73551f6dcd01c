"""Which copy of an expert takes which token.

Where some experts are held more than once (`placement.py`), the tokens of each
are dealt out to its copies in turn, in the order of the batch: the copies get
equal numbers, and the same batch always goes the same way. All copies are the
same expert, so that the choice changes nothing but who computes.

Legend (parallel/axes.py): B batch, L length, E experts, K experts per token,
N nodes; P places of experts and copies, M most copies of one.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsx.parallel import axes

# Where a layer of experts finds its `Replicas` among the variables.
COLLECTION = "placement"
NAME = "replicas"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replicas:
  """Where the copies of one layer's experts are.

  Attributes:
    place: int32 [..., E, M], the places of each expert's copies.
    count: int32 [..., E], how many of them count; the rest repeats the last.
    total: P.
    nodes: nodes for which the placement keeps groups whole, see
      `routing_fields`.
  """

  place: Any
  count: Any
  total: int = dataclasses.field(metadata={"static": True})
  nodes: int = dataclasses.field(metadata={"static": True})


class RoutingFields(NamedTuple):
  """What `expert.run` wants to know of a config, with copies counted."""

  n_routed_experts: int
  num_experts_per_tok: int
  topk_method: str
  n_group: int
  topk_group: int


def of(expert, experts: int, *, nodes: int = 1) -> Replicas:
  """Makes the table of a placement.

  Args:
    expert: int [P], the expert in each place.
    experts: E.
    nodes: of `Replicas`.

  Raises:
    ValueError: an expert has no place.
  """
  expert = np.asarray(expert)
  count = np.bincount(expert, minlength=experts)
  if count.size > experts or not count.all():
    raise ValueError(
      f"placement of {expert.size} places: expected each of the experts 0 to "
      f"{experts - 1} in at least one of them, and no others"
    )
  order = np.argsort(expert, kind="stable")
  first = np.cumsum(count) - count
  copy = np.minimum(np.arange(count.max())[None], count[:, None] - 1)
  place = order[first[:, None] + copy]
  return Replicas(
    jnp.asarray(place, jnp.int32),
    jnp.asarray(count, jnp.int32),
    int(expert.size),
    nodes,
  )


def choose(index, replicas: Replicas):
  """Takes experts to places.

  Args:
    index: int32 [B, L, K], distinct experts of each token; negative for none.
    replicas: of the layer.

  Returns:
    int32 [B, L, K], places; -1 for none. Of all copies of an expert in the
    batch, the i-th goes to place i modulo the number of its places.
  """
  none = index < 0
  own = jnp.where(none, 0, index)
  copy = 0
  if replicas.place.shape[-1] > 1:
    turn = _turn(index, replicas.count.shape[0])
    copy = turn % replicas.count.at[own].get(mode="promise_in_bounds")
  place = replicas.place.at[own, copy].get(mode="promise_in_bounds")
  return jnp.where(none, -1, place)


def _turn(index, experts: int):
  """How many tokens chose each expert before, int32 [B, L, K].

  Summed in two steps, so that where the batch is spread over devices only the
  sums of its rows [B, E] travel.
  """
  numbers = jnp.arange(experts, dtype=index.dtype)
  chosen = index[..., None] == numbers[None, None, None, :]
  chosen = chosen.any(2).astype(jnp.int32)  # [B, L, E]
  row = chosen.sum(1)
  before = jnp.cumsum(row, axis=0) - row  # [B, E]
  before = before[:, None, :] + jnp.cumsum(chosen, axis=1) - chosen
  own = jnp.where(index < 0, 0, index)
  return jnp.take_along_axis(before, own, axis=2)


def routing_fields(config, replicas: Replicas) -> RoutingFields:
  """A config whose experts are the places.

  `topk_group` bounds the nodes of a token as long as each group is on one node.
  That is so where the current mesh has as many nodes as the placement was made
  for, or fewer that each take several; elsewhere nothing bounds them.
  """
  shape = jax.sharding.get_abstract_mesh().shape
  whole = replicas.nodes % shape.get(axes.NODE, 1) == 0
  return RoutingFields(
    n_routed_experts=replicas.total,
    num_experts_per_tok=config.num_experts_per_tok,
    topk_method=config.topk_method if whole else "greedy",
    n_group=config.n_group,
    topk_group=config.topk_group,
  )
