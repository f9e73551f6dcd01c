"""Whether numbers are finite, told from their bits.

In each of these formats a magnitude is larger exactly if its bits are, as an
integer; infinities and NaN lie above all. So numbers that a dtype cannot hold
are found by one comparison of integers, several times faster than by a cast.
"""

import functools

import numpy as np

from dsx.convert import row_chunks

# Bits of the sign, which e8m0 has not.
_SIGN = {"float8_e8m0fnu": 0}


def count_lost(array: np.ndarray, dtype) -> int:
  """How many numbers are not finite, or would not be as `dtype`.

  Args:
    array: floats of 1, 2 or 4 bytes, of any shape and order.
    dtype: what they are to be rounded to.

  >>> count_lost(np.float32([1, 65519, 65520, np.inf, np.nan]), np.float16)
  3
  """
  if array.ndim == 0:
    array = array[None]
  integer = np.dtype(f"u{array.dtype.itemsize}")
  limit = _first_lost(array.dtype, np.dtype(dtype))
  mask = integer.type(_magnitudes(array.dtype))
  lost = 0
  for rows in row_chunks.row_chunks(array.shape):
    bits = array[rows].view(integer) & mask
    if bits.size and int(bits.max()) >= limit:
      lost += int(np.count_nonzero(bits >= integer.type(limit)))
  return lost


def _magnitudes(dtype: np.dtype) -> int:
  n_bits = 8 * dtype.itemsize
  return (1 << n_bits) - 1 - _SIGN.get(dtype.name, 1 << (n_bits - 1))


@functools.cache
def _first_lost(dtype: np.dtype, rounded: np.dtype) -> int:
  """Bits of the smallest magnitude of `dtype` that `rounded` cannot hold."""
  integer = np.dtype(f"u{dtype.itemsize}")
  low, high = 0, _magnitudes(dtype)  # the largest bits are a NaN
  while low < high:
    middle = (low + high) // 2
    value = np.array([middle], integer).view(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
      is_lost = not np.isfinite(value.astype(rounded).astype(np.float32))[0]
    low, high = (low, middle) if is_lost else (middle + 1, high)
  return low
