"""A matrix a few rows at a time, so that what is made of it stays small.

The largest tensor of V3 has 0.9 billion numbers; its cast to float32 whole
would take twice the memory that the tensor takes.
"""

from collections.abc import Iterator

from dsx.ops import block_scaled

_ELEMENTS = 1 << 20


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
  """Slices of the first axis, of whole FP8 blocks and about a million numbers.

  Args:
    shape: of one or more dimensions.

  >>> list(row_chunks((300, 4096)))
  [slice(0, 256, None), slice(256, 300, None)]
  """
  width = 1
  for n in shape[1:]:
    width *= n
  rows = _ELEMENTS // max(width, 1) // block_scaled.BLOCK * block_scaled.BLOCK
  rows = max(rows, block_scaled.BLOCK)
  for start in range(0, shape[0], rows):
    yield slice(start, min(start + rows, shape[0]))
