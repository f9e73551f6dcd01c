"""Machines that are not here: their devices, for compiling ahead of time.

A name says which: `v5p:8x8x16` is a slice of TPU v5p with that torus,
`h100:32x8` 32 machines of 8 GPUs. Programs are compiled for them anywhere;
nothing can be run. TPUs need the extra `tpu` (libtpu), GPUs the extra `gpu`.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

from jax.experimental import topologies

from dsx.parallel import gpu_targets

_TPUS = ("v5e", "v5p", "v6e", "tpu7x")
KINDS = (*_TPUS, *gpu_targets.TARGETS)
_NAME = re.compile(r"(?P<kind>[a-z0-9]+):(?P<shape>[1-9]\d*(x[1-9]\d*)*)")


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices of a machine, each of which a program can be compiled for.

  Attributes:
    name: as it was asked for.
    kind: `v5p`, `h100` and so on; a key of `cost.CHIPS` in other letters.
    platform: `tpu` or `gpu`.
    shape: chips along each axis of the torus, or machines and GPUs of each.
    devices: all of them, in the compiler's order.
  """

  name: str
  kind: str
  platform: str
  shape: tuple[int, ...]
  devices: tuple[Any, ...] = dataclasses.field(repr=False)

  @property
  def chips(self) -> int:
    """Chips, each of them two devices on tpu7x."""
    return math.prod(self.shape)


@functools.cache
def find(name: str) -> Topology:
  """The machine called `name`.

  The same object every time, because devices of two descriptions are not
  compatible.

  Raises:
    ValueError: it is no name of a machine, or the compiler for it is absent.
  """
  match = _NAME.fullmatch(name)
  if not match or match["kind"] not in KINDS:
    raise ValueError(
      f"topology={name!r}: expected one of {', '.join(KINDS)} and a shape, "
      "such as v5p:8x8x16 (chips along each axis of the torus) or h100:32x8 "
      "(machines x GPUs of each)"
    )
  kind = match["kind"]
  shape = tuple(map(int, match["shape"].split("x")))
  describe = _tpu if kind in _TPUS else _gpu
  platform = "tpu" if kind in _TPUS else "gpu"
  return Topology(name, kind, platform, shape, tuple(describe(kind, shape)))


def _tpu(kind: str, shape: tuple[int, ...]):
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"topology={kind}: compiling for TPUs needs libtpu; install dsx[tpu]"
    )
  # Otherwise libtpu asks a metadata server, which only a TPU VM has, and is for
  # one process of a machine, because it might find chips.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  name = f"{kind}:{'x'.join(map(str, shape))}"
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name)
  except Exception as error:  # JAX raises several kinds
    raise ValueError(
      f"topology={name!r}: libtpu knows no such slice "
      f"({str(error).splitlines()[0]})"
    ) from error
  return found.devices


def _gpu(kind: str, shape: tuple[int, ...]):
  if len(shape) != 2:
    raise ValueError(
      f"topology={kind}:{'x'.join(map(str, shape))}: expected machines x GPUs, "
      f"such as {kind}:32x8"
    )
  if importlib.util.find_spec("jax_cuda13_plugin") is None:
    raise ValueError(
      f"topology={kind}: compiling for GPUs needs JAX's CUDA plugin; install "
      "dsx[gpu]"
    )
  form = f"1x{shape[0]}x{shape[1]}"
  found = topologies.get_topology_desc(
    platform="cuda",
    topology_name=form,
    topology=form,
    target_config=gpu_targets.TARGETS[kind],
  )
  return found.devices
