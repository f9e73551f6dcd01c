"""Whether Hopper's kernels can run here, and how many can run at once.

They are written for compute capability 9.0 (H100, H200, H800): wgmma, the bulk
tensor copies and setmaxnreg exist there alone. Anywhere else `interpreted` runs
them step by step on the CPU, which shows what they compute and not how fast.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import dataclasses
import importlib

import jax

from dsx.ops import platforms

CAPABILITY = "9.0"
# Multiprocessors of every Hopper on an SXM board.
_MULTIPROCESSORS = 132


@dataclasses.dataclass(frozen=True)
class Interpretation:
  """How kernels are interpreted.

  Attributes:
    multiprocessors: to pretend; few, so that each has several tiles to do, and
      because older interpreters compile the kernel for each of them.
    races: whether to look for data races between warpgroups.
  """

  multiprocessors: int = 1
  races: bool = False

  @property
  def mosaic(self):
    """What `plgpu.kernel` wants to hear of it."""
    # Not among the public names everywhere.
    module = importlib.import_module(
      "jax._src.pallas.mosaic_gpu.interpret.params"
    )
    return module.InterpretGPUParams(detect_races=self.races)


_chosen: contextvars.ContextVar[Interpretation | None] = contextvars.ContextVar(
  "interpretation", default=None
)


def interpretation() -> Interpretation | None:
  """How what is traced now is interpreted; None where it is compiled."""
  return _chosen.get()


@contextlib.contextmanager
def interpreted(**options) -> Iterator[None]:
  """Makes kernels that are traced inside run on any platform, slowly.

  As with `platforms.compiling_for`, trace a function of its own inside.

  Args:
    **options: of `Interpretation`.
  """
  token = _chosen.set(Interpretation(**options))
  try:
    yield
  finally:
    _chosen.reset(token)


def check(kernel: str) -> None:
  """Refuses platforms without this kernel.

  Raises:
    ValueError: what is traced now is for no Hopper GPU, and not interpreted.
  """
  if interpretation() is not None:
    return
  target = platforms.target()
  if target != "gpu":
    raise ValueError(
      f"platform={target!r}: {kernel} wants a GPU of compute capability "
      f"{CAPABILITY} (H100, H200, H800); use implementation='emulated' here"
    )
  if jax.default_backend() != "gpu":
    return  # compiling ahead of time
  found = getattr(jax.devices()[0], "compute_capability", "unknown")
  if found != CAPABILITY:
    raise ValueError(
      f"compute_capability={found}: {kernel} wants {CAPABILITY} (H100, H200, "
      "H800); use implementation='emulated' here"
    )


def multiprocessors() -> int:
  """How many blocks run at once, one on each multiprocessor."""
  if (chosen := interpretation()) is not None:
    return chosen.multiprocessors
  if jax.default_backend() == "gpu":
    return getattr(jax.devices()[0], "core_count", None) or _MULTIPROCESSORS
  return _MULTIPROCESSORS
