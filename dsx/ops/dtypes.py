"""The dtype policy: which numbers are kept in which precision.

DeepSeek-V3 section 3.3.1: master weights, gradients, router, norms, softmax
and losses stay in high precision whatever the matrices are computed in. What is
FP8 besides, and how, is a recipe of its own (`fp8_recipe.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from dsx.ops import fp8_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dtypes:
  """Precision of each kind of number, by numpy's dtype names.

  Attributes:
    param: master weights.
    compute: matrix multiplications and the residual stream.
    accum: accumulation of matrix products and of gradients.
    router: affinities, gate weights, router biases; float32 or wider.
    fp8: which matrix products are FP8, and how; None for none of them.
  """

  param: str = "float32"
  compute: str = "float32"
  accum: str = "float32"
  router: str = "float32"
  fp8: fp8_recipe.Recipe | None = None

  def __post_init__(self):
    for field in ("param", "compute", "accum", "router"):
      name = getattr(self, field)
      try:
        dtype = jnp.dtype(name)
      except TypeError as error:
        raise ValueError(
          f"{field}={name!r}: expected a floating dtype such as "
          "'float32' or 'bfloat16'"
        ) from error
      if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
          f"{field}={name!r}: expected a floating dtype such as "
          "'float32' or 'bfloat16'"
        )
    for field in ("accum", "router"):
      if jnp.finfo(getattr(self, field)).bits < 32:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected float32, because "
          "routing and accumulation lose small updates below it "
          "(section 3.3.1)"
        )


def cast(tree, dtype: str):
  """Casts every floating leaf of `tree` to `dtype`.

  >>> cast({"w": jnp.ones(2), "n": jnp.ones(2, jnp.int32)}, "bfloat16")["n"]
  Array([1, 1], dtype=int32)
  """

  def leaf(x):
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return jax.tree.map(leaf, tree)
