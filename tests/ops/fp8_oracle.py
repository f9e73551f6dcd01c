"""FP8 as its definitions read: numpy and ml_dtypes, one number at a time.

Independent of dsx: no JAX, nothing imported from what it is compared with.
Float32 arithmetic flushes denormals, as XLA's does on every device.
"""

import fractions
import math

import ml_dtypes
import numpy as np

TYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
CUTS = {"tensor_core": math.trunc, "tensor_core_floor": math.floor}


def flushed(x) -> np.float32:
  """A float32, zero if it is a denormal."""
  x = np.float32(x)
  return x if not abs(x) < 2.0**-126 else np.float32(math.copysign(0, x))


def scale_of(numbers, largest_of_format: float, scale_format: str):
  """The scale of one tile."""
  largest = np.float32(0)
  for number in numbers:
    if np.isfinite(number) and abs(number) > largest:
      largest = abs(number)
  if flushed(largest) == 0:
    return np.float32(1)
  scale = max(largest / np.float32(largest_of_format), np.float32(2.0**-100))
  if scale_format == "float32":
    return scale
  fraction, exponent = np.frexp(scale)  # fraction in [0.5, 1)
  return np.float32(2.0 ** (exponent - 1 if fraction == 0.5 else exponent))


def quantise(x, tile, format: str, scale_format: str):
  """Values and scales of one matrix."""
  x = np.asarray(x).astype(np.float32)
  r, c = tile
  values = np.zeros(x.shape, TYPES[format])
  scales = np.zeros((-(-x.shape[0] // r), -(-x.shape[1] // c)), np.float32)
  limit = np.float32(LARGEST[format])
  for i in range(scales.shape[0]):
    for j in range(scales.shape[1]):
      here = np.s_[r * i : r * i + r, c * j : c * j + c]
      numbers = x[here].ravel()
      scales[i, j] = scale_of(numbers, LARGEST[format], scale_format)
      tile_values = []
      for number in numbers:
        if np.isfinite(number):
          number = min(max(number / scales[i, j], -limit), limit)
        else:
          number = np.float32(np.nan)
        tile_values.append(number)
      rounded = np.array(tile_values, np.float32).astype(TYPES[format])
      values[here] = rounded.reshape(x[here].shape)
  return values, scales


def e5m6(x):
  """Bits of E5M6 numbers, 12 of each, and biased exponents of scales."""
  x = np.asarray(x).astype(np.float32)
  bits = np.zeros(x.shape, np.uint16)
  scales = np.zeros((x.shape[0], -(-x.shape[1] // 128)), np.uint8)
  for row in range(x.shape[0]):
    for j in range(scales.shape[1]):
      here = np.s_[row, 128 * j : 128 * j + 128]
      scale = scale_of(x[here], 65024.0, "ue8m0")
      scales[row, j] = np.frexp(scale)[1] - 1 + 127
      bits[here] = [_e5m6_bits(number, scale) for number in x[here]]
  return bits, scales


def _e5m6_bits(number, scale) -> int:
  if not np.isfinite(number):
    return 0x7E0
  number = float(flushed(number)) / float(scale)
  exponent = max(math.frexp(number)[1] - 1, -14)
  unit = 2.0 ** (exponent - 6)
  rounded = np.float16(round(number / unit) * unit)  # ties to even
  rounded = np.copysign(rounded, np.float16(number))
  return int(rounded.view(np.uint16)) >> 4


def e5m6_numbers(bits, scales):
  """The numbers that they stand for, float64."""
  numbers = (bits.astype(np.uint16) << 4).view(np.float16).astype(float)
  powers = 2.0 ** (scales.astype(float) - 127)
  return numbers * np.repeat(powers, 128, axis=-1)[:, : bits.shape[1]]


def _scales(a_scales, a_tile, b_scales, b_tile, m, k, n):
  """The scales of a term: row m, column n, the k-th of the sum."""
  a = a_scales[m // a_tile[0], k // a_tile[1]]
  b = b_scales[k // b_tile[0], n // b_tile[1]]
  return flushed(np.float32(a) * np.float32(b))


def multiply(a, b, accumulation: str, promote: bool):
  """a @ b, each (values, scales, tile), for all but `float32`."""
  (a_values, a_scales, a_tile), (b_values, b_scales, b_tile) = a, b
  left, right = a_values.astype(float), b_values.astype(float)
  rows, length = left.shape
  out = np.zeros((rows, right.shape[1]), np.float32)
  for m in range(rows):
    for n in range(right.shape[1]):
      products = [left[m, k] * right[k, n] for k in range(length)]
      scales = [
        _scales(a_scales, a_tile, b_scales, b_tile, m, k, n)
        for k in range(length)
      ]
      if promote:
        out[m, n] = _promoted(products, scales, accumulation)
      elif a_scales.shape[1] == b_scales.shape[0] == 1:
        partial = _sum(products, accumulation)
        out[m, n] = flushed(partial * scales[0])
      else:
        terms = [
          float(flushed(np.float32(p) * s))
          for p, s in zip(products, scales, strict=True)
        ]
        out[m, n] = tensor_core(terms, CUTS[accumulation])
  return out


def _promoted(products, scales, accumulation):
  total = np.float32(0)
  for start in range(0, len(products), 128):
    partial = _sum(products[start : start + 128], accumulation)
    product = np.float64(partial) * np.float64(scales[start])
    total = flushed(np.float64(total) + product)
  return total


def _sum(products, accumulation):
  if accumulation == "exact":
    return exact(products)
  return tensor_core(products, CUTS[accumulation])


def exact(products) -> np.float32:
  """The sum, rounded once."""
  if not np.isfinite(products).all():
    return np.float32(np.nan)
  zero = fractions.Fraction(0)
  total = sum((fractions.Fraction(float(p)) for p in products), zero)
  return _to_float32(total)


def _to_float32(x: fractions.Fraction) -> np.float32:
  """To nearest, ties to even."""
  if x == 0:
    return np.float32(0)
  exponent = _exponent(x)
  unit = fractions.Fraction(2) ** (exponent - 23)
  return np.float32(float(round(x / unit) * unit))


def _exponent(x: fractions.Fraction) -> int:
  """floor(log2(|x|))."""
  exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
  if abs(x) < fractions.Fraction(2) ** exponent:
    exponent -= 1
  return exponent


def tensor_core(products, cut) -> np.float32:
  """The sum of products, 32 to an instruction, 14 bits of each."""
  if not np.isfinite(products).all():
    return np.float32(np.nan)
  total = 0.0
  for start in range(0, len(products), 32):
    terms = [*products[start : start + 32], total]
    total = _fixed_sum(terms, max(map(_size, terms)), cut)
    total = _fixed_sum([total], _size(total), cut)
  return np.float32(total)


def _size(term: float) -> int:
  """floor(log2(|term|)), not below -100."""
  return max(math.frexp(term)[1] - 1, -100) if term else -100


def _fixed_sum(terms, exponent: int, cut) -> float:
  """Every term as a whole number of units, 14 bits; their sum."""
  unit = 2.0 ** (exponent - 13)
  return sum(cut(term / unit) for term in terms) * unit
