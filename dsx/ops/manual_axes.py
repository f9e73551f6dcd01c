"""Arrays that differ between the shards of a `jax.shard_map` body.

Under `check_vma=True` JAX types each array with the manual mesh axes it may
differ over, and refuses a loop whose carry begins as a constant and ends as
data, as well as a custom gradient that differs over more axes than its
primal. Bringing everything to the same axes *before* such code settles both:
the transpose of `pcast` is the sum over shards that the gradient needs.

Outside `shard_map`, and under `check_vma=False`, these do nothing.
"""

from typing import Any

import jax
from jax import lax


def _varying(x) -> frozenset:
  manual = getattr(jax.typeof(x), "manual_axis_type", None)
  return getattr(manual, "varying", frozenset())


def align(*arrays) -> tuple[Any, ...]:
  """The same arrays, each varying over the mesh axes that any of them does.

  Args:
    *arrays: arrays of any shape; None passes through.

  Returns:
    A tuple of the arrays in order.
  """
  axes = frozenset().union(*(_varying(x) for x in arrays if x is not None))

  def widen(x):
    missing = tuple(sorted(axes - _varying(x))) if x is not None else ()
    return lax.pcast(x, missing, to="varying") if missing else x

  return tuple(widen(x) for x in arrays)


def like(constant, *arrays):
  """`constant`, varying over the mesh axes that any of `arrays` does."""
  return align(constant, *arrays)[0]
