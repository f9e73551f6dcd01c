"""Every token's losses, and the sum of them all.

Next-token loss of the main model, MTP losses (section 2.2, eq. 24 and 25) and
the sequence-wise balance loss (section 2.1.2, eq. 17).

Legend (parallel/axes.py): B batch, L length, D model, V vocabulary.
"""

from typing import Any

from flax import linen as nn
from jax import lax
import jax.numpy as jnp

from dsx.models import deepseek
from dsx.models import head as head_lib
from dsx.models import language_model
from dsx.parallel import axes
from dsx.training import cross_entropy


def target_mask(batch, depth: int):
  """Which positions of L predict a token `depth` + 1 ahead, bool [B, L].

  A target must exist inside the record, belong to the segment of its
  position and be one that the loss counts (`loss_mask`, for SFT).

  Args:
    batch: `tokens` int32 [B, L+1], and optionally `segment_ids` and
      `loss_mask`, both [B, L+1].
    depth: 0 for the main model, k for MTP module k.
  """
  rows, width = batch["tokens"].shape
  length = width - 1
  exists = jnp.arange(length) < length - depth
  mask = jnp.broadcast_to(exists[None, :], (rows, length))
  if "segment_ids" in batch:
    mask &= shifted(batch["segment_ids"], depth) == batch["segment_ids"][:, :-1]
  if "loss_mask" in batch:
    mask &= shifted(batch["loss_mask"], depth).astype(bool)
  return mask


def shifted(record, depth: int):
  """Element i + depth + 1 at position i of [B, L], from a record [B, L+1]."""
  return jnp.roll(record, -(depth + 1), axis=1)[:, :-1]


def restarted_positions(segment_ids):
  """Positions [B, L] that count from 0 in every segment of [B, L].

  A sample in a packed row is then at the very angles that it has alone.
  """
  index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
  before = jnp.roll(segment_ids, 1, axis=1)
  starts = jnp.where((segment_ids != before) | (index == 0), index, 0)
  return index - lax.cummax(starts, axis=1)


def token_losses(model: language_model.Model, variables, batch, *, mtp=True):
  """Every token's losses and the model's auxiliary outputs.

  Args:
    model: the model.
    variables: `params` and `router_bias`.
    batch: see `target_mask`.
    mtp: whether MTP losses are computed.

  Returns:
    (nats, masks, aux): tuples with one float32 [B, L] and one bool [B, L] per
    prediction depth, main model first; aux of `DeepSeek.features`.
  """
  tokens = batch["tokens"]
  segments = batch.get("segment_ids")
  positions = valid = None
  if segments is not None:
    segments = segments[:, :-1]
    positions, valid = (
      restarted_positions(segments),
      segments > 0,
    )  # 0 is padding
  aux: Any = model.apply(
    variables,
    tokens[:, :-1],
    positions,
    segments,
    valid=valid,
    method="features",
  )
  kernel = head_lib.kernel(variables["params"], model.dtypes)
  hiddens = (aux["hidden"], *(aux["mtp_hidden"] if mtp else ()))
  nats, masks = [], []
  for depth, hidden in enumerate(hiddens):
    mask = _whole(target_mask(batch, depth))
    targets = _whole(shifted(tokens, depth))
    hidden = deepseek.head_input(hidden, model.dtypes)
    own = cross_entropy.cross_entropy(hidden, kernel, targets)
    nats.append(jnp.where(mask, own, 0.0))
    masks.append(mask)
  return tuple(nats), tuple(masks), aux


def _whole(x):
  """`x` [B, L], not divided by length: shifting it would send single tokens."""
  return nn.with_logical_constraint(x, (axes.BATCH, None))


def total(
  model, params, router_bias, batch, denominators, weights, collections=None
):
  """The training loss of one micro-batch, as its share of the global one.

  Args:
    model: the model.
    params: parameters.
    router_bias: the routers' biases.
    batch: see `target_mask`.
    denominators: `targets`, main-model targets of the whole global batch,
      and `sequences`, its sequences; so that the micro-batches' losses and
      gradients simply add up.
    weights: `mtp_weight` (lambda) and `balance_weight` (alpha).
    collections: further variables of the model, by collection.

  Returns:
    (loss, metrics): metrics are sums that also just add up over
    micro-batches: `loss`, `mtp_loss` [depths], `balance_loss`, `load` [M, E],
    `dropped`.
  """
  variables = {"params": params, "router_bias": router_bias}
  variables |= collections or {}
  nats, _, aux = token_losses(model, variables, batch)
  # NOTE(paper): eq. 24 divides each MTP loss by T, not by its T - k targets.
  main, *mtp = [n.sum() / denominators["targets"] for n in nats]
  balance = aux["balance_loss"].sum() / denominators["sequences"]
  loss = main + weights["balance_weight"] * balance
  if mtp:
    loss = loss + weights["mtp_weight"] * sum(mtp) / len(mtp)
  metrics = {
    "loss": main,
    "mtp_loss": jnp.stack(mtp) if mtp else jnp.zeros((0,)),
    "balance_loss": balance,
    "load": aux["load"],
    "dropped": aux["dropped"],
  }
  return loss, metrics
