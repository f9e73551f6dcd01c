"""How long a collective takes at least, on published links.

A mesh axis lies somewhere on the machine: along axes of a TPU's torus, or
within and between machines of GPUs. The devices' own coordinates say where.
From that and the published bandwidths follows a lower bound: no latency,
nothing else on the links, the best algorithm.

Per chip and direction, in 1e9 bytes a second. TPU: Google's pages of v5e, v5p,
v6e and tpu7x give the sum over the links of a chip, 4 in the tori of two
dimensions and 6 in those of three. GPU: half of NVIDIA's NVLink figure, and a
400 Gbit/s adapter for each GPU; the H800's NVLink is slower (DeepSeek-V3
report, section 3.1).
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax
import numpy as np

from dsx.parallel import collectives as collectives_lib

_TORUS = {"v5e": 50.0, "v5p": 100.0, "v6e": 100.0, "tpu7x": 100.0}
# (NVLink, network) of one GPU.
_MACHINES = {
  "h100": (450.0, 50.0),
  "h800": (200.0, 50.0),
  "h200": (450.0, 50.0),
}
_GPUS_OF_A_MACHINE = 8


class Ring(NamedTuple):
  """Devices of a group along one axis of a torus.

  Attributes:
    size: how many.
    closed: whether the last is linked to the first.
  """

  size: int
  closed: bool


class Place(NamedTuple):
  """Where the groups of some mesh axes lie.

  Attributes:
    rings: of a torus; empty on machines of GPUs.
    machines: machines that a group touches, 1 on a torus.
    near: its devices in one machine.
  """

  rings: tuple[Ring, ...]
  machines: int
  near: int

  def __str__(self):
    if self.rings:
      return " x ".join(
        f"{ring.size} {'in a ring' if ring.closed else 'in a line'}"
        for ring in self.rings
      )
    return f"{self.near} GPUs of {self.machines} machines"


def place(
  mesh: jax.sharding.Mesh, names: Sequence[str], kind: str, torus: Sequence[int]
) -> Place:
  """Where the groups of mesh axes `names` lie.

  Args:
    mesh: of the devices of a `topology.Topology`.
    names: mesh axes.
    kind: of the topology.
    torus: its shape.
  """
  if not names:
    return Place((), 1, 1)
  kept = [mesh.axis_names.index(name) for name in names]
  index = tuple(
    slice(None) if i in kept else 0 for i in range(mesh.devices.ndim)
  )
  group = mesh.devices[index].reshape(-1)
  if kind in _MACHINES:
    machines = {device.id // _GPUS_OF_A_MACHINE for device in group}
    return Place((), len(machines), len(group) // len(machines))
  coordinates = np.array([device.coords[: len(torus)] for device in group])
  rings = []
  for along, whole in zip(coordinates.T, torus, strict=True):
    size = len(np.unique(along))
    if size > 1:
      rings.append(Ring(size, size == whole and _wraps(kind, whole)))
  return Place(tuple(rings), 1, len(group))


def _wraps(kind: str, size: int) -> bool:
  """Whether an axis of `size` chips of a torus is closed."""
  return size % 4 == 0 if kind in ("v5p", "tpu7x") else size == 16


def seconds(
  collective: collectives_lib.Collective, where: Place, kind: str
) -> float:
  """The least time of one run of `collective`.

  Args:
    collective: of a compiled program.
    where: its axes lie.
    kind: of the topology.
  """
  n = collective.group
  if n <= 1:
    return 0.0
  exchange = "all-to-all" in collective.op
  buffer = collective.buffer_bytes
  if where.rings:
    link = _TORUS[kind] * 1e9
    if exchange:
      # A row takes a quarter of the ring on average, in either direction.
      return max(
        buffer * ring.size / (8 if ring.closed else 4) / link
        for ring in where.rings
      )
    if collective.op == "collective-permute":
      return collective.wire_bytes / link
    ways = sum(2 if ring.closed else 1 for ring in where.rings)
    return collective.wire_bytes / (ways * link)
  nvlink, network = (rate * 1e9 for rate in _MACHINES[kind])
  within = (where.near - 1) / (n - 1)
  if exchange or collective.op == "collective-permute":
    far = collective.wire_bytes * (1 - within)
    return max(far / network, (collective.wire_bytes - far) / nvlink)
  # A machine's GPUs share what comes from outside: each fetches a part.
  far = collective.wire_bytes * (where.machines - 1) / (n - 1)
  return max(far / network, collective.wire_bytes * math.ceil(within) / nvlink)
