"""Which policy gradient: GRPO as printed, as practised, and its descendants.

                         ratio           divided by     clip        KL
  DeepSeekMath           token           sequence       0.2         k3, 0.04
  V3, R1, as printed     sequence        sequence       not given   k3
  R1-Zero, R1            token           sequence       R1: 10      k3, 0.001
  Dr. GRPO (Liu 2025)    token           constant       0.2         none
  DAPO (Yu 2025)         token           token          0.2, 0.28   none
  GSPO (Zheng 2025)      geometric_mean  sequence       3e-4, 4e-4  none

Dr. GRPO does not divide advantages by their group's deviation. The reports
print the ratio of whole answers; DeepSeekMath, whose method they name, that of
tokens. R1's numbers are those of the report's second version.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """One of the above, or any mixture.

  Attributes:
    ratio: of the policy to the one that sampled: of each `token`, of the whole
      `sequence` (DeepSeek-V3 eq. 26, R1 eq. 1), or its `geometric_mean` per
      token (GSPO).
    divide_by: `sequence` averages over an answer's tokens and then over
      answers, `token` over all tokens alike, `constant` over answers times
      `longest`, so that no length is favoured. With ratio `sequence` the
      answers alone count.
    clip_low: the ratio is cut off below 1 - clip_low; over 1 it never is.
    clip_high: the ratio is cut off above 1 + clip_high.
    kl: estimator of the divergence from the reference in the loss: `k3` (eq.
      2), `k2`, or `none`.
    kl_in_reward: whether the divergence (k1, of the whole answer) is taken off
      the reward instead.
    kl_coefficient: beta.
    standardise: whether advantages are divided by their group's deviation.
    longest: tokens, for `constant`.
    entropy_coefficient: reward for keeping options open, nats per token.
  """

  ratio: Literal["token", "sequence", "geometric_mean"] = "token"
  divide_by: Literal["sequence", "token", "constant"] = "sequence"
  clip_low: float = 0.2
  clip_high: float = 0.2
  kl: Literal["k3", "k2", "none"] = "k3"
  kl_in_reward: bool = False
  kl_coefficient: float = 0.001
  standardise: bool = True
  longest: int | None = None
  entropy_coefficient: float = 0.0

  def __post_init__(self):
    _one_of(self, "ratio", ("token", "sequence", "geometric_mean"))
    _one_of(self, "divide_by", ("sequence", "token", "constant"))
    _one_of(self, "kl", ("k3", "k2", "none"))
    for field in ("clip_low", "clip_high", "kl_coefficient"):
      if not getattr(self, field) >= 0:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected a number of at least 0;"
          " raise it"
        )
    if self.ratio == "sequence" and self.divide_by != "sequence":
      raise ValueError(
        f"divide_by={self.divide_by!r}: expected 'sequence' with"
        " ratio='sequence', which has one term an answer; change either"
      )
    if self.divide_by == "constant" and not self.longest:
      raise ValueError(
        f"longest={self.longest!r}: expected a number of tokens with"
        " divide_by='constant'; give the longest answer allowed"
      )
    if self.kl_in_reward and self.kl != "none":
      raise ValueError(
        f"kl={self.kl!r}: expected 'none' with kl_in_reward; both would count"
        " the divergence twice"
      )


def _one_of(objective: Objective, field: str, allowed: tuple[str, ...]) -> None:
  if getattr(objective, field) not in allowed:
    raise ValueError(
      f"{field}={getattr(objective, field)!r}: expected one of"
      f" {', '.join(allowed)}"
    )
