"""Rotary position embedding, plain and stretched by YaRN.

DeepSeek-V3 section 2.1.1, eq. 3 and 8 (RoPE on the decoupled part of queries
and keys alone), section 4.3 (YaRN). DeepSeek's weights hold the two
coordinates of each rotation side by side (*interleaved*); `rotate` reads them
so and returns all first coordinates, then all second ones. Queries and keys
are permuted alike, so their products are DeepSeek's, and this is the one
place in dsx that knows of the interleaving. Dense models have them in halves
(`rotate_halves`).

Legend (parallel/axes.py): B batch, L length, H heads; R rotary width.
"""

import math

import jax.numpy as jnp
import numpy as np


def _rotations_to_dim(rotations, dim, theta, context):
  """The (fractional) frequency index that turns `rotations` times."""
  turns = context / (rotations * 2 * math.pi)
  return dim * math.log(turns) / (2 * math.log(theta))


def temperature(factor: float, mscale: float) -> float:
  """YaRN's attention temperature 0.1 m ln(s) + 1 (section 4.3)."""
  return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def frequencies(dim: int, theta: float, scaling=None) -> np.ndarray:
  """Angular frequency of each coordinate pair.

  Args:
    dim: R, rotary width.
    theta: base of the geometric series.
    scaling: None, or an object with the fields of `config.RopeScaling`.

  Returns:
    float32 [R/2], in radians per token.
  """
  plain = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
  if scaling is None:
    return plain.astype(np.float32)
  context = scaling.original_max_position_embeddings
  low = _rotations_to_dim(scaling.beta_fast, dim, theta, context)
  high = _rotations_to_dim(scaling.beta_slow, dim, theta, context)
  low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
  ramp = (np.arange(dim // 2) - low) / max(high - low, 1e-3)
  interpolated = np.clip(ramp, 0, 1)
  mixed = plain / scaling.factor * interpolated + plain * (1 - interpolated)
  return mixed.astype(np.float32)


def llama3_frequencies(dim: int, theta: float, scaling) -> np.ndarray:
  """Angular frequencies, stretched as Llama 3.1 does.

  Args:
    dim: R, rotary width.
    theta: base of the geometric series.
    scaling: has the fields of `dense_config.Llama3Scaling`.

  Returns:
    float32 [R/2], in radians per token.
  """
  plain = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
  turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  mixed = plain * kept + plain / scaling.factor * (1 - kept)
  return mixed.astype(np.float32)


def cos_sin(positions, dim: int, theta: float, scaling=None):
  """Cosine and sine of every position's angles.

  Args:
    positions: int32 [B, L], token positions.
    dim: R, rotary width.
    theta: base of the frequencies.
    scaling: None or YaRN's fields.

  Returns:
    (cos, sin), each float32 [B, L, R/2]. YaRN multiplies both by the ratio of
    its two temperatures, which is 1 in every DeepSeek-V3 configuration.
  """
  inverse = frequencies(dim, theta, scaling)
  ratio = 1.0
  if scaling is not None:
    ratio = temperature(scaling.factor, scaling.mscale) / temperature(
      scaling.factor, scaling.mscale_all_dim
    )
  return turned(positions, inverse, ratio)


def turned(positions, inverse: np.ndarray, ratio: float = 1.0):
  """Cosine and sine, each float32 [B, L, R/2], of positions int32 [B, L].

  Args:
    positions: token positions.
    inverse: float32 [R/2], of `frequencies`.
    ratio: multiplies both.
  """
  angles = positions.astype(jnp.float32)[..., None] * inverse[None, None, :]
  return jnp.cos(angles) * ratio, jnp.sin(angles) * ratio


def rotate(x, cos, sin):
  """Rotates each coordinate pair of `x` by its angle.

  Args:
    x: [B, L, H, R], pairs interleaved.
    cos: float32 [B, L, R/2].
    sin: float32 [B, L, R/2].

  Returns:
    [B, L, H, R] in x's dtype, first coordinates before second ones.

  >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
  >>> quarter = jnp.full((1, 1, 1), jnp.pi / 2)
  >>> rotate(x, jnp.cos(quarter), jnp.sin(quarter)).round(3).ravel().tolist()
  [0.0, 1.0]
  """
  first = x[..., 0::2].astype(jnp.float32)
  second = x[..., 1::2].astype(jnp.float32)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def rotate_halves(x, cos, sin):
  """As `rotate`, of heads whose first half turns with their second.

  So Qwen and Llama keep the coordinates; what comes out is in that order, too.

  Args:
    x: [B, L, H, R], first coordinates before second ones.
    cos: float32 [B, L, R/2].
    sin: float32 [B, L, R/2].

  Returns:
    [B, L, H, R] in x's dtype.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  turned_pairs = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned_pairs, axis=-1).astype(x.dtype)


def softmax_scale(qk_head_dim: int, scaling=None) -> float:
  """The factor on attention logits, YaRN's temperature included.

  Eq. 10's 1/sqrt(d_h + d_h^R), times the square of YaRN's temperature: 0.1352
  for V3 with its published YaRN. Leaving the square out is the most common
  fault of other implementations.
  """
  scale = qk_head_dim**-0.5
  if scaling is not None:
    scale *= temperature(scaling.factor, scaling.mscale_all_dim) ** 2
  return scale
