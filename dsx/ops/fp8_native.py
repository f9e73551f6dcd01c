"""Products of FP8 matrices through XLA, on TPUs whose matrix units know FP8.

Those of tpu7x (Ironwood) do. Before it, on v5p and v6e, XLA widens FP8 to
bfloat16 first: right, and no faster than bfloat16, so these are refused.

As in `fp8_product`, each 128 terms are one product in float32, multiplied by
the scales of both sides and added.

Legend (parallel/axes.py): M rows, K contracted, N columns, S = ceil(K / 128).
"""

import jax
from jax import lax
import jax.numpy as jnp

from dsx.ops import fp8
from dsx.ops import hopper_gemm
from dsx.ops import platforms

# By the beginnings of `jax.Device.device_kind`.
KINDS = ("TPU7x",)


def multiply(a: fp8.Quantised, b: fp8.Quantised, out_dtype=jnp.float32):
  """a @ b.

  Args:
    a: [..., M, K]; its scales do not change within 128 of K, counted from 0.
    b: [..., K, N], likewise; the same leading axes and the same format.
    out_dtype: of the result.

  Returns:
    [..., M, N].

  Raises:
    ValueError: shapes, tiles or formats are none of these, or what is traced
      is for no TPU with FP8 units.
  """
  check()
  hopper_gemm.check("a", a, "b", b, out_dtype)
  if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
    raise ValueError(
      f"a {a.shape}, b {b.shape}: expected [..., M, K] and [..., K, N] with "
      "the same leading axes"
    )
  shape = (*a.shape[:-1], b.shape[-1])
  batch = tuple(range(len(shape) - 2))
  axes = (((len(shape) - 1,), (len(shape) - 2,)), (batch, batch))
  total = jnp.zeros(shape, jnp.float32)
  for begin in range(0, a.shape[-1], fp8.TILE):
    end = min(begin + fp8.TILE, a.shape[-1])
    left = lax.slice_in_dim(a.values, begin, end, axis=-1)
    right = lax.slice_in_dim(b.values, begin, end, axis=-2)
    partial = lax.dot_general(
      left, right, axes, preferred_element_type=jnp.float32
    )
    of_rows = _scales(a, begin)
    of_columns = _scales(b.transposed, begin).swapaxes(-1, -2)
    total += partial * (of_rows * of_columns)
  return total.astype(out_dtype)


def check() -> None:
  """Refuses platforms whose matrix units know no FP8.

  Raises:
    ValueError: what is traced now is for one of them.
  """
  target, kind = platforms.target(), _kind()
  if target != "tpu" or (kind and not kind.startswith(KINDS)):
    raise ValueError(
      f"platform={kind or target!r}: has no FP8 units; native products want "
      f"{', '.join(KINDS)}; use implementation='emulated' here"
    )


def _kind() -> str:
  """What JAX calls the device that is compiled for; empty if not known."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None and device.platform == platforms.target():
    return device.device_kind
  if platforms.target() == jax.default_backend():
    return jax.devices()[0].device_kind
  return ""


def _scales(x: fp8.Quantised, begin: int):
  """Of rows [..., R, 1], for the slice of terms that begins there."""
  column = min(begin // x.tile[1], x.scales.shape[-1] - 1)
  scales = lax.slice_in_dim(x.scales, column, column + 1, axis=-1)
  return fp8.expand(scales, (x.tile[0], 1), (*x.shape[:-1], 1))
