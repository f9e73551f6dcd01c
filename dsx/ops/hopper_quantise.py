"""Quantisation to FP8 on Hopper: the fast form of `fp8.quantise`.

Its bits are those that `fp8.quantise` gives numpy and CPUs. Through XLA on a
GPU that one may differ in a scale's last bit, because XLA divides there with an
error of up to two units.

Quantising moves bytes and does little else, so one read of a matrix gives all
that is made of it: `both` the 1 x 128 tiles that Fprop or Dgrad multiplies and
the 128 x 1 tiles of Wgrad, `weight` the blocks of a weight as Fprop wants them
in memory and as Dgrad does.

Tensor cores want the terms of a product side by side, so what is contracted
along its rows is written transposed. The shapes do not show it: such `values`
are the transpose of what is in memory, which `hopper_gemm` undoes, and XLA
removes both.

Legend (parallel/axes.py): B batch, R rows, C columns, in tiles of 128 x 128.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import hopper_gemm
from dsx.ops import hopper_target

TILE = fp8.TILE
# Each by the axes that share a scale and whether it is written transposed.
_ROWS = ((1,), False)
_COLUMNS = ((0,), True)
_BLOCKS = ((0, 1), False)
_TURNED_BLOCKS = ((0, 1), True)
_OF_TILE = {
  fp8.ROW_TILE: _ROWS,
  fp8.COLUMN_TILE: _COLUMNS,
  fp8.BLOCK_TILE: _BLOCKS,
}
# 64 numbers a thread.
_WARPS = 16
# As in `fp8.scales_of`.
_SMALLEST_SCALE = 2.0**-100
_SMALLEST_NORMAL = 2.0**-126


def quantise(
  x,
  tile: tuple[int, int],
  *,
  format: fp8.Format = "e4m3",
  scale_format: fp8.ScaleFormat = "float32",
) -> fp8.Quantised:
  """As `fp8.quantise`.

  Args:
    x: bfloat16 or float32 [..., R, C].
    tile: 1 x 128, 128 x 1 or 128 x 128.
    format: `e4m3` or `e5m2`.
    scale_format: `float32` or `ue8m0`.

  Raises:
    ValueError: one of them is none of these, or what is traced is not for a
      Hopper GPU.
  """
  if tile not in _OF_TILE:
    raise ValueError(
      f"tile={tile}: expected one of {', '.join(map(str, _OF_TILE))}; quantise "
      "others with fp8.quantise"
    )
  return _quantised(x, (_OF_TILE[tile],), format, scale_format)[0]


def both(
  x,
  *,
  format: fp8.Format = "e4m3",
  scale_format: fp8.ScaleFormat = "float32",
) -> tuple[fp8.Quantised, fp8.Quantised]:
  """x by tiles of 1 x 128, and by tiles of 128 x 1 written transposed.

  Args:
    x: as for `quantise`.
    format: likewise.
    scale_format: likewise.

  Raises:
    ValueError: as `quantise`.
  """
  rows, columns = _quantised(x, (_ROWS, _COLUMNS), format, scale_format)
  return rows, columns


def weight(
  w,
  *,
  format: fp8.Format = "e4m3",
  scale_format: fp8.ScaleFormat = "float32",
) -> tuple[fp8.Quantised, fp8.Quantised]:
  """w by blocks of 128 x 128, twice: for `x @ w` and for `dy @ w.transposed`.

  Both are the same numbers; the first is written transposed.

  Args:
    w: as for `quantise`, [..., D, F].
    format: likewise.
    scale_format: likewise.

  Raises:
    ValueError: as `quantise`.
  """
  forward, backward = _quantised(
    w, (_TURNED_BLOCKS, _BLOCKS), format, scale_format
  )
  return forward, backward


def _quantised(x, kinds, format: fp8.Format, scale_format: fp8.ScaleFormat):
  hopper_target.check("hopper_quantise")
  _check(x, format, scale_format)
  *leading, rows, columns = x.shape
  if 0 in x.shape:
    return tuple(
      fp8.quantise(x, _tile(axes), format=format, scale_format=scale_format)
      for axes, _ in kinds
    )
  whole = hopper_gemm.padded(x, (TILE, TILE))
  whole = whole.reshape(-1, *whole.shape[-2:])
  batch, r, c = whole.shape
  interpreted = hopper_target.interpretation() is not None
  outputs = [
    spec
    for axes, turned in kinds
    for spec in _outputs(axes, turned, (batch, r, c), fp8.FORMATS[format])
  ]
  results = pl.pallas_call(
    functools.partial(
      _kernel,
      kinds=kinds,
      limit=fp8.LARGEST[format],
      powers_of_two=scale_format == "ue8m0",
      interpreted=interpreted,
    ),
    grid=(batch, r // TILE, c // TILE),
    in_specs=[pl.BlockSpec((None, TILE, TILE), lambda b, i, j: (b, i, j))],
    out_specs=[spec for spec, _ in outputs],
    out_shape=[shape for _, shape in outputs],
    compiler_params=pallas_triton.CompilerParams(
      num_warps=_WARPS, num_stages=1
    ),
    interpret=interpreted,
    name="fp8_quantise",
  )(whole)
  found = []
  for i, (axes, turned) in enumerate(kinds):
    values, scales = results[2 * i : 2 * i + 2]
    if turned:
      values = values.swapaxes(1, 2)
    if axes == (1,):
      scales = scales.swapaxes(1, 2)
    tile = _tile(axes)
    shape = fp8.scales_shape((*leading, rows, columns), tile)
    values = values[:, :rows, :columns].reshape(x.shape)
    scales = scales[:, : shape[-2], : shape[-1]].reshape(shape)
    found.append(fp8.Quantised(values, scales, tile))
  return tuple(found)


def _outputs(axes, turned: bool, shape: tuple[int, int, int], dtype):
  """(block, whole) of the values and the scales of one kind of tiles."""
  batch, r, c = shape
  if turned:
    spec = pl.BlockSpec((None, TILE, TILE), lambda b, i, j: (b, j, i))
    values = jax.ShapeDtypeStruct((batch, c, r), dtype)
  else:
    spec = pl.BlockSpec((None, TILE, TILE), lambda b, i, j: (b, i, j))
    values = jax.ShapeDtypeStruct((batch, r, c), dtype)
  if axes == (0, 1):
    of_scales = pl.BlockSpec((None, 1, 1), lambda b, i, j: (b, i, j))
    size = (r // TILE, c // TILE)
  elif axes == (1,):
    # One after the other are those of consecutive rows, as products want them.
    of_scales = pl.BlockSpec((None, 1, TILE), lambda b, i, j: (b, j, i))
    size = (c // TILE, r)
  else:
    of_scales = pl.BlockSpec((None, 1, TILE), lambda b, i, j: (b, i, j))
    size = (r // TILE, c)
  scales = jax.ShapeDtypeStruct((batch, *size), jnp.float32)
  return (spec, values), (of_scales, scales)


def _kernel(x, *outputs, kinds, limit, powers_of_two, interpreted):
  x = x[...].astype(jnp.float32)
  finite = jnp.abs(x) < np.float32(np.inf)
  magnitude = jnp.where(finite, jnp.abs(x), np.float32(0))
  divide = fp8.divide if interpreted else _divided
  for i, (axes, turned) in enumerate(kinds):
    largest = magnitude
    for axis in axes:
      largest = jnp.max(largest, axis=axis, keepdims=True)
    scales = _scales(largest, limit, powers_of_two, divide)
    values = divide(x, jnp.broadcast_to(scales, x.shape))
    values = jnp.clip(values, np.float32(-limit), np.float32(limit))
    values = jnp.where(finite, values, np.float32(np.nan))
    of_values, of_scales = outputs[2 * i : 2 * i + 2]
    values = values.astype(of_values.dtype)
    of_values[...] = values.T if turned else values
    of_scales[...] = scales.reshape(of_scales.shape)


def _scales(largest, limit: float, powers_of_two: bool, divide):
  """As `fp8.scales_of`."""
  scales = divide(largest, jnp.full_like(largest, limit))
  scales = jnp.maximum(scales, np.float32(_SMALLEST_SCALE))
  if powers_of_two:
    bits = lax.bitcast_convert_type(scales, jnp.int32) + np.int32(0x7FFFFF)
    bits &= np.int32(0x7F800000)
    scales = lax.bitcast_convert_type(bits, jnp.float32)
  return jnp.where(
    largest < np.float32(_SMALLEST_NORMAL), np.float32(1), scales
  )


def _divided(x, divisor):
  """x / divisor, rounded once, as Triton's own division is not."""
  (quotient,) = pallas_triton.elementwise_inline_asm(
    "div.rn.f32 $0, $1, $2;",
    args=[x, divisor],
    constraints="=f,f,f",
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
  )
  return quotient


def _tile(axes) -> tuple[int, int]:
  return (TILE if 0 in axes else 1, TILE if 1 in axes else 1)


def _check(x, format: str, scale_format: str) -> None:
  if format not in fp8.FORMATS:
    raise ValueError(f"format={format!r}: expected {' or '.join(fp8.FORMATS)}")
  if scale_format not in fp8.SCALE_FORMATS:
    raise ValueError(
      f"scale_format={scale_format!r}: expected "
      f"{' or '.join(fp8.SCALE_FORMATS)}"
    )
  if x.ndim < 2 or x.dtype not in (jnp.bfloat16, jnp.float32):
    raise ValueError(
      f"x {x.dtype}{list(x.shape)}: expected bfloat16 or float32 [..., R, C]"
    )
