"""Which kernels took the time, read from a profile of `jax.profiler`.

JAX reads its own profiles, so this needs neither TensorFlow nor TensorBoard.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import pathlib
import re
from typing import Any
from typing import NamedTuple

# Their time is that of what they call, which is there as well.
_CALLERS = re.compile(r"(while|call|conditional)([._-]|$)")
_OPERATION = re.compile(
  r"^\s*(?:ROOT )?%?([\w.-]+) = .*?op_name=\"([^\"]*)\"", re.MULTILINE
)
_WRAPPERS = re.compile(
  r"^(jit|jvp|transpose|checkpoint|remat|rematted_computation|while|body|cond"
  r"|closed_call|vmap|custom_\w+)\b.*"
)


class Kernel(NamedTuple):
  """All executions of one kernel.

  Attributes:
    name: what the platform calls it.
    operation: what the compiler calls what it computes.
    count: executions.
    seconds: of all executions.
  """

  name: str
  operation: str
  count: int
  seconds: float


def kernels(folder: pathlib.Path) -> list[Kernel]:
  """The kernels of the newest profile below `folder`, slowest first.

  Raises:
    ValueError: there is no profile, or nothing ran while it was taken.
  """
  from jax import profiler

  files = sorted(folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
  if not files:
    raise ValueError(
      f"{folder}: expected a profile (*.xplane.pb); take one with"
      " jax.profiler.trace"
    )
  data = profiler.ProfileData.from_file(str(files[-1]))
  found: dict[tuple[str, str], list[float]] = {}
  for event in _events(data):
    stats = _stats(event)
    operation = str(stats.get("hlo_op", ""))
    if not _CALLERS.match(operation or event.name):
      key = (event.name, operation)
      found.setdefault(key, []).append(event.duration_ns / 1e9)
  if not found:
    raise ValueError(f"{files[-1]}: nothing ran on a device; profile a step")
  compared = [
    Kernel(name, operation, len(seconds), sum(seconds))
    for (name, operation), seconds in found.items()
  ]
  return sorted(compared, key=lambda k: k.seconds, reverse=True)


def _events(data: Any) -> Iterator[Any]:
  """What devices did: a GPU's streams, a TPU's operations, a CPU's thunks."""
  planes = list(data.planes)
  devices = [p for p in planes if p.name.startswith("/device:")]
  if devices:
    for plane in devices:
      for line in plane.lines:
        if line.name.startswith("Stream") or line.name == "XLA Ops":
          yield from line.events
    return
  for plane in planes:
    for line in plane.lines if plane.name == "/host:CPU" else ():
      for event in line.events:
        if "hlo_op" in _stats(event):
          yield event


def _stats(event: Any) -> dict[str, Any]:
  return {name: value for name, value in event.stats if name is not None}


def sources(compiled: str) -> dict[str, str]:
  """Where in the model each operation of a compiled program comes from.

  Args:
    compiled: its text.

  Returns:
    By name of the operation, such as `fusion.12`, the modules and the primitive
    that it was traced from; `^` before what belongs to the backward pass.
  """
  return {name: _shortened(op) for name, op in _OPERATION.findall(compiled)}


def _shortened(path: str) -> str:
  words = [word for word in path.split("/") if word]
  kept = [word for word in words if not _WRAPPERS.match(word)]
  backward = "^" if any(w.startswith("transpose") for w in words) else ""
  return backward + "/".join(kept[-4:])


def rows(
  found: Iterable[Kernel], named: dict[str, str], steps: int, most: int = 10
) -> list[list[str]]:
  """Cells of a table of the slowest kernels: per step, and what they compute.

  Args:
    found: kernels, slowest first.
    named: from `sources`.
    steps: how many were profiled.
    most: rows.
  """
  found = list(found)
  total = sum(kernel.seconds for kernel in found)
  return [
    [
      str(place),
      f"`{kernel.name[:60]}`",
      f"{kernel.count / steps:g}",
      f"{1e3 * kernel.seconds / steps:,.3f}",
      f"{kernel.seconds / total:.1%}",
      named.get(kernel.operation, kernel.operation) or "-",
    ]
    for place, kernel in enumerate(found[:most], 1)
  ]


HEADER = ["", "kernel", "a step", "ms a step", "share", "computes"]
