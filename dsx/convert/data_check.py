"""The numbers of a checkpoint, read once before anything is written.

A number that is not finite, or that the dtype it is to be rounded to cannot
hold, is found here and named, and not after hours of writing, or by somebody
who wonders about a model's answers.
"""

from collections.abc import Callable

import numpy as np

from dsx.convert import encoding as encoding_lib
from dsx.convert import finite
from dsx.convert import inventory
from dsx.convert import name_map
from dsx.convert import quantization
from dsx.convert import safetensors
from dsx.convert import tensor_source
from dsx.ops import block_scaled

Progress = Callable[[int, int, str], None]


def n_bytes(entry: tensor_source.Entry) -> int:
  """Bytes of a tensor's data."""
  itemsize = safetensors.DTYPES[entry.dtype].itemsize
  return int(np.prod(entry.shape, dtype=np.int64)) * itemsize


def check(
  encoding: encoding_lib.Encoding, progress: Progress | None = None
) -> None:
  """Reads every tensor that is to be written.

  Args:
    encoding: what is to be written, and how.
    progress: called with bytes read, bytes in all and what is checked.

  Raises:
    ValueError: naming the first tensor with a number that cannot be written.
  """
  source = encoding.source
  total = sum(n_bytes(entry) for entry in source.entries.values())
  done = 0
  for name in sorted(source.entries, key=name_map.natural):
    entry = source.entries[name]
    array = source.read(name)
    if name.endswith(name_map.SCALES):
      check_scales(entry.place, name, array)
      _check_format(encoding, name, array)
    elif inventory.is_fp8(source.entries, name):
      check_finite(entry.place, name, array, "float32")
      check_product(source, name, encoding.dtype_of(name))
    else:
      dtype = encoding.dtype_of(name)
      is_made = dtype == safetensors.DTYPES[inventory.FP8]
      check_finite(entry.place, name, array, "float32" if is_made else dtype)
    done += array.nbytes
    del array  # or the next one would be read beside it
    if progress is not None:
      progress(done, total, f"checking {name}")


def check_finite(place: str, name: str, array: np.ndarray, dtype) -> None:
  """Refuses numbers that are not finite as `dtype`."""
  lost = finite.count_lost(array, dtype)
  if lost:
    remedy = "fetch or train it again"
    if not finite.count_lost(array, array.dtype):
      remedy = "choose a dtype that holds them"
    raise ValueError(
      f"{place}: tensor {name!r} has {lost} value(s) that are not finite as "
      f"{np.dtype(dtype)}; {remedy}"
    )


def check_scales(place: str, name: str, scales: np.ndarray) -> None:
  """Refuses scales that are not finite and positive."""
  wide = scales.astype(np.float32)
  wrong = int(np.count_nonzero(~(np.isfinite(wide) & (wide > 0))))
  if wrong:
    raise ValueError(
      f"{place}: tensor {name!r} has {wrong} scale(s) that are not finite and "
      "positive; fetch it again"
    )


def check_product(source, name: str, dtype) -> None:
  """Refuses an FP8 matrix whose numbers `dtype` cannot hold."""
  if np.dtype(dtype).itemsize < 2:
    return
  scales = source.read(name + name_map.SCALES).astype(np.float64)
  check_scales(source.entries[name].place, name + name_map.SCALES, scales)
  # e4m3 is finite, and most scales are far too small for more.
  if scales.max(initial=0) * block_scaled.LARGEST < 6e4:
    return
  for part in encoding_lib.dequantised(source, name, dtype):
    check_finite(source.entries[name].place, name, part, dtype)


def _check_format(encoding, name: str, scales: np.ndarray) -> None:
  """Refuses to write as powers of two what are none."""
  if encoding.scale_format not in quantization.POWERS_OF_TWO:
    return
  fraction, _ = np.frexp(scales.astype(np.float32))
  if not (fraction == 0.5).all():
    raise ValueError(
      f"{encoding.source.entries[name].place}: tensor {name!r} has scales that "
      f"are not powers of two: expected them for scale_format="
      f"{encoding.scale_format!r}; leave it out, or convert to bfloat16 first"
    )
