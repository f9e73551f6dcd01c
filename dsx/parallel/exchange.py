"""Blocks of rows from every device of a mesh axis to every other.

One call, two wires with equal results. `padded` sends whole buffers with
`all_to_all`. `ragged` sends the rows in use with `ragged_all_to_all`, into the
same places; XLA's CPU backend has no such operation, so there the padded
exchange stands in for it, and clears what a ragged one would not have sent.

Legend (parallel/axes.py): n devices of the axis, C rows of a block.
"""

import functools

from jax import lax
import jax.numpy as jnp

from dsx.ops import platforms

# A TPU keeps and moves rows that are whole tiles of 8 x 128 without gaps; to
# flat ones it gives tiles of 2 x 128, which take four times as long to fill.
_LANES = 128
WIRES = ("auto", "padded", "ragged")


def counts(sent, axis):
  """How many rows each device sends here, int32 [n], from `sent` [n]."""
  return lax.all_to_all(sent, axis, 0, 0, tiled=True)


def exchange(x, sent, received, axis, *, wire: str = "auto"):
  """Sends block j of `x` to device j of `axis`, for all j at once.

  To be called in a `jax.shard_map` body. Not differentiable: `dispatch.py`
  knows that its transpose is the exchange with `sent` and `received` swapped.

  Args:
    x: [n, C, ...]; rows past the first `sent[j]` of block j are zero.
    sent: int32 [n], rows of each block that are in use.
    received: int32 [n], what `counts` makes of it.
    axis: a mesh axis, or a tuple of them, of n devices.
    wire: `padded`, `ragged`, or `auto`: ragged where the platform has it.

  Returns:
    [n, C, ...]; block i holds what device i sent, zeros after it.
  """
  if wire not in WIRES:
    raise ValueError(f"wire={wire!r}: expected one of {', '.join(WIRES)}")
  if wire == "auto":
    wire = "padded" if platforms.target() == "cpu" else "ragged"
  if wire == "padded":
    return _padded(x, axis)
  return lax.platform_dependent(
    x,
    sent,
    received,
    cpu=functools.partial(_cleared, axis=axis),
    default=functools.partial(_ragged, axis=axis),
  )


def _padded(x, axis):
  return lax.all_to_all(x, axis, 0, 0, tiled=True)


def _cleared(x, sent, received, *, axis):
  del sent
  row = jnp.arange(x.shape[1], dtype=jnp.int32)
  used = row[None, :] < received[:, None]
  used = used.reshape(*used.shape, *(1,) * (x.ndim - 2))
  return jnp.where(used, _padded(x, axis), jnp.zeros((), x.dtype))


def _ragged(x, sent, received, *, axis):
  n, capacity, *rest = x.shape
  start = jnp.arange(n, dtype=jnp.int32) * capacity
  here = jnp.full((n,), lax.axis_index(axis) * capacity, jnp.int32)
  whole = len(rest) == 1 and rest[0] % (8 * _LANES) == 0
  rows = x.reshape(n * capacity, *((-1, _LANES) if whole else rest))
  rows = lax.ragged_all_to_all(
    rows,
    jnp.zeros_like(rows),
    start,
    sent,
    here,
    received,
    axis_name=axis,
  )
  return rows.reshape(x.shape)
