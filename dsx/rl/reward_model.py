"""A reward model: the policy's architecture with one number for a head.

DeepSeek-R1 section 2.3.4 and its supplement: the same architecture as R1, with
a scalar head. The number at a response's last token is its reward.

  pairs   loss = -log sigmoid(r(chosen) - r(rejected))      Bradley and Terry
  labels  loss = -log sigmoid(r) if good, else -log sigmoid(-r)

Legend (parallel/axes.py): B rows, L tokens of a row, D model.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import axes

POLICY, SCORE = "policy", "score"
# What a policy has and a reward model has not.
_HEAD = "lm_head"


class Score(nn.Module):
  """A number for every token, in float32; it starts at zero."""

  @nn.compact
  def __call__(self, hidden):
    """Float32 [B, L] of hidden [B, L, D]."""
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(nn.initializers.zeros, (axes.NORM,)),
      (hidden.shape[-1],),
      jnp.float32,
    )
    bias = self.param("bias", nn.initializers.zeros, (), jnp.float32)
    wide = hidden.astype(jnp.float32)
    return jnp.einsum("bld,d->bl", wide, kernel) + bias


class RewardModel(nn.Module):
  """DeepSeek without its output head, and the score.

  Attributes:
    config: the policy's; it has no MTP module here, see `without_mtp`.
    dtypes: which numbers have which precision.
    execution: how it is run.
  """

  config: config_lib.DeepSeekConfig
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()

  def setup(self):
    """Declares both parts."""
    self.policy = deepseek.DeepSeek(self.config, self.dtypes, self.execution)
    self.score = Score()

  def __call__(self, tokens, *, valid=None):
    """The reward of every row's text up to each token.

    Args:
      tokens: int32 [B, L].
      valid: bool [B, L]; the rest is padding, after the text.

    Returns:
      (float32 [B, L], aux of `DeepSeek.features`).
    """
    aux = self.policy.features(tokens, valid=valid, mtp="none")
    return self.score(aux["hidden"]), aux


def from_policy(variables, fresh):
  """Variables of a reward model that starts as a policy.

  Args:
    variables: the policy's `params` and, perhaps, `router_bias`, with stacked
      layers and no MTP modules.
    fresh: the reward model's own, whose score is taken.
  """
  params = dict(variables["params"])
  params.pop(_HEAD, None)
  made = {"params": {POLICY: params, SCORE: fresh["params"][SCORE]}}
  if variables.get("router_bias"):
    made["router_bias"] = {POLICY: variables["router_bias"]}
  return made


def last(scores, length):
  """Float32 [B]: scores [B, L] at the last of `length` [B] tokens."""
  place = jnp.maximum(length - 1, 0)[:, None]
  return jnp.take_along_axis(scores, place, axis=1)[:, 0]


def pair_losses(rewards):
  """Losses of pairs.

  Args:
    rewards: float32 [2N]: those of N chosen responses, then of the rejected.

  Returns:
    (loss float32 [N], right bool [N], whether the chosen has more).
  """
  chosen, rejected = jnp.split(rewards, 2)
  margin = chosen - rejected
  return -jax.nn.log_sigmoid(margin), margin > 0


def label_losses(rewards, good):
  """Losses of labelled responses.

  Args:
    rewards: float32 [N].
    good: bool [N].

  Returns:
    (loss float32 [N], right bool [N], whether its sign is the label's).
  """
  sign = jnp.where(good, 1.0, -1.0)
  return -jax.nn.log_sigmoid(sign * rewards), sign * rewards > 0
