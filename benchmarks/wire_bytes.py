"""Bytes that cross between nodes and within them: two hops against one.

  python -m benchmarks.wire_bytes

One layer of DeepSeek-V3's experts (256 in 8 groups, 8 of 4 groups to a token)
on 8 nodes x 8 devices, forward: dispatch and combine. For each transport:

  rows      that dispatch sends to other nodes, and to other devices of a
            node, counted by the program's own `dispatch.places`; the second
            table counts them from the routing alone
  ragged    bytes of those rows and of their way back: what
            `ragged_all_to_all` puts on the wire
  padded    bytes of whole buffers, read from the compiled program, in all
            rounds that the fullest buffer needs

Per device, averaged. Nothing is timed, and nothing as large as the rows is
held: the program is compiled for 64 CPU devices, and only indices travel.
--record appends the tables to docs/benchmarks.md.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=64"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from benchmarks import report
from dsx.models import config as config_lib
from dsx.ops import routing
from dsx.parallel import axes
from dsx.parallel import collectives
from dsx.parallel import dispatch as dispatch_lib
from dsx.parallel import expert
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import rounds
from dsx.parallel import sharding as sharding_lib
from dsx.parallel import ways

CONFIG = config_lib.DeepSeekConfig()
NODES, LOCAL = 8, 8
DEVICES = NODES * LOCAL
HEADER = [
  "transport",
  "room",
  "rounds",
  "rows to other nodes",
  "rows within nodes",
  "MB between nodes: ragged",
  "padded",
  "MB within nodes: ragged",
  "padded",
  "padding costs",
]


def routed(tokens: int) -> np.ndarray:
  """Experts [devices * tokens, K] of random tokens, routed as V3 routes."""
  scores = jax.random.normal(
    jax.random.key(0), (DEVICES * tokens, CONFIG.n_routed_experts)
  )
  return np.asarray(routing.route(jax.nn.sigmoid(scores), None, CONFIG).index)


def deduplicated(index: np.ndarray) -> dict[str, float]:
  """Rows that must leave a node, a device on average, by kind of copy."""
  experts = CONFIG.n_routed_experts
  own = np.arange(len(index)) // (len(index) // NODES)
  counts = {}
  for name, parts in (
    ("per expert", experts),
    ("per device", DEVICES),
    ("per node", NODES),
  ):
    part = np.sort(index // (experts // parts), axis=1)
    first = np.diff(part, axis=1, prepend=-1) > 0
    leaves = part // (parts // NODES) != own[:, None]
    counts[name] = (first & leaves).sum() / DEVICES
  return counts


def plan(mesh, tokens: int, dispatch: config_lib.Dispatch) -> ways.Way:
  """The way that `expert.run` plans for `tokens` tokens of a device."""
  return ways.plan(
    tokens=tokens,
    mesh=mesh,
    names=axes.EXPERT_MESH_AXES,
    expert_axes=axes.EXPERT_MESH_AXES,
    shares_matrices=False,
    config=CONFIG,
    impl="auto",
    dispatch=dispatch,
  )


def sent_rows(index: np.ndarray, mesh, way: ways.Way):
  """Rows [devices, hops, blocks] that each device sends to each block."""

  def body(index):
    there, first, sent = index + 1, jnp.int32(0), []
    for hop in way.hops:
      block = dispatch_lib.blocks_of(there - 1, first, hop)
      at = dispatch_lib.places(block, 0, hop)
      there = dispatch_lib.carry(there, (hop,), (at,), way.wire)
      first = first + lax.axis_index(hop.axis) * hop.experts
      sent.append(at.sent)
    return tuple(rows[None] for rows in sent)

  everywhere = PartitionSpec(axes.EXPERT_MESH_AXES)
  run = jax.shard_map(
    body,
    mesh=mesh,
    in_specs=everywhere,
    out_specs=everywhere,
    check_vma=False,
  )
  return [np.asarray(rows) for rows in jax.jit(run)(index)]


def elsewhere(sent, way: ways.Way) -> tuple[float, float]:
  """Rows a device sends to other nodes and within its own, on average."""
  device = np.arange(DEVICES)
  node, local = device // LOCAL, device % LOCAL
  between = within = 0.0
  for hop, rows in zip(way.hops, sent, strict=True):
    block = np.arange(hop.blocks)[None, :]
    if hop.axis == (axes.NODE,):
      between += rows[block != node[:, None]].sum()
    elif hop.axis == (axes.LOCAL,):
      within += rows[block != local[:, None]].sum()
    else:
      away = block // LOCAL != node[:, None]
      between += rows[away].sum()
      within += rows[~away & (block != device[:, None])].sum()
  return between / DEVICES, within / DEVICES


def needed_rounds(index: np.ndarray, mesh, way: ways.Way) -> int:
  """How often the program goes round for these tokens."""
  everywhere = PartitionSpec(axes.EXPERT_MESH_AXES)
  turns = jax.shard_map(
    lambda index: rounds.turns(index, way)[1],
    mesh=mesh,
    in_specs=everywhere,
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  return int(jax.jit(turns)(index))


def padded_bytes(mesh, tokens: int, dispatch: config_lib.Dispatch):
  """Bytes a device sends between and within nodes in one round, forward."""
  c = CONFIG
  rules = sharding_lib.Sharding(strategy="zero1")

  def layer(x, index, weight, *kernels):
    return expert.run(
      x, index, weight, kernels, c, impl="auto", dispatch=dispatch
    )

  def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)

  e, d, f = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
  rows = DEVICES, tokens
  k = c.num_experts_per_tok
  with sharding_lib.use(mesh, rules):
    text = (
      jax.jit(layer)
      .lower(
        shape(*rows, d),
        shape(*rows, k, dtype=jnp.int32),
        shape(*rows, k, dtype=jnp.float32),
        shape(e, d, f),
        shape(e, d, f),
        shape(e, f, d),
      )
      .compile()
      .as_text()
    )
  found = collectives.read(text, mesh, trips={rounds.FURTHER_ROUNDS: 0})
  found = [one for one in found if one.op == "all-to-all"]
  sizes = dict(mesh.shape)
  between = sum(
    collectives.crossing(one, axes.NODE, sizes) * one.times for one in found
  )
  return between, sum(one.total_wire_bytes for one in found) - between


def row(index: np.ndarray, mesh, tokens: int, transport: str, room):
  """One line of the table."""
  unlimited = config_lib.Dispatch(transport=transport, wire="padded")
  dispatch = config_lib.Dispatch(
    transport=transport, wire="padded", capacity_factor=room
  )
  whole, way = plan(mesh, tokens, unlimited), plan(mesh, tokens, dispatch)
  between, within = elsewhere(sent_rows(index, mesh, whole), whole)
  turns = needed_rounds(index, mesh, way)
  padded = [turns * sent for sent in padded_bytes(mesh, tokens, dispatch)]
  # A row in use costs what a row of the padded buffers does.
  slots = elsewhere(
    [np.full((DEVICES, hop.blocks), hop.capacity * turns) for hop in way.hops],
    way,
  )
  ragged = [
    sent * used / places
    for sent, used, places in zip(padded, (between, within), slots, strict=True)
  ]
  return [
    transport,
    "worst case" if room is None else f"{room} x mean",
    f"{turns}",
    f"{between:,.0f}",
    f"{within:,.0f}",
    f"{ragged[0] / 1e6:,.1f}",
    f"{padded[0] / 1e6:,.1f}",
    f"{ragged[1] / 1e6:,.1f}",
    f"{padded[1] / 1e6:,.1f}",
    f"{sum(padded) / sum(ragged):.2f}x",
  ]


def main():
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tokens", type=int, default=4096, help="of a device")
  parser.add_argument("--record", action="store_true")
  arguments = parser.parse_args()
  tokens = arguments.tokens
  mesh = mesh_lib.make(mesh_lib.MeshShape(data=1, node=NODES, local=LOCAL))
  index = routed(tokens)
  rows = [
    row(index, mesh, tokens, transport, room)
    for transport in ("two_hop", "flat")
    for room in (None, 1.5, 1.25)
  ]
  counts = deduplicated(index)
  body = (
    f"{tokens:,} random tokens on each of {NODES} x {LOCAL} devices, one "
    "layer, forward (dispatch and combine), rows of float32 (a CPU's "
    "compiler widens bfloat16, which is half of it), per device:\n\n"
    + report.table(HEADER, rows)
    + "\n\nRows that must leave a node, from the routing alone:\n\n"
    + report.table(
      ["one copy", "rows", "of two_hop's"],
      [
        [name, f"{count:,.0f}", f"{count / counts['per node']:.2f}x"]
        for name, count in counts.items()
      ],
    )
  )
  print(body)
  if arguments.record:
    report.record("Bytes between and within nodes", body)


if __name__ == "__main__":
  main()
