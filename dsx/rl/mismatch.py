"""How far the sampler's numbers are from the trainer's, and what is done.

Sampler and trainer run the same weights through different programs (a cache,
absorbed projections, FP8, other kernels), and where both are rounded a router
may choose other experts; answers are then drawn from a policy that is not
quite the one whose gradient is taken. So the trainer computes the
log-probabilities again, the difference is reported, and by switch

  none      nothing more is done
  truncate  each token's term is weighed by trainer / sampler, at most `most`
            (truncated importance sampling; Yao et al. 2025)
  mask      likewise, but a token whose weight is outside `least` to `most`
            does not count

and a rollout that differs too much is refused altogether.

Like is compared with like. Where nothing was truncated, what was drawn from is
the model at the sampler's temperature, and so is what the trainer computes.
Where top-k, top-p or min-p cut tokens off, the rest were drawn with the share
of these added, which is no error of either program; there the model's own
probabilities, at temperature 1, are compared (`sampling.Sampling` says which).
"""

import dataclasses
import math
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of logarithms of ratios: exp of more means nothing and ends in infinity.
_LIMIT = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correction:
  """What is done about it.

  Attributes:
    weights: `none`, `truncate` or `mask`.
    most: the largest weight of a token.
    least: the smallest, with `mask`; 0 for none.
    bound: nats beyond which a token's difference is reported as large.
    refuse_mean: mean difference, in nats a token, beyond which a rollout is
      refused; None for none. Rounding in bfloat16 makes about 0.01; a wrong
      temperature, template or version of the weights makes more than this.
    refuse_kl: likewise of the divergence (k3).
  """

  weights: Literal["none", "truncate", "mask"] = "none"
  most: float = 2.0
  least: float = 0.0
  bound: float = 0.1
  refuse_mean: float | None = 0.2
  refuse_kl: float | None = None

  def __post_init__(self):
    if self.weights not in ("none", "truncate", "mask"):
      raise ValueError(
        f"weights={self.weights!r}: expected none, truncate or mask"
      )
    for field in ("bound", "refuse_mean", "refuse_kl"):
      value = getattr(self, field)
      if value is not None and not value > 0:
        raise ValueError(
          f"{field}={value!r}: expected a number of nats above 0; raise it"
        )
    if not 0 <= self.least < 1 <= self.most < math.inf:
      raise ValueError(
        f"least={self.least!r}, most={self.most!r}: expected 0 <= least < 1 <="
        " most; equal numbers have weight 1, which must be allowed"
      )


class Sums(NamedTuple):
  """Over tokens; they add up over parts of a rollout (`most` by its maximum).

  Attributes:
    tokens: how many.
    absolute: of |trainer - sampler|, in nats.
    signed: of trainer - sampler.
    kl: of k3, estimates of KL(sampler || trainer).
    large: tokens that differ by more than `bound`.
    weight: of their weights.
    cut: tokens whose weight was cut down, or that are masked.
    most: the largest |trainer - sampler|.
  """

  tokens: jax.Array
  absolute: jax.Array
  signed: jax.Array
  kl: jax.Array
  large: jax.Array
  weight: jax.Array
  cut: jax.Array
  most: jax.Array


def compare(trainer, sampler, mask, correction: Correction):
  """Weights of tokens, and sums.

  Args:
    trainer: float32 [...], log-probabilities of tokens.
    sampler: float32 [...], of the same tokens and the same distribution.
    mask: bool [...], tokens that count.
    correction: which weights.

  Returns:
    (weights float32 [...], 1 where `mask` is false; `Sums` of float32 []).
  """
  apart = jnp.where(mask, trainer - sampler, 0.0)
  ratio = jnp.exp(jnp.clip(apart, -_LIMIT, _LIMIT))
  # What the sampler never draws has no number; nor has what is no number.
  ratio = jnp.where(jnp.isnan(apart), 0.0, ratio)
  within = (ratio <= correction.most) & (ratio >= correction.least)
  if correction.weights == "truncate":
    weight, cut = jnp.minimum(ratio, correction.most), ratio > correction.most
  elif correction.weights == "mask":
    weight, cut = jnp.where(within, ratio, 0.0), ~within
  else:
    weight, cut = jnp.ones_like(ratio), jnp.zeros_like(mask)
  absolute = jnp.abs(apart)

  def total(x):
    return jnp.where(mask, x, 0.0).sum(dtype=jnp.float32)

  sums = Sums(
    tokens=total(jnp.ones_like(apart)),
    absolute=total(absolute),
    signed=total(apart),
    kl=total(ratio - 1.0 - jnp.clip(apart, -_LIMIT, _LIMIT)),
    large=total(~(absolute <= correction.bound)),
    weight=total(weight),
    cut=total(cut),
    most=jnp.where(mask, absolute, 0.0).max(initial=0.0),
  )
  return jnp.where(mask, weight, 1.0), sums


def added(parts: list[Sums]) -> Sums:
  """The sums of several parts together, as Python's numbers."""
  together = [[float(x) for x in column] for column in zip(*parts, strict=True)]
  *sums, most = together
  # `max` would lose what is not a number.
  largest = math.nan if any(map(math.isnan, most)) else max(most)
  return Sums(*(math.fsum(s) for s in sums), largest)  # pyright: ignore


def metrics(sums: Sums) -> dict[str, float]:
  """What a person wants to see of `added` sums."""
  tokens = max(float(sums.tokens), 1.0)
  return {
    "mismatch_mean": float(sums.absolute) / tokens,
    "mismatch_signed": float(sums.signed) / tokens,
    "mismatch_max": float(sums.most),
    "mismatch_kl": float(sums.kl) / tokens,
    "mismatch_large": float(sums.large) / tokens,
    "importance_mean": float(sums.weight) / tokens,
    "importance_cut": float(sums.cut) / tokens,
  }


def refusal(sums: Sums, correction: Correction) -> str:
  """Why a rollout with these `added` sums is refused; empty if it is not."""
  tokens = max(float(sums.tokens), 1.0)
  for field, found, what in (
    ("refuse_mean", float(sums.absolute) / tokens, "differ by a mean of"),
    ("refuse_kl", float(sums.kl) / tokens, "are apart by a divergence of"),
  ):
    limit = getattr(correction, field)
    if limit is not None and not found <= limit:
      return (
        f"sampler and trainer {what} {found:.3g} nats a token: expected at"
        f" most {field}={limit:g}; look for another temperature, template or"
        " version of the weights, replay experts, or raise it"
      )
  return ""
