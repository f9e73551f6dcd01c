"""x @ w with a gradient that moves no memory.

JAX derives the gradient of `w` as a transposed product of `dy` and `x`. On a
CPU, XLA then writes `dy` out transposed, and computes whatever elementwise
chain led to it once more while doing so: the backward pass of a SwiGLU block
takes twice its multiplications' time. Asking for x transposed @ dy directly,
in the orientation of `w`, reads both as they lie.

Legend (parallel/axes.py): D in, F out.
"""

import functools

import jax
from jax import lax

from dsx.ops import manual_axes


def matmul(x, w, *, precision=None):
  """Multiplies the last axis of `x` by a matrix.

  Args:
    x: [..., D].
    w: [D, F], in x's dtype.
    precision: of `lax.dot_general`.

  Returns:
    [..., F] in x's dtype.
  """
  if w.ndim != 2 or x.shape[-1:] != w.shape[:1] or x.dtype != w.dtype:
    raise ValueError(
      f"x {x.shape} {x.dtype}, w {w.shape} {w.dtype}: expected [..., D] and "
      "[D, F] in one dtype; cast or transpose one of them"
    )
  return _matmul(*manual_axes.align(x, w), precision)


def _contract(x, y, x_axes, y_axes, precision):
  dimensions = ((x_axes, y_axes), ((), ()))
  return lax.dot_general(x, y, dimensions, precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x, w, precision):
  return _contract(x, w, (x.ndim - 1,), (0,), precision)


def _forward(x, w, precision):
  return _matmul(x, w, precision), (x, w)


def _backward(precision, saved, dy):
  x, w = saved
  rows = tuple(range(x.ndim - 1))
  dx = _contract(dy, w, (dy.ndim - 1,), (1,), precision)
  return dx, _contract(x, dy, rows, rows, precision)


_matmul.defvjp(_forward, _backward)
