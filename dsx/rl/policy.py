"""What a policy makes of sampled answers: scores of their tokens.

One forward pass for everything that asks: old and reference log-probabilities,
and the policy's own with their gradient.

Legend (parallel/axes.py): B rows, L columns, N answers, E experts; M expert
layers.
"""

from typing import Any
from typing import Literal
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from dsx.models import deepseek
from dsx.parallel import axes
from dsx.rl import logprobs
from dsx.rl import rows as rows_lib
from dsx.training import cross_entropy


class Passed(NamedTuple):
  """What came of a forward pass.

  Attributes:
    scores: of the targets, `logprobs.Scores` of [B, L].
    raw: likewise at temperature 1, if asked for; else None.
    aux: of `DeepSeek.features`.
    kernel: the output head's, in the compute dtype.
  """

  scores: logprobs.Scores
  raw: logprobs.Scores | None
  aux: Any
  kernel: Any


def forward(
  model: deepseek.DeepSeek,
  variables,
  rows: rows_lib.Rows,
  temperature,
  *,
  replay: bool,
  vocab_size: int | None,
  chunk: int,
  entropy: bool = False,
  raw: bool = False,
  mtp: Literal["trained", "detached", "none"] = "none",
) -> Passed:
  """Reads a micro-batch.

  Args:
    model: the model.
    variables: `params` and `router_bias`.
    rows: leaves [B, L, ...].
    temperature: float32 [], of the sampler.
    replay: whether the experts in `rows` are taken.
    vocab_size: of `logprobs.log_probabilities`.
    chunk: likewise.
    entropy: likewise.
    raw: whether scores at temperature 1 are wanted too.
    mtp: of `DeepSeek.features`.
  """
  aux: Any = model.apply(
    variables,
    rows.inputs,
    rows.positions,
    rows.segments,
    valid=rows.segments > 0,
    experts=rows.experts if replay else None,
    mtp=mtp,
    method="features",
  )
  kernel = variables["params"]["lm_head"]["kernel"]
  kernel = deepseek.head_kernel(kernel, model.dtypes)
  hidden = deepseek.head_input(aux["hidden"], model.dtypes)

  def scores(temperature, entropy):
    return logprobs.log_probabilities(
      hidden,
      kernel,
      whole(rows.targets),
      temperature=temperature,
      vocab_size=vocab_size,
      entropy=entropy,
      chunk=chunk,
    )

  return Passed(
    scores(temperature, entropy),
    scores(1.0, False) if raw else None,
    aux,
    kernel,
  )


def mtp_losses(model, passed: Passed, rows: rows_lib.Rows, mask):
  """Sums of the MTP modules' losses (DeepSeek-V3 section 2.2, eq. 24).

  Of the tokens of answers that are still answers' tokens `k` places on.

  Args:
    model: the model.
    passed: of `forward`, with MTP modules.
    rows: leaves [B, L, ...].
    mask: bool [B, L], targets that count.

  Returns:
    float32 [modules], in nats.
  """
  sums = []
  for k, hidden in enumerate(passed.aux["mtp_hidden"], start=1):
    hidden = deepseek.head_input(hidden, model.dtypes)
    targets = whole(jnp.roll(rows.targets, -k, axis=1))
    exists = jnp.arange(mask.shape[1]) < mask.shape[1] - k
    same = jnp.roll(rows.segments, -k, axis=1) == rows.segments
    counts = jnp.roll(mask, -k, axis=1) & same & exists[None, :]
    nats = cross_entropy.cross_entropy(hidden, passed.kernel, targets)
    sums.append(jnp.where(whole(counts), nats, 0.0).sum())
  return jnp.stack(sums) if sums else jnp.zeros((0,))


def whole(x):
  """`x` [B, L], not divided by length: what shifts it needs its neighbours."""
  return nn.with_logical_constraint(x, (axes.BATCH, None))
