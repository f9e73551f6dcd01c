"""What a compiled program does while data travel.

A collective that the compiler starts early and awaits late appears as two
instructions, `...-start` and `...-done`; what stands between them in a
scheduled program runs meanwhile. One that appears once is waited for.
"""

from collections.abc import Iterator
import dataclasses

from dsx.parallel import hlo

# What takes time: the rest renames, slices and bookkeeps.
_WORK = (
  "conditional",
  "convolution",
  "custom-call",
  "dot",
  "fusion",
  "reduce",
  "sort",
  "while",
)


@dataclasses.dataclass(frozen=True)
class Travel:
  """A collective that is under way for some time.

  Attributes:
    computation: that it belongs to.
    start: name of the instruction that starts it.
    collectives: (computation, name) of what travels.
    meanwhile: instructions that do work until it is awaited.
  """

  computation: str
  start: str
  collectives: tuple[tuple[str, str], ...]
  meanwhile: tuple[hlo.Instruction, ...]


def travels(program: hlo.Program) -> Iterator[Travel]:
  """Every asynchronous collective of a scheduled program."""
  for computation in program.computations.values():
    lines = list(computation.instructions.values())
    place = {line.name: i for i, line in enumerate(lines)}
    for done in lines:
      start = _start_of(done, computation)
      carried = start and tuple(_carried(program, computation, start))
      if not start or not carried:
        continue
      between = lines[place[start.name] + 1 : place[done.name]]
      yield Travel(
        computation=computation.name,
        start=start.name,
        collectives=carried,
        meanwhile=tuple(line for line in between if line.opcode in _WORK),
      )


def _start_of(done: hlo.Instruction, computation) -> hlo.Instruction | None:
  """The start that `done` awaits, through links of an asynchronous chain."""
  if not done.opcode.endswith("-done"):
    return None
  found = computation.instructions.get(done.operands[0])
  while found and found.opcode == "async-update":
    found = computation.instructions.get(found.operands[0])
  return found if found and found.opcode.endswith("-start") else None


def _carried(program, computation, start) -> Iterator[tuple[str, str]]:
  """(computation, name) of the collectives that `start` starts."""
  if hlo.is_collective(start.opcode):
    yield computation.name, start.name
  for called in start.called if start.opcode == "async-start" else ():
    inside = program.computations.get(called)
    for line in inside.instructions.values() if inside else ():
      if hlo.is_collective(line.opcode):
        yield called, line.name


def hidden(program: hlo.Program) -> set[tuple[str, str]]:
  """(computation, name) of the collectives behind which there is work."""
  return {
    one
    for travel in travels(program)
    if travel.meanwhile
    for one in travel.collectives
  }
