"""Which platform a program is being written for.

What is fast differs by platform, so every `auto` in `ops` asks here. Usually it
is the platform of JAX's devices; a program that is compiled ahead of time for
another machine says so with `compiling_for` while it is traced.
"""

from collections.abc import Iterator
import contextlib
import contextvars

import jax

PLATFORMS = ("cpu", "gpu", "tpu")

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  "platform", default=None
)


def target() -> str:
  """The platform that what is traced now will run on: cpu, gpu or tpu."""
  return _chosen.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
  """Makes `target` return `platform` inside.

  JAX keeps what it has traced by function and shapes and knows nothing of
  this, so trace a function of its own inside, never one that was called
  outside.

  Raises:
    ValueError: for a platform that is none of `PLATFORMS`.
  """
  if platform not in PLATFORMS:
    raise ValueError(
      f"platform={platform!r}: expected one of {', '.join(PLATFORMS)}"
    )
  token = _chosen.set(platform)
  try:
    yield
  finally:
    _chosen.reset(token)
