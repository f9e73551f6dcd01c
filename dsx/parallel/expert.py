"""Where the routed experts run.

Section 2.1.2, eq. 12. `ops.expert_mlp` takes tokens through their experts on
one device; nothing is dropped. Under a mesh that divides the batch,
`over_batch` runs it on every device's own tokens, with the experts' weights
gathered to where the tokens are.

Legend (parallel/axes.py): T tokens, D model, K experts per token.
"""

import jax
from jax.sharding import PartitionSpec

from dsx.parallel import axes


def over_batch(experts):
  """Runs `experts(x, index, weight, *weights)` where the tokens are.

  Args:
    experts: a function of x [T, D], index [T, K], weight [T, K] and any
      number of expert weights, which returns [T, D].

  Returns:
    The same function. Without a mesh (or with one that does not divide the
    batch) it is `experts` itself; with one, tokens stay on their device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  names = [a for a in axes.BATCH_MESH_AXES if mesh.shape.get(a, 1) > 1]
  if not names:
    return experts
  tokens = PartitionSpec(tuple(names))

  def mapped(x, index, weight, *weights):
    return jax.shard_map(
      experts,
      in_specs=(tokens, tokens, tokens) + (PartitionSpec(),) * len(weights),
      out_specs=tokens,
      axis_names=set(names),
      check_vma=False,
    )(x, index, weight, *weights)

  return mapped
