"""Which experts see which token, and how evenly.

DeepSeek-V3 section 2.1.2: affinities (eq. 15), node-limited top-k selection
with a bias that steers selection alone (eq. 16), gate weights (eq. 13), the
bias step, and the sequence-wise balance loss (eq. 17-20). DeepSeek-V2's
softmax routing is the same function under other settings.

`route` is the only definition of routing in dsx: the dense oracle, the local
and the all-to-all paths, losses and replay all read its result.

Legend (parallel/axes.py): T tokens, E experts, G expert groups, K experts per
token, B batch, L length.
"""

from typing import NamedTuple

import chex
import jax
from jax import lax
import jax.numpy as jnp


class Routing(NamedTuple):
  """Where tokens go.

  Attributes:
    index: int32 [T, K], chosen experts.
    weight: float32 [T, K], gate weight of each; carries the gradient.
    load: float32 [E], how many tokens chose each expert.
  """

  index: jax.Array
  weight: jax.Array
  load: jax.Array


def affinities(logits, scoring_func: str):
  """Token-to-expert affinities s (eq. 15) of float32 logits [..., E]."""
  if scoring_func == "sigmoid":
    return jax.nn.sigmoid(logits)
  return jax.nn.softmax(logits, axis=-1)


def _group_scores(choice, config):
  """Scores of expert groups [T, G]: V3 the sum of the top two, V2 the max.

  NOTE(paper): section 2.1.2 sums the top K_r/M affinities of a node, which is
  2 for V3; released code fixes 2 for every K_r and M, and so do we.
  """
  grouped = choice.reshape(choice.shape[0], config.n_group, -1)
  if config.topk_method == "noaux_tc":
    best, _ = lax.top_k(grouped, min(2, grouped.shape[-1]))
    return best.sum(-1)
  return grouped.max(-1)


def _within_best_groups(choice, config):
  """`choice` with experts outside the best `topk_group` groups at -inf."""
  _, best = lax.top_k(_group_scores(choice, config), config.topk_group)
  groups = jnp.arange(config.n_group, dtype=best.dtype)
  kept = (best[:, :, None] == groups[None, None, :]).any(axis=1)  # [T, G]
  kept = jnp.repeat(kept, choice.shape[-1] // config.n_group, axis=-1)
  return jnp.where(kept, choice, -jnp.inf)


def route(scores, bias, config, *, mask=None, experts=None) -> Routing:
  """Chooses K experts for each token, or goes by a choice that was made.

  Args:
    scores: float32 [T, E], affinities.
    bias: float32 [E], added for selection only (eq. 16), or None.
    config: an object with `DeepSeekConfig`'s routing fields.
    mask: optional bool [T]; tokens that are False are routed but not counted
      in the load (padding, positions without an MTP target).
    experts: optional integers [T, K], replayed: the choice of another forward
      pass over the same tokens, whose scores may have been rounded otherwise.
      Weights are of these scores all the same, so that they have a gradient. A
      token with a negative one among them chooses for itself.

  Returns:
    The `Routing`. Gradients reach `scores` through `weight` alone.
  """
  chex.assert_rank(scores, 2)
  tokens = scores.shape[0], config.num_experts_per_tok
  if experts is not None and experts.shape != tokens:
    raise ValueError(
      f"experts of shape {tuple(experts.shape)}: expected {tokens}, the "
      "num_experts_per_tok experts of each token; record them with this model"
    )
  chex.assert_type(scores, jnp.float32)
  choice = lax.stop_gradient(scores)
  if bias is not None:
    choice = choice + lax.stop_gradient(bias)[None, :]
  if config.topk_method != "greedy" and config.topk_group < config.n_group:
    choice = _within_best_groups(choice, config)
  _, index = lax.top_k(choice, config.num_experts_per_tok)
  index = index.astype(jnp.int32)
  if experts is not None:
    made = (experts >= 0).all(-1, keepdims=True)
    index = jnp.where(made, experts.astype(jnp.int32), index)
  return Routing(
    index,
    gate_weights(scores, index, config),
    _load(index, scores.shape[-1], mask),
  )


def gate_weights(scores, index, config):
  """Gate weights [T, K] (eq. 13) of unbiased affinities at `index`."""
  experts = jnp.arange(scores.shape[-1], dtype=index.dtype)
  chosen = index[:, :, None] == experts[None, None, :]  # [T, K, E]
  # A masked sum, because the gradient of a gather is a scatter, which is an
  # order of magnitude slower than this on every platform at K x E so small.
  weight = jnp.where(chosen, scores[:, None, :], 0.0).sum(-1)
  if config.norm_topk_prob:
    weight = weight / (weight.sum(-1, keepdims=True) + 1e-20)
  return weight * config.routed_scaling_factor


def _load(index, n_experts: int, mask):
  experts = jnp.arange(n_experts, dtype=index.dtype)
  chosen = index[:, :, None] == experts[None, None, :]
  if mask is not None:
    chosen &= mask[:, None, None]
  return chosen.sum((0, 1), dtype=jnp.int32).astype(jnp.float32)


def balance_loss(scores, num_experts_per_tok: int, *, mask=None):
  """The complementary sequence-wise balance loss without its alpha.

  Eq. 17-20: f counts the *unbiased, ungrouped* top-k of each sequence (not
  the set that was routed to), P is the mean normalised affinity.

  Args:
    scores: float32 [B, L, E], affinities.
    num_experts_per_tok: K_r.
    mask: optional bool [B, L] of the tokens that count.

  Returns:
    float32 [B], the loss of each sequence; 1 when perfectly balanced.
  """
  chex.assert_rank(scores, 3)
  n_experts = scores.shape[-1]
  if mask is None:
    mask = jnp.ones(scores.shape[:2], bool)
  weight = mask.astype(jnp.float32)[:, :, None]
  tokens = jnp.maximum(weight.sum(1), 1.0)  # [B, 1]
  # The k-th largest affinity is the bar of the top-k set.
  best, _ = lax.top_k(lax.stop_gradient(scores), num_experts_per_tok)
  chosen = (scores >= best[..., -1:]) * weight
  share = chosen.sum(1) / tokens * (n_experts / num_experts_per_tok)  # [B, E]
  normalised = scores / (scores.sum(-1, keepdims=True) + 1e-20)
  mean = (normalised * weight).sum(1) / tokens  # [B, E]
  return (lax.stop_gradient(share) * mean).sum(-1)


def bias_step(bias, load, speed):
  """One step of auxiliary-loss-free balancing (section 2.1.2).

  Args:
    bias: float32 [..., E].
    load: float32 [..., E], tokens of the *whole* batch per expert.
    speed: gamma, the bias update speed.

  Returns:
    The bias, lowered by `speed` where overloaded, raised where underloaded.
  """
  return bias + speed * jnp.sign(load.mean(-1, keepdims=True) - load)


def max_violation(load):
  """MaxVio [...] of loads [..., E]: how far the busiest expert is over mean."""
  mean = load.mean(-1)
  return load.max(-1) / jnp.maximum(mean, 1e-9) - 1.0
