"""Products of FP8 matrices, promoted to float32 every 128 terms.

DeepSeek-V3 section 3.3.2, figure 7: tensor cores multiply 128 columns by 128
rows; the partial sum then moves to float32 registers, is multiplied by the
scales of both tiles and added. `accumulation` says how the products themselves
are summed:

  float32       as the device sums float32; the order is its own
  exact         without error, rounded once to float32: the same bits on every
                device that has float64, and in numpy
  tensor_core   as Hopper does (section 3.5.2): in fixed point, aligned to the
                largest of 32 products and the sum so far, cut to 14 bits; also
                the same bits everywhere
  tensor_core_floor   the same, cut downwards

Magnitudes are cut in `tensor_core`, that is towards zero. "Sign-fill right
shifting" may be read as two's complement, which cuts downwards; but then what
is lost never cancels. With 4096 random normal terms and without promotion, the
largest error of a million sums is 1.8% of their root mean square towards zero,
the report's "nearly 2%", and 28% downwards.

Legend (parallel/axes.py): M rows, K contracted, N columns, S = ceil(K / 128).
"""

import functools
from typing import Literal

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dsx.ops import fp8
from dsx.ops import manual_axes

Accumulation = Literal["float32", "exact", "tensor_core", "tensor_core_floor"]
ACCUMULATIONS = ("float32", "exact", "tensor_core", "tensor_core_floor")
_CUTS = {"tensor_core": jnp.trunc, "tensor_core_floor": jnp.floor}
# Terms that one instruction of Hopper's tensor cores adds, and the significant
# bits that it keeps of each.
TERMS = 32
BITS = 14
# Longer sums of products might not fit into float64 and int64.
LONGEST_EXACT = 2**15
# Smaller exponents count as this one, so that no power of two is a denormal.
_SMALLEST_EXPONENT = -100
_MANTISSA_BITS = 23  # of float32
_INFINITY = 0x7F800000  # the bits of float32's exponent, all set


def multiply(
  a: fp8.Quantised,
  b: fp8.Quantised,
  *,
  accumulation: Accumulation = "float32",
  promote: bool = True,
):
  """a @ b.

  Args:
    a: [..., M, K]; its scales do not change within 128 of K.
    b: [..., K, N], likewise; the same leading axes.
    accumulation: how products within a partial sum are added.
    promote: whether partial sums end every 128 terms. Without, all K terms are
      one sum, which is multiplied by the scales, so these must not change along
      K. In `tensor_core` they may: then the tensor core multiplies its products
      by them (in float32), as section 3.5.2 asks of future ones.

  Returns:
    float32 [..., M, N].

  Raises:
    ValueError: shapes, scales or length do not fit.
  """
  _check(a, b, accumulation)
  dot, cut = _float32, _CUTS.get(accumulation)
  if cut:
    dot = functools.partial(_tensor_core, cut=cut)
  elif accumulation == "exact":
    both = {np.dtype(x.values.dtype) for x in (a, b)}
    narrow = both == {np.dtype(fp8.FORMATS["e4m3"])}
    dot = _exact if narrow else _exact_of_parts
  # FP8 numbers are bfloat16 numbers, and their products float32 numbers.
  x, y = (jnp.asarray(q.values).astype(jnp.bfloat16) for q in (a, b))
  rows, columns = (
    _row_scales(a),
    jnp.swapaxes(_row_scales(b.transposed), -1, -2),
  )
  if promote:
    add = _add if accumulation == "float32" else _add_once_rounded
    return _promoted(x, y, rows, columns, dot, add)
  if a.scales.shape[-1] == 1 and b.scales.shape[-2] == 1:
    if accumulation == "exact" and x.shape[-1] > LONGEST_EXACT:
      raise ValueError(
        f"promote=False with K={x.shape[-1]}: accumulation='exact' expects at "
        f"most {LONGEST_EXACT}; promote"
      )
    return dot(x, y) * (rows[..., :1] * columns[..., :1, :])
  if cut:
    return _tensor_core(x, y, (rows, columns), cut=cut)
  raise ValueError(
    f"promote=False with scales that change along K (tiles {a.tile} of a, "
    f"{b.tile} of b): accumulation={accumulation!r} expects one scale there; "
    "set granularity 'tensor' or accumulation='tensor_core'"
  )


def _check(a: fp8.Quantised, b: fp8.Quantised, accumulation: str) -> None:
  if accumulation not in ACCUMULATIONS:
    raise ValueError(
      f"accumulation={accumulation!r}: expected {', '.join(ACCUMULATIONS)}"
    )
  expected = (*a.shape[:-2], a.shape[-1], b.shape[-1])
  if b.shape != expected:
    raise ValueError(
      f"a {a.shape}, b {b.shape}: expected b {expected}; transpose one of them"
    )
  for name, tile, n in (
    ("a", a.tile[1], a.scales.shape[-1]),
    ("b", b.tile[0], b.scales.shape[-2]),
  ):
    if n > 1 and tile % fp8.TILE:
      raise ValueError(
        f"scales of {name} change every {tile} along K: expected a multiple of "
        f"{fp8.TILE}; quantise it with other tiles"
      )


def _row_scales(a: fp8.Quantised):
  """The scales of each row in each slice of K: float32 [..., M, S]."""
  slices = -(-a.shape[-1] // fp8.TILE)
  tile = (a.tile[0], max(a.tile[1] // fp8.TILE, 1))
  scales = jnp.asarray(a.scales)
  return fp8.expand(scales, tile, (*a.shape[:-1], slices))


def _promoted(x, y, rows, columns, dot, add):
  """Sums every 128 terms by `dot`, and these, times their scales, by `add`.

  A loop, because XLA would fuse slices of unrolled ones into whatever made
  them, at twice the time.
  """
  slices = rows.shape[-1]
  x, y = _padded(x, y, fp8.TILE)

  def accumulate(s, total):
    partial = dot(_part(x, s, fp8.TILE, -1), _part(y, s, fp8.TILE, -2))
    scales = _part(rows, s, 1, -1) * _part(columns, s, 1, -2)
    return add(total, partial, scales)

  total = jnp.zeros((*x.shape[:-1], y.shape[-1]), jnp.float32)
  total = manual_axes.like(total, x, y)
  return lax.fori_loop(0, slices, accumulate, total)


def _add(total, partial, scales):
  return total + partial * scales


def _add_once_rounded(total, partial, scales):
  """total + partial * scales, rounded to float64 and then to float32.

  Compilers may or may not contract the float32 expression to one instruction
  that rounds once. Of this one only the addition rounds, so that it is the
  same either way.
  """
  with jax.enable_x64(True):
    product = partial.astype(jnp.float64) * scales.astype(jnp.float64)
    return (total.astype(jnp.float64) + product).astype(jnp.float32)


def _padded(x, y, size: int):
  """Both with zeros after K, up to a multiple of `size`."""
  missing = -x.shape[-1] % size
  if not missing:
    return x, y
  leading = [(0, 0)] * (x.ndim - 2)
  x = jnp.pad(x, [*leading, (0, 0), (0, missing)])
  return x, jnp.pad(y, [*leading, (0, missing), (0, 0)])


def _part(x, index, size: int, axis: int):
  """The `index`-th stretch of `size` along an axis."""
  return lax.dynamic_slice_in_dim(x, index * size, size, x.ndim + axis)


def _dot(x, y, dtype):
  batch = tuple(range(x.ndim - 2))
  dimensions = (((x.ndim - 1,), (y.ndim - 2,)), (batch, batch))
  return lax.dot_general(x, y, dimensions, preferred_element_type=dtype)


def _float32(x, y):
  # XLA's CPU backend takes a transpose of what was FP8 for a product that it
  # then cannot do; so it must not see where x and y come from.
  return _dot(*lax.optimization_barrier((x, y)), jnp.float32)


def _exact(x, y):
  """Products of E4M3 numbers and their sums are float64 numbers."""
  with jax.enable_x64(True):
    x, y = x.astype(jnp.float64), y.astype(jnp.float64)
    return _dot(x, y, jnp.float64).astype(jnp.float32)


def _exact_of_parts(x, y):
  """The same for E5M2, whose sums may need 80 bits.

  Numbers from 1 up are multiples of 2**-3 and the others of 2**-16. What they
  give is summed apart, in integers, and rounded to odd before float32, which is
  the same as to round once.
  """
  with jax.enable_x64(True):
    x, y = x.astype(jnp.float64), y.astype(jnp.float64)
    x_high, y_high = (jnp.where(jnp.abs(v) < 1, 0, v) for v in (x, y))
    x_low, y_low = (jnp.where(jnp.abs(v) < 1, v, 0) for v in (x, y))
    dot = functools.partial(_dot, dtype=jnp.float64)
    mixed = dot(x_high, y_low) + dot(x_low, y_high)
    high = (dot(x_high, y_high) * 2.0**6).astype(jnp.int64)
    low = (mixed * 2.0**32).astype(jnp.int64)
    low += (dot(x_low, y_low) * 2.0**32).astype(jnp.int64)
    # In units of 2**-6, and 26 bits of their fractions.
    high, low = high + (low >> 26), low & (2**26 - 1)
    odd = (high | (low != 0)).astype(jnp.float32) * 2.0**-6
    whole = (high << 26 | low).astype(jnp.float32) * 2.0**-32
    total = jnp.where(jnp.abs(high) < 2**36, whole, odd)
    not_number = jnp.isnan(x).any(-1, keepdims=True)
    not_number |= jnp.isnan(y).any(-2, keepdims=True)
    return jnp.where(not_number, jnp.nan, total).astype(jnp.float32)


def _tensor_core(x, y, scales=None, *, cut):
  """Sums in Hopper's tensor cores, float32 with at most 14 significant bits.

  An instruction takes 32 products and the sum so far. It shifts each to the
  largest exponent among them, keeps the 14 highest bits there, adds, and keeps
  the 14 highest bits of the sum.

  Args:
    x: [..., M, K].
    y: [..., K, N].
    scales: [..., M, S] and [..., S, N], to multiply each product by; or None.
    cut: makes a float32 a whole number.
  """
  x, y = _padded(x, y, TERMS)

  def instruction(i, total):
    left = _part(x, i, TERMS, -1).astype(jnp.float32)
    right = _part(y, i, TERMS, -2).astype(jnp.float32)
    terms = [
      left[..., t : t + 1] * right[..., t : t + 1, :] for t in range(TERMS)
    ]
    if scales is not None:
      s = i // (fp8.TILE // TERMS)
      scale = _part(scales[0], s, 1, -1) * _part(scales[1], s, 1, -2)
      terms = [term * scale for term in terms]
    terms.append(total)
    exponent = functools.reduce(jnp.maximum, [_exponent(t) for t in terms])
    total = _fixed_sum(terms, exponent, cut)
    return _fixed_sum([total], _exponent(total), cut)

  total = jnp.zeros((*x.shape[:-1], y.shape[-1]), jnp.float32)
  total = manual_axes.like(total, x, y)
  return lax.fori_loop(0, x.shape[-1] // TERMS, instruction, total)


def _exponent(x):
  """float32's exponent where it stands among its bits, int32."""
  return lax.bitcast_convert_type(x, jnp.int32) & np.int32(_INFINITY)


def _fixed_sum(terms, exponent, cut):
  """Sums what is left of float32 terms in fixed point, exactly.

  Args:
    terms: float32 arrays.
    exponent: of the highest bit kept, as `_exponent` has it.
    cut: makes a float32 a whole number.
  """
  lowest = np.int32(127 + _SMALLEST_EXPONENT << _MANTISSA_BITS)
  exponent = jnp.maximum(exponent, lowest)
  unit = exponent - np.int32(BITS - 1 << _MANTISSA_BITS)
  inverse = np.int32(254 << _MANTISSA_BITS) - unit
  unit, inverse = (
    lax.bitcast_convert_type(bits, jnp.float32) for bits in (unit, inverse)
  )
  return sum(cut(term * inverse) for term in terms) * unit
