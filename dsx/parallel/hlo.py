"""Compiled programs as text (HLO), taken apart.

`jax.stages.Compiled.as_text()` is the only view of what a compiler made that
is the same for CPU, GPU and TPU. This reads what can be read without
understanding each operation: computations, their instructions, sizes of types,
which instruction uses which, and how often a computation runs.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import math
import re

_COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*-> .*\{$")
_NAMED = re.compile(r"\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = ")
_END = re.compile(r"\}(\s|$)")
_ARRAY = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<dims>[\d,<=]*)\]")
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation"
  r"|async_execution_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":?\s*\{\s*"n":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_LIMIT = re.compile(r"constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: unique in its computation.
    type: of its result, as it is written.
    opcode: `fusion`, `all-gather-start` and so on.
    operands: names of instructions of the same computation.
    text: the whole line.
  """

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  text: str

  @functools.cached_property
  def bytes(self) -> int:
    """Of the result, all parts of a tuple together."""
    return type_bytes(self.type)

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that it runs."""
    names = _CALLED.findall(self.text)
    for branches in _BRANCHES.findall(self.text):
      names += [name.strip().lstrip("%") for name in branches.split(",")]
    return tuple(names)

  @property
  def source(self) -> str:
    """The JAX operation that it comes from, if the compiler kept it."""
    found = _SOURCE.search(self.text)
    return found[1] if found else ""

  def attribute(self, name: str) -> str | None:
    """A plain attribute's value, such as `direction`'s."""
    found = re.search(rf"\b{name}=%?([\w.-]+)", self.text)
    return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
  """A list of instructions in order of execution, if the program has one.

  Attributes:
    name: unique in its program.
    instructions: by name.
  """

  name: str
  instructions: dict[str, Instruction]

  def operand_bytes(self, instruction: Instruction) -> int:
    """Bytes of everything that `instruction` reads."""
    return sum(
      self.instructions[name].bytes
      for name in instruction.operands
      if name in self.instructions
    )


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    entry: the computation that is the program.
    computations: all of them by name.
  """

  entry: str
  computations: dict[str, Computation]

  def runs(self, trips: Mapping[str, int] | None = None) -> dict[str, int]:
    """How often each computation runs when the program runs once.

    Every branch of a conditional counts.

    Args:
      trips: iterations of loops whose length the program does not say, by a
        `jax.named_scope` around them; 1 for those that are not named.
    """
    counts: dict[str, int] = dict.fromkeys(self.computations, 0)

    def visit(name: str, times: int) -> None:
      counts[name] += times
      for instruction in self.computations[name].instructions.values():
        inside = times
        if instruction.opcode == "while":
          known = self.trips(instruction)
          inside *= _named(instruction, trips) if known is None else known
        for called in instruction.called:
          if called in self.computations:
            visit(called, inside)

    visit(self.entry, 1)
    return counts

  def trips(self, loop: Instruction) -> int | None:
    """Iterations of a `while`, or None if they depend on data.

    TPU programs leave out `known_trip_count`; there it is the constant that
    the counter is compared with, which in JAX's loops begins at 0.
    """
    known = _TRIPS.search(loop.text)
    if known:
      return int(known[1])
    condition = self.computations.get(loop.attribute("condition") or "")
    if condition is None:
      return None
    *_, root = condition.instructions.values()
    if root.opcode != "compare" or root.attribute("direction") != "LT":
      return None
    limit = condition.instructions.get(root.operands[-1])
    number = limit and _LIMIT.search(limit.text)
    return int(number[1]) if number else None


def _named(loop: Instruction, trips: Mapping[str, int] | None) -> int:
  for name, count in (trips or {}).items():
    if re.search(rf"\b{re.escape(name)}\)*/while$", loop.source):
      return count
  return 1


def parse(text: str) -> Program:
  """Takes a program apart.

  Raises:
    ValueError: it has no entry computation.
  """
  computations, entry, current = {}, None, None
  for line in _whole_lines(text):
    if current is None:
      header = _HEADER.match(line)
      if header:
        current = Computation(header["name"], {})
        computations[current.name] = current
        entry = current.name if header["entry"] else entry
    elif _END.match(line):
      current = None
    else:
      instruction = _instruction(line)
      if instruction:
        current.instructions[instruction.name] = instruction
  if entry is None:
    raise ValueError("program text: expected HLO with an ENTRY computation")
  return Program(entry, computations)


def _whole_lines(text: str) -> Iterator[str]:
  """Lines of a program, put together where a kernel's metadata break them."""
  held = ""
  for line in text.splitlines():
    if _NAMED.match(held) and not (_NAMED.match(line) or _END.match(line)):
      held += line
    else:
      yield held
      held = line
  yield held


def _instruction(line: str) -> Instruction | None:
  named = _NAMED.match(line)
  if not named:
    return None
  start = named.end()
  stop = _closing(line, start) if line[start] == "(" else line.index(" ", start)
  opened = line.index("(", stop)
  inside = line[opened : _closing(line, opened)]
  return Instruction(
    name=named["name"],
    type=line[start:stop],
    opcode=line[stop:opened].strip(),
    operands=tuple(_OPERAND.findall(inside)),
    text=line.strip(),
  )


def _closing(line: str, start: int) -> int:
  """Just behind the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(line)):
    depth += {"(": 1, ")": -1}.get(line[place], 0)
    if not depth:
      return place + 1
  raise ValueError(f"unbalanced parentheses in {line[:80]!r}")


def arrays(kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
  """(dtype, shape) of each array in a type."""
  for match in _ARRAY.finditer(kind):
    dims = match["dims"].replace("<=", "")
    yield match["dtype"], tuple(int(d) for d in dims.split(",") if d)


def is_collective(opcode: str) -> bool:
  """Whether an instruction sends data, or starts to."""
  return opcode.removesuffix("-start") in _COLLECTIVES


def type_bytes(kind: str) -> int:
  """Bytes of a type, without padding.

  >>> type_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, s32[])")
  16
  """
  return sum(
    -(-math.prod(shape) * _bits(dtype) // 8) for dtype, shape in arrays(kind)
  )


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  width = re.search(r"\d+", dtype)
  if not width:
    raise ValueError(f"dtype {dtype!r} of a compiled program: size unknown")
  return int(width[0])
