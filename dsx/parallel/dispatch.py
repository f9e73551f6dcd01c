"""Tokens to the devices of their experts, and results back.

DeepSeek-V3 section 3.2.2. A way to the experts is a sequence of hops, each an
exchange over some mesh axes: two (over `node`, then over `local`) or one. A
token takes a hop once for every *block* of experts that it needs behind it,
however many of its experts are there; `topk_group` bounds the blocks of the
first hop. The way back adds up the results of a token's copies at the end of
each hop, so that a node's results cross the slow network as one row.

`spread` is a linear map P of rows, and `collect` is its transpose: each is the
other's gradient, and both are gathers in either direction. FP8 rides with
`spread` alone, hence with activations forward and with gradients backward, as
the report has it (section 3.3.3).

Legend (parallel/axes.py): T rows at hand, K experts per token, D width;
n blocks of a hop, C rows of a block, S most blocks that a row goes to.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsx.ops import permutation
from dsx.ops import tile_scaled
from dsx.parallel import exchange as exchange_lib

_LANES = 128


class Hop(NamedTuple):
  """A hop before any token is known (static).

  Attributes:
    axis: mesh axes that it crosses.
    blocks: n, devices along them.
    experts: experts behind one block.
    reach: S, most blocks that one row can need.
    capacity: C, rows that a block has room for.
  """

  axis: tuple[str, ...]
  blocks: int
  experts: int
  reach: int
  capacity: int


class Places(NamedTuple):
  """Where rows lie in the buffers of one hop.

  Attributes:
    source: int32 [n, C], the row in each place; T where there is none.
    place: int32 [T, S], the places j * C + c of each row; n * C for none.
    sent: int32 [n], rows of each block.
    received: int32 [n], rows that come from each device.
  """

  source: jax.Array
  place: jax.Array
  sent: jax.Array
  received: jax.Array


def blocks_of(index, first, hop: Hop):
  """The distinct blocks that each row needs, int32 [T, S]; n for none.

  Args:
    index: int32 [T, K], experts of each row; negative for none.
    first: int32 [], the first expert behind block 0.
    hop: the hop.
  """
  block = (index - first) // hop.experts
  known = (index >= 0) & (block >= 0) & (block < hop.blocks)
  block = jnp.where(known, block, hop.blocks)
  same = block[:, :, None] == block[:, None, :]
  earlier = jnp.tril(jnp.ones((index.shape[1],) * 2, bool), -1)[None]
  block = jnp.where((same & earlier).any(-1), hop.blocks, block)
  return jnp.sort(block, axis=1)[:, : hop.reach]


def places(block, turn, hop: Hop) -> Places:
  """Gives the rows of each block their places.

  Args:
    block: int32 [T, S], from `blocks_of`.
    turn: int32 [], rows `turn` * C to (`turn` + 1) * C of each block travel.
    hop: the hop.

  Returns:
    The `Places`; a collective over the hop's axis.
  """
  n, capacity = hop.blocks, hop.capacity
  order = permutation.by_expert(block, n)
  sizes = permutation.group_sizes(block, n)
  first = jnp.cumsum(sizes) - sizes + turn * capacity
  sent = jnp.clip(sizes - turn * capacity, 0, capacity)
  row = jnp.arange(capacity, dtype=jnp.int32)[None, :]
  copy = jnp.minimum(first[:, None] + row, block.size - 1)
  source = permutation.take(order.copy, copy) // block.shape[1]
  source = jnp.where(row < sent[:, None], source, block.shape[0])
  known = block < n
  own = jnp.where(known, block, 0)
  rank = order.row - permutation.take(first, own)
  goes = known & (rank >= 0) & (rank < capacity)
  place = jnp.where(goes, own * capacity + rank, n * capacity)
  return Places(
    source=source,
    place=place,
    sent=sent,
    received=exchange_lib.counts(sent, hop.axis),
  )


def _gather(x, source):
  """Rows of x [T, ...] at source [n, C], zeros past the last row."""
  return x.at[source].get(mode="fill", fill_value=0)


def _forth(x, hop: Hop, at: Places, wire: str):
  """x [T, ...] over one hop, [n * C, ...]."""
  x = _gather(x, at.source)
  x = exchange_lib.exchange(x, at.sent, at.received, hop.axis, wire=wire)
  return x.reshape(-1, *x.shape[2:])


def _back(y, hop: Hop, at: Places, wire: str):
  """y [n * C, ...] back over one hop and summed, [T, ...]."""
  y = y.reshape(hop.blocks, hop.capacity, *y.shape[1:])
  # Junk in places that hold no row must not travel, nor be added.
  row = jnp.arange(hop.capacity, dtype=jnp.int32)[None, :]
  used = row < at.received[:, None]
  used = used.reshape(*used.shape, *(1,) * (y.ndim - 2))
  y = jnp.where(used, y, jnp.zeros((), y.dtype))
  y = exchange_lib.exchange(y, at.received, at.sent, hop.axis, wire=wire)
  y = y.reshape(-1, *y.shape[2:])
  total = jnp.zeros((at.place.shape[0], *y.shape[1:]), jnp.float32)
  for s in range(at.place.shape[1]):  # one copy's rows exist at a time
    total += _gather(y, at.place[:, s]).astype(jnp.float32)
  return total.astype(y.dtype)


def carry(x, hops: tuple[Hop, ...], at: tuple[Places, ...], wire: str):
  """`spread` of numbers that are exact: indices, weights, scales."""
  for hop, where in zip(hops, at, strict=True):
    x = _forth(x, hop, where, wire)
  return x


def _in_tiles(x):
  """Rows [T, D] as [T, D / 128, 128], each in whole tiles of a TPU's memory.

  Its tiles of 8 x 128 hold parts of eight rows otherwise, and every gather and
  exchange would take the buffers, larger than `x`, apart and together again.
  """
  whole = x.shape[1] % (8 * _LANES) == 0
  return x.reshape(x.shape[0], -1, _LANES) if whole else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def spread(x, at: tuple[Places, ...], hops: tuple[Hop, ...], wire, float8):
  """Takes rows to where their experts are.

  Args:
    x: [T, D].
    at: where they lie at each hop.
    hops: the way.
    wire: of `exchange.exchange`.
    float8: whether they travel as `tile_scaled` FP8.

  Returns:
    [n * C, D] of the last hop, in x's dtype; places without a row are zero.
  """
  if not hops:
    return x
  if not float8:
    return carry(_in_tiles(x), hops, at, wire).reshape(-1, x.shape[-1])
  tiles = tile_scaled.quantise(x)
  values = carry(tiles.values, hops, at, wire)
  scales = carry(tiles.scales, hops, at, wire)
  return tile_scaled.TileScaled(values, scales).dequantise(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def collect(y, at: tuple[Places, ...], hops: tuple[Hop, ...], wire, float8):
  """Adds up rows where they came from: the transpose of `spread`.

  Args:
    y: [n * C, D] of the last hop.
    at: as for `spread`.
    hops: as for `spread`.
    wire: of `exchange.exchange`.
    float8: of the gradient's way forth; rows travel back as they are.

  Returns:
    [T, D] in y's dtype, summed in float32 at each hop.
  """
  del float8
  width, y = y.shape[-1], _in_tiles(y)
  for hop, where in zip(reversed(hops), reversed(at), strict=True):
    y = _back(y, hop, where, wire)
  return y.reshape(-1, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def spread_already(x, there, at: tuple[Places, ...], hops, wire):
  """`spread` of x where its result `there` is known: only its gradient.

  Args:
    x: [T, K].
    there: [n * C, K] of the last hop.
    at: as for `spread`.
    hops: as for `spread`.
    wire: of `exchange.exchange`.
  """
  del x, at, hops, wire
  return there


def _already_forward(x, there, at, hops, wire):
  return spread_already(x, there, at, hops, wire), at


def _already_backward(hops, wire, at, dy):
  return collect(dy, at, hops, wire, False), None, None


spread_already.defvjp(_already_forward, _already_backward)


def _spread_forward(x, at, hops, wire, float8):
  return spread(x, at, hops, wire, float8), at


def _spread_backward(hops, wire, float8, at, dy):
  return collect(dy, at, hops, wire, float8), None


def _collect_forward(y, at, hops, wire, float8):
  return collect(y, at, hops, wire, float8), at


def _collect_backward(hops, wire, float8, at, dx):
  return spread(dx, at, hops, wire, float8), None


spread.defvjp(_spread_forward, _spread_backward)
collect.defvjp(_collect_forward, _collect_backward)
