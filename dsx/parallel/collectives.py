"""What a compiled program sends: every collective, its mesh axes and bytes.

Read from the text of the program that would run, after all of the compiler's
changes, so that nothing is believed that was only asked for. Bytes are those of
one device in one run of the program, loops multiplied out.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re

import jax
import numpy as np

from dsx.parallel import hlo

_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
_IOTA = re.compile(
  r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](.*?) ?\{([^}]*)\}")
_ORDER = re.compile(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program.

  Attributes:
    name: of its instruction.
    computation: that the instruction belongs to.
    op: `all-gather`, `all-to-all` and so on.
    axes: mesh axes over which its devices differ.
    group: devices that take part together.
    buffer_bytes: what each of them puts in.
    wire_bytes: what each of them has to send, at least. For a ragged exchange
      it is the most it can be: the rows in use are known at run time alone.
    times: how often it runs when the program runs once.
    source: the JAX operation that it comes from, if the compiler kept it.
  """

  name: str
  computation: str
  op: str
  axes: tuple[str, ...]
  group: int
  buffer_bytes: int
  wire_bytes: float
  times: int
  source: str

  @property
  def total_wire_bytes(self) -> float:
    """What a device sends in one run of the program."""
    return self.wire_bytes * self.times


def read(
  program: str | hlo.Program,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
  *,
  trips: Mapping[str, int] | None = None,
) -> list[Collective]:
  """All collectives of a compiled program, in the order of its text.

  Args:
    program: `Compiled.as_text()`, or that parsed.
    mesh: it was compiled for; devices in its order.
    trips: as `hlo.Program.runs` has them.

  Raises:
    ValueError: devices are grouped in a way that this does not know.
  """
  if isinstance(program, str):
    program = hlo.parse(program)
  sizes = dict(mesh.shape)
  found = []
  for name, times in program.runs(trips).items():
    computation = program.computations[name]
    for instruction in computation.instructions.values():
      if times and hlo.is_collective(instruction.opcode):
        op = instruction.opcode.removesuffix("-start")
        found.append(_collective(instruction, op, computation, sizes, times))
  return found


def _collective(instruction, op, computation, sizes, times) -> Collective:
  # A TPU writes reduce-scatter as an all-reduce of which each keeps a part.
  if op == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
    op = "reduce-scatter"
  operands = computation.operand_bytes(instruction)
  if op == "ragged-all-to-all":
    rows = computation.instructions.get(instruction.operands[0])
    operands = rows.bytes if rows else instruction.bytes
  if op == "collective-permute":
    axes, sending = _moved(instruction.text, sizes)
    group, wire = _size(axes, sizes), operands * sending
  else:
    groups = device_groups(instruction.text, math.prod(sizes.values()))
    axes, group = spanned(groups, sizes), groups.shape[1]
    wire = operands * _sent(op, group)
  return Collective(
    name=instruction.name,
    computation=computation.name,
    op=op,
    axes=axes,
    group=group,
    buffer_bytes=operands,
    wire_bytes=wire,
    times=times,
    source=instruction.source,
  )


def _sent(op: str, n: int) -> float:
  """Bytes sent per byte put in, by the best algorithm for large buffers."""
  if op == "all-gather":
    return n - 1
  if op == "all-reduce":
    return 2 * (n - 1) / n
  if op == "collective-broadcast":
    return 1
  return (n - 1) / n


def _size(axes: Sequence[str], sizes: dict[str, int]) -> int:
  return math.prod(sizes[axis] for axis in axes)


def device_groups(text: str, n_devices: int) -> np.ndarray:
  """Which devices meet in a collective, [groups, devices of each].

  Args:
    text: of its instruction, in any of the three forms: lists, the reshaped
      and transposed iota, and axes of a mesh of the compiler's own.
    n_devices: that the program runs on.

  >>> device_groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4).tolist()
  [[0, 2], [1, 3]]
  """
  listed = _LISTED.search(text)
  if listed:
    rows = re.findall(r"\{([\d, ]+)\}", listed[0])
    if not rows:
      return np.arange(n_devices)[None]
    return np.array([_numbers(row) for row in rows])
  iota = _IOTA.search(text)
  if iota:
    return _iota(*iota.groups()[1:]).reshape(_numbers(iota[1]))
  found = _MESH.search(text)
  order = found and _ORDER.fullmatch(found[2].strip(" ,"))
  if found and (order or not found[2].strip()):
    positions = _of_mesh(found[1], found[3])
    return _iota(*order.groups()).reshape(-1)[positions] if order else positions
  raise ValueError(
    f"replica_groups of {text[:120]!r}: expected lists, an iota or a mesh"
  )


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _iota(dims: str, order: str | None) -> np.ndarray:
  """0, 1, 2, ... in the shape `dims`, transposed."""
  ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
  return ids.transpose(_numbers(order)) if order else ids


def _of_mesh(mesh: str, parts: str) -> np.ndarray:
  """Groups over some axes, or parts of axes, of a mesh in device order.

  A part `'x':(2)4` is the 4 in the middle when x is cut into 2, 4 and the rest.
  """
  names, dims, chosen = [], [], []
  wanted = {
    name: (int(before or 1), int(size) if size else None)
    for name, before, size in _PART.findall(parts)
  }
  for name, size in _MESH_AXIS.findall(mesh):
    whole = int(size)
    before, own = wanted.get(name, (1, None))
    own = own or (whole if name in wanted else 1)
    for dim, taken in (
      (before, False),
      (own, name in wanted),
      (whole // before // own, False),
    ):
      chosen += [len(dims)] if taken else []
      names.append(name)
      dims.append(dim)
  # Groups list their devices in the order in which the axes are named.
  order = list(wanted)
  chosen.sort(key=lambda place: order.index(names[place]))
  rest = [place for place in range(len(dims)) if place not in chosen]
  ids = np.arange(math.prod(dims)).reshape(dims).transpose(rest + chosen)
  return ids.reshape(-1, math.prod(dims[place] for place in chosen))


def spanned(groups: np.ndarray, sizes: dict[str, int]) -> tuple[str, ...]:
  """Mesh axes along which the devices of a group differ."""
  places = np.unravel_index(groups, tuple(sizes.values()))
  return tuple(
    axis
    for axis, place in zip(sizes, places, strict=True)
    if (place != place[:, :1]).any()
  )


def _moved(text: str, sizes: dict[str, int]) -> tuple[tuple[str, ...], float]:
  """Mesh axes that a permutation moves data along; the share that is sent."""
  pairs = _PAIRS.search(text)
  if not pairs:
    raise ValueError(f"{text[:120]!r}: expected source_target_pairs")
  numbers = [int(i) for i in re.findall(r"\d+", pairs[1])]
  table = np.array(numbers).reshape(-1, 2)
  table = table[table[:, 0] != table[:, 1]]
  share = len(table) / math.prod(sizes.values())
  return spanned(table, sizes) if len(table) else (), share


def crossing(collective: Collective, axis: str, sizes: dict[str, int]) -> float:
  """Wire bytes of one run to devices elsewhere along `axis`, sent directly.

  What of an exchange of all with all over several axes leaves a machine.

  Args:
    collective: of a program.
    axis: a mesh axis.
    sizes: of all mesh axes.
  """
  if axis not in collective.axes:
    return 0.0
  near = collective.group // sizes[axis]  # with the same place along it
  share = (collective.group - near) / (collective.group - 1)
  return collective.wire_bytes * share


def totals(
  found: Sequence[Collective],
) -> dict[tuple[str, tuple[str, ...]], tuple[int, float]]:
  """By operation and axes: how many run, and the bytes a device sends."""
  table: dict[tuple[str, tuple[str, ...]], tuple[int, float]] = {}
  for one in found:
    runs, sent = table.get((one.op, one.axes), (0, 0.0))
    table[one.op, one.axes] = runs + one.times, sent + one.total_wire_bytes
  return table


def by_axes(found: Sequence[Collective]) -> dict[tuple[str, ...], float]:
  """Bytes that a device sends in one run, by the mesh axes they travel."""
  table: dict[tuple[str, ...], float] = {}
  for one in found:
    table[one.axes] = table.get(one.axes, 0.0) + one.total_wire_bytes
  return table
