"""The grouped matrix multiplication of TPUs: JAX's own `megablox` kernels.

`lax.ragged_dot` has a native kernel there as well, but of tiles so narrow that
the matrices are read again for every 128 rows, and its weight gradient becomes
a masked product of every row with every group. These tiles are large enough to
keep the matrix units busy, and only those with rows in use are visited.

Legend (parallel/axes.py): T rows, E groups, D in, F out.
"""

import importlib

import jax
import jax.numpy as jnp

from dsx.ops import platforms

# Its package has a function of the same name, which hides it from `import`.
_KERNELS = "jax.experimental.pallas.ops.tpu.megablox.gmm"

# Rows and columns of a tile: with two buffers each, and float32 sums, they fill
# most of the 16 MiB that a program may use of a core's vector memory.
_ROWS = 512
_COLUMNS = 1024
_LANES = 128


def suits(x, w) -> bool:
  """Whether the kernels take `x` [T, D] and `w` [E, D, F] at full speed."""
  widths = x.shape[1] % _LANES == 0 and w.shape[2] % _LANES == 0
  return widths and x.shape[0] >= _ROWS and x.dtype == jnp.bfloat16


@jax.custom_vjp
def multiply(x, w, group_sizes):
  """As `grouped_matmul.grouped_matmul`; interpreted where there is no TPU."""
  return _gmm(x, w, group_sizes, False)


def _forward(x, w, group_sizes):
  return multiply(x, w, group_sizes), (x, w, group_sizes)


def _backward(saved, dy):
  x, w, group_sizes = saved
  dx = _gmm(dy, w, group_sizes, True)
  dw = _tgmm(x, dy, group_sizes).astype(w.dtype)
  return dx, dw, None


multiply.defvjp(_forward, _backward)


def _gmm(x, w, group_sizes, transposed: bool):
  """x @ w, or x @ w transposed, by groups; zeros past the last."""
  rows = x.shape[0]
  x, tile = _padded(x)
  columns = w.shape[1 if transposed else 2]
  y = importlib.import_module(_KERNELS).gmm(
    x,
    w,
    group_sizes,
    x.dtype,
    (tile, _part(x.shape[1]), _part(columns)),
    transpose_rhs=transposed,
    interpret=_interpreted(),
  )
  used = jnp.arange(rows, dtype=jnp.int32) < group_sizes.sum()
  # Tiles without rows are not written at all.
  return jnp.where(used[:, None], y[:rows], jnp.zeros((), y.dtype))


def _tgmm(x, dy, group_sizes):
  """Each group's x transposed @ dy, [E, D, F]."""
  (x, tile), (dy, _) = _padded(x), _padded(dy)
  return importlib.import_module(_KERNELS).tgmm(
    x.swapaxes(0, 1),
    dy,
    group_sizes,
    x.dtype,
    (tile, _part(x.shape[1]), _part(dy.shape[1])),
    interpret=_interpreted(),
  )


def _padded(x):
  """`x` with rows for whole tiles, and the rows of a tile."""
  rows = x.shape[0]
  tile = next(
    (t for t in (_ROWS, 256, 128) if rows % t == 0), min(128, -(-rows // 8) * 8)
  )
  return jnp.pad(x, ((0, -rows % tile), (0, 0))), tile


def _part(width: int) -> int:
  """The widest tile that divides `width`; all of it if none does."""
  tiles = range(min(_COLUMNS, width), 0, -_LANES)
  whole = min(width, _COLUMNS)
  return next((t for t in tiles if width % t == 0), whole)


def _interpreted() -> bool:
  return platforms.target() != "tpu"
