"""The output head of any model, tied to the embedding or its own.

Losses multiply by it a part of the vocabulary at a time; so it is taken from
the parameters, and not called.

Legend (parallel/axes.py): B batch, L length, D model, V vocabulary.
"""

from flax import linen as nn
from jax import lax
import jax.numpy as jnp

from dsx.models import deepseek
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import axes


def kernel(params, dtypes: dtypes_lib.Dtypes):
  """[D, V] in the compute dtype, of a model's `params`."""
  if "lm_head" in params:
    own = params["lm_head"]["kernel"]
  else:
    own = params["embed_tokens"]["embedding"].T
  return deepseek.head_kernel(own, dtypes)


def logits(hidden, of, dtypes: dtypes_lib.Dtypes):
  """float32 [B, L, V] of hidden [B, L, D] and a `kernel` [D, V]."""
  found = lax.dot_general(
    deepseek.head_input(hidden, dtypes),
    of,
    (((hidden.ndim - 1,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  names = (axes.BATCH, axes.LENGTH, axes.ACT_VOCAB)
  return nn.with_logical_constraint(found, names)
