"""The way of a layer's tokens to their experts, known before any token is.

Which hops, how much room in their buffers, and what may arrive. DeepSeek-V3
section 3.2.2: experts are spread over `node` x `local`, in order, so that a
node holds whole groups of them and a token reaches at most `topk_group` nodes.

Legend (parallel/axes.py): T tokens of a device, E experts, K experts per token,
N nodes.
"""

import math
from typing import Any
from typing import NamedTuple

from dsx.parallel import axes
from dsx.parallel import dispatch as dispatch_lib

# Buffers of a limited capacity are a multiple of this many rows.
_ROWS = 8


class Way(NamedTuple):
  """The way of one layer's tokens, known before any token is (static).

  Attributes:
    mesh_axes: all axes that divide tokens or matrices.
    expert_axes: those over which the experts are spread.
    hops: of `dispatch`, none where experts are whole everywhere.
    experts: experts of one device.
    quota: copies (a token at one of its experts) that a device may send to
      another in one round.
    copies: most copies that a device receives in one round.
    rounds: whether buffers may overflow into further rounds.
    counts_drops: whether what does not fit is left out and counted.
    tensor: devices that share a matrix and gather their rows; 1 for none.
    wire: of `exchange.exchange`.
    float8: whether activations travel in FP8.
    impl: of `expert_mlp`.
  """

  mesh_axes: tuple[str, ...]
  expert_axes: tuple[str, ...]
  hops: tuple[dispatch_lib.Hop, ...]
  experts: int
  quota: int
  copies: int
  rounds: bool
  counts_drops: bool
  tensor: int
  wire: str
  float8: bool
  impl: str


def reachable(config, nodes: int) -> int:
  """Most nodes that one token's experts can be on.

  Args:
    config: an object with `DeepSeekConfig`'s routing fields.
    nodes: N; node i holds the i-th part of the experts.

  Returns:
    `topk_group` where a node holds whole groups of experts; more where groups
    are spread over several nodes or cross their borders.
  """
  most = min(nodes, config.num_experts_per_tok)
  if config.topk_method == "greedy":
    return most
  n_group = config.n_group
  if n_group % nodes == 0:
    spread = 1
  elif nodes % n_group == 0:
    spread = nodes // n_group
  else:  # a border of nodes lies within a group
    spread = -(-nodes // n_group) + 1
  return min(most, config.topk_group * spread)


def plan(
  *,
  tokens: int,
  mesh,
  names,
  expert_axes,
  shares_matrices: bool,
  config: Any,
  impl: str,
  dispatch: Any,
) -> Way:
  """The way for `tokens` tokens of each device.

  Args:
    tokens: T.
    mesh: the mesh.
    names: its axes that divide tokens or matrices.
    expert_axes: those over which experts are spread, none or `node`, `local`
      or both.
    shares_matrices: whether `tensor` divides the experts' matrices.
    config: an object with `DeepSeekConfig`'s routing fields.
    impl: of `ops.expert_mlp`.
    dispatch: an object with the fields of `config.Dispatch`.

  Raises:
    ValueError: the experts do not divide over the devices.
  """
  k = config.num_experts_per_tok
  devices = math.prod(mesh.shape[a] for a in expert_axes)
  nodes = mesh.shape[axes.NODE] if axes.NODE in expert_axes else 1
  if config.n_routed_experts % devices:
    raise ValueError(
      f"n_routed_experts={config.n_routed_experts}: expected a multiple of "
      f"the {devices} devices of {' x '.join(expert_axes)}; change the mesh"
    )
  experts = config.n_routed_experts // devices
  reach = reachable(config, nodes)
  worst = tokens * min(k, experts)
  quota, per_node = worst, tokens
  if dispatch.capacity_factor is not None:
    room = dispatch.capacity_factor * tokens
    quota = min(worst, _rounded(room * k / devices))
    per_node = min(tokens, _rounded(room * reach / nodes))
  two_hop = dispatch.transport != "flat" and len(expert_axes) == 2
  local = devices // nodes
  if not expert_axes:
    hops = ()
  elif two_hop:
    hops = (
      dispatch_lib.Hop((axes.NODE,), nodes, local * experts, reach, per_node),
      dispatch_lib.Hop(
        (axes.LOCAL,),
        local,
        experts,
        min(k, local),
        nodes * min(per_node, quota),
      ),
    )
  else:
    hops = (
      dispatch_lib.Hop(
        expert_axes, devices, experts, min(k, devices), min(tokens, quota)
      ),
    )
  tight = bool(hops) and (quota < worst or (two_hop and per_node < tokens))
  rows = hops[-1].blocks * hops[-1].capacity if hops else tokens
  return Way(
    mesh_axes=names,
    expert_axes=expert_axes,
    hops=hops,
    experts=experts,
    quota=quota,
    copies=min(devices * quota, rows * min(k, experts)),
    rounds=tight and dispatch.overflow == "rounds",
    counts_drops=tight and dispatch.overflow == "drop",
    tensor=mesh.shape[axes.TENSOR] if shares_matrices else 1,
    wire=dispatch.wire,
    float8=dispatch.dtype == "float8",
    impl=impl,
  )


def _rounded(rows: float) -> int:
  return max(_ROWS, -(-math.ceil(rows) // _ROWS) * _ROWS)
