"""Keeping freed memory in the process, which a CPU step gains a lot from.

XLA's CPU client takes the buffers of every step from `malloc` and frees them
again. Beyond a threshold glibc maps and unmaps such blocks anew each time, and
the kernel then clears every page of them: a fifth of a small model's step.
"""

import ctypes

# glibc's malloc.h: parameters of mallopt.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed() -> bool:
  """Asks the allocator to keep what is freed for the next step.

  Returns:
    Whether it will; False where the C library is not glibc, and nothing
    changes.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return False
  settings = (
    (_M_MMAP_MAX, 0),
    (_M_TRIM_THRESHOLD, 2**31 - 1),
    (_M_TOP_PAD, 2**26),
  )
  return all(mallopt(name, value) == 1 for name, value in settings)
