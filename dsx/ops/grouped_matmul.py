"""One matrix per group of rows: the experts' matrix multiplication.

DeepSeek-V3 section 2.1.2: after tokens are sorted by expert, each expert
multiplies its own rows. `grouped_matmul` is the one door; what is behind it
differs by platform, because `lax.ragged_dot` costs experts x tokens on CPU
(two orders of magnitude at 64 experts) and is a native kernel on TPU.

Legend (parallel/axes.py): T rows, E groups (experts), D in, F out.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import manual_axes
from dsx.ops import platforms
from dsx.ops import row_blocks
from dsx.ops import tiled_matmul

IMPLEMENTATIONS = ("auto", "blocked", "tiled", "ragged", "dense")


def grouped_matmul(x, w, group_sizes, *, impl: str = "auto"):
  """Multiplies consecutive groups of rows, each by its group's matrix.

  Args:
    x: [T, D], rows sorted by group.
    w: [E, D, F], one matrix per group, in x's dtype.
    group_sizes: int32 [E], rows of each group, summing to at most T.
    impl: `blocked` (a loop over blocks of rows; CPU), `tiled` (kernels for
      many rows; TPU), `ragged` (`lax.ragged_dot`), `dense` (every row times
      every matrix, the slow oracle) or `auto`, the fastest of these on the
      current platform.

  Returns:
    [T, F] in x's dtype, accumulated in float32; rows past the last group are
    zero. Differentiable in `x` and `w`.

  Raises:
    ValueError: if `impl` is unknown or shapes or dtypes do not fit together.

  >>> x, w = jnp.ones((3, 1)), jnp.array([[[1.0]], [[2.0]]])
  >>> grouped_matmul(x, w, jnp.array([1, 1])).ravel().tolist()
  [1.0, 2.0, 0.0]
  """
  _check(x, w, group_sizes, impl)
  if impl == "auto":
    impl = _fastest(platforms.target(), x, w)
  x, w, group_sizes = manual_axes.align(x, w, group_sizes)
  multiply = {
    "blocked": _blocked,
    "tiled": tiled_matmul.multiply,
    "ragged": _ragged,
    "dense": _dense,
  }[impl]
  return multiply(x, w, group_sizes)


def _fastest(platform: str, x, w) -> str:
  if platform == "tpu" and tiled_matmul.suits(x, w):
    return "tiled"
  return "blocked" if platform == "cpu" else "ragged"


def _check(x, w, group_sizes, impl):
  if impl not in IMPLEMENTATIONS:
    raise ValueError(
      f"impl={impl!r}: expected one of {', '.join(IMPLEMENTATIONS)}"
    )
  shapes = f"x {x.shape}, w {w.shape}, group_sizes {group_sizes.shape}"
  if x.ndim != 2 or w.ndim != 3 or group_sizes.shape != w.shape[:1]:
    raise ValueError(f"{shapes}: expected [T, D], [E, D, F] and [E]")
  if x.shape[1] != w.shape[1]:
    raise ValueError(f"{shapes}: x's columns must be as many as w's rows, D")
  if x.dtype != w.dtype:
    raise ValueError(f"x {x.dtype}, w {w.dtype}: cast both to one dtype")


def _dense(x, w, group_sizes):
  """Every row times every matrix, and then the row's own group picked."""
  stop = jnp.cumsum(group_sizes)[None, :]
  row = jnp.arange(x.shape[0])[:, None]
  own = (row >= stop - group_sizes[None, :]) & (row < stop)  # [T, E]
  y = jnp.einsum("td,edf->tef", x, w, preferred_element_type=jnp.float32)
  return jnp.where(own[:, :, None], y, 0.0).sum(1).astype(x.dtype)


def _ragged(x, w, group_sizes):
  return lax.ragged_dot(
    x, w, group_sizes.astype(jnp.int32), preferred_element_type=jnp.float32
  ).astype(x.dtype)


@jax.custom_vjp
def _blocked(x, w, group_sizes):
  return _multiply(x, w, _blocks(x, group_sizes), contract=1)


def _blocked_forward(x, w, group_sizes):
  return _blocked(x, w, group_sizes), (x, w, group_sizes)


def _blocked_backward(saved, dy):
  x, w, group_sizes = saved
  blocks = _blocks(x, group_sizes)
  dx = _multiply(dy, w, blocks, contract=2)
  dw = _outer(x, dy, blocks, w.shape[0]).astype(w.dtype)
  return dx, dw, None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _blocks(x, group_sizes):
  rows = min(128, x.shape[0])
  return row_blocks.cut(group_sizes, x.shape[0], rows)


def _multiply(x, w, blocks, contract: int):
  """x @ w (`contract` 1) or x @ w transposed (`contract` 2), by groups."""
  dot = functools.partial(
    lax.dot_general,
    dimension_numbers=(((1,), (contract - 1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )

  def block(i, y):
    start = blocks.start[i]
    rows = lax.dynamic_slice_in_dim(x, start, blocks.rows)
    new = dot(rows, lax.dynamic_index_in_dim(w, blocks.group[i], 0, False))
    old = lax.dynamic_slice_in_dim(y, start, blocks.rows)
    new = jnp.where(blocks.mine(i), new.astype(y.dtype), old)
    return lax.dynamic_update_slice_in_dim(y, new, start, 0)

  zero = jnp.zeros((x.shape[0], w.shape[3 - contract]), x.dtype)
  return lax.fori_loop(0, blocks.count, block, manual_axes.like(zero, x))


def _outer(x, dy, blocks, n_groups: int):
  """Each group's x transposed @ dy, float32 [E, D, F]."""

  def block(i, dw):
    rows = lax.dynamic_slice_in_dim(x, blocks.start[i], blocks.rows)
    grads = lax.dynamic_slice_in_dim(dy, blocks.start[i], blocks.rows)
    new = lax.dot_general(
      rows,
      jnp.where(blocks.mine(i), grads, 0),
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    old = lax.dynamic_index_in_dim(dw, blocks.group[i], 0, False)
    return lax.dynamic_update_index_in_dim(dw, old + new, blocks.group[i], 0)

  zero = jnp.zeros((n_groups, x.shape[1], dy.shape[1]), jnp.float32)
  return lax.fori_loop(0, blocks.count, block, manual_axes.like(zero, x))
