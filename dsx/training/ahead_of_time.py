"""The real train step of a run, compiled for machines that are not here.

Nothing is allocated: the step is traced on shapes, exactly as `loop.py` would
jit it, and compiled by the compiler of the machine for all of its devices. What
comes back is the program that would run there, with its memory, its
collectives and its schedule.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from dsx import cost
from dsx.models import language_model
from dsx.ops import platforms
from dsx.parallel import collectives as collectives_lib
from dsx.parallel import hlo
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import rounds
from dsx.parallel import sharding as sharding_lib
from dsx.parallel import topology as topology_lib
from dsx.training import pretraining
from dsx.training import state as state_lib
from dsx.training import step as step_lib

_PHASE = (
  "learning_rate",
  "bias_update_speed",
  "balance_weight",
  "mtp_weight",
)


class TooLarge(ValueError):
  """The program needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device, as the compiler has laid them out.

  Attributes:
    state: what outlives the step: parameters, moments, biases.
    arguments: the batch and what else the step is given.
    temporaries: gradients, activations and everything else within the step.
    code: the program.
    device: what a device has, as published.
  """

  state: int
  arguments: int
  temporaries: int
  code: int
  device: int

  @property
  def total(self) -> int:
    """All of it; the state is updated in place."""
    return self.state + self.arguments + self.temporaries + self.code

  @property
  def fits(self) -> bool:
    """Whether a device has room for all of it."""
    return self.total <= self.device


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A compiled step and what it was compiled from.

  Attributes:
    run: what would be trained.
    topology: the machine.
    mesh: of its devices.
    memory: on one device.
    text: the program.
    trace_seconds: it took to trace and lower.
    compile_seconds: it took to compile.
  """

  run: pretraining.Pretraining
  topology: topology_lib.Topology
  mesh: jax.sharding.Mesh
  memory: Memory
  text: str
  trace_seconds: float
  compile_seconds: float

  @functools.cached_property
  def program(self) -> hlo.Program:
    """The program, taken apart."""
    return hlo.parse(self.text)

  @property
  def trips(self) -> dict[str, int]:
    """Iterations of the loops whose length is known at run time alone."""
    return {
      step_lib.MICRO_BATCHES: self.run.micro_batches,
      rounds.FURTHER_ROUNDS: 0,
    }

  @functools.cached_property
  def collectives(self) -> list[collectives_lib.Collective]:
    """Everything that it sends."""
    return collectives_lib.read(self.program, self.mesh, trips=self.trips)


def mesh_of(
  run: pretraining.Pretraining, topology: topology_lib.Topology
) -> jax.sharding.Mesh:
  """The run's mesh on the devices of `topology`.

  Raises:
    ValueError: it does not match them, or does not divide a micro-batch.
  """
  mesh = mesh_lib.make(run.mesh, topology.devices)
  run.check_batch(mesh_lib.batch_shards(mesh))
  return mesh


def lowered(run: pretraining.Pretraining, topology: topology_lib.Topology):
  """The step on shapes, ready to be compiled for `topology`.

  The largest batch of the schedule, with the run's micro-batches.

  Returns:
    (`jax.stages.Lowered`, bytes of the state on one device).
  """
  mesh = mesh_of(run, topology)
  model = language_model.build(run.config, run.dtypes, run.execution)
  optimizer = run.optimizer.transformation()
  with (
    sharding_lib.use(mesh, run.sharding),
    platforms.compiling_for(topology.platform),
  ):
    boxed = state_lib.abstract(model, optimizer)
    placement = state_lib.shardings(boxed, run.sharding, mesh)
    state = state_lib.restorable(boxed, placement)
    step = step_lib.compiled(model, optimizer, placement)
    traced = step.trace(state, _batch(run, mesh), _scalars(mesh))
    program = traced.lower(lowering_platforms=(_lowering(topology),))
  sizes = jax.tree.map(
    lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize,
    state,
  )
  return program, sum(jax.tree.leaves(sizes))


def _lowering(topology: topology_lib.Topology) -> str:
  return "cuda" if topology.platform == "gpu" else topology.platform


def _batch(run: pretraining.Pretraining, mesh) -> dict[str, Any]:
  shape = run.micro_batches, run.micro_batch, run.data.sequence_length + 1
  placement = sharding_lib.batch_sharding(mesh, leading=1)
  return {"tokens": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=placement)}


def _scalars(mesh) -> dict[str, Any]:
  def scalar(dtype):
    everywhere = sharding_lib.replicated(mesh)
    return jax.ShapeDtypeStruct((), dtype, sharding=everywhere)

  scalars = {name: scalar(jnp.float32) for name in _PHASE}
  return scalars | {"micro_batches": scalar(jnp.int32)}


def compile_step(
  run: pretraining.Pretraining, topology: topology_lib.Topology
) -> CompiledStep:
  """Compiles the step of `run` for `topology`.

  Raises:
    TooLarge: a TPU's compiler found no way to fit it into a device's memory.
    ValueError: the mesh does not fit the topology or the batch.
  """
  began = time.monotonic()
  program, state_bytes = lowered(run, topology)
  traced = time.monotonic()
  try:
    compiled = program.compile()
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
      raise
    raise TooLarge(_explained(message, topology)) from error
  done = time.monotonic()
  found: Any = compiled.memory_analysis()
  memory = Memory(
    state=state_bytes,
    arguments=found.argument_size_in_bytes - state_bytes,
    temporaries=found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes,
    code=found.generated_code_size_in_bytes,
    device=device_memory(topology.kind),
  )
  return CompiledStep(
    run=run,
    topology=topology,
    mesh=mesh_of(run, topology),
    memory=memory,
    text=compiled.as_text() or "",
    trace_seconds=traced - began,
    compile_seconds=done - traced,
  )


def chip_of(kind: str) -> cost.Chip:
  """The published chip of a topology."""
  return cost.CHIPS[kind.upper() if kind.startswith("h") else kind]


def device_memory(kind: str) -> int:
  """Published bytes of one device of a topology."""
  chip = chip_of(kind)
  # `cost.Chip.memory`: Google counts in GiB, NVIDIA in GB.
  unit = 10**9 if kind.startswith("h") else 2**30
  return chip.memory * unit // chip.devices


def _explained(message: str, topology: topology_lib.Topology) -> str:
  first = next(
    (line for line in message.splitlines() if "memory" in line), message
  )
  return (
    f"topology={topology.name}: the step does not fit: "
    f"{first.strip()}; use more chips, a smaller micro_batch_size, "
    "Execution.remat or Dispatch.capacity_factor"
  )
