"""The step time that published rates allow a compiled program.

Three parts. *Computation*: the compiler's own estimate of cycles where it gives
one (TPUs), else all products at the published peak. Kernels, which it leaves
out: the experts' at the peak, attention's at the share of it that their own
schedules reach (docs/scale.md). *Network*: every collective at published link
rates (`parallel.links`), a ragged exchange by the rows that balanced routing
sends. *Overlap*: what the program's schedule runs while a collective is under
way hides it; the rest is added.

It is an estimate: no latency, no contention, balanced experts, and the experts'
kernels as good as products can be. Nothing was measured on the machine.
"""

import dataclasses
import math
import re

from dsx import cost
from dsx.parallel import axes
from dsx.parallel import collectives as collectives_lib
from dsx.parallel import hlo
from dsx.parallel import links
from dsx.parallel import overlap
from dsx.training import ahead_of_time

# Clock rates that turn cycles into seconds.
_HERTZ = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9, "tpu7x": 1.75e9}
_UNKNOWN = 2**50  # the compiler's number where it knows none
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Splash attention: products with a query/key head and with a value head that a
# kernel makes for a score, and the share of the peak that those of the scores
# below the diagonal reach by libtpu's schedule, for v5p and 4,096 tokens.
_ATTENTION = {"fwd": (1, 1, 0.48), "dkv": (2, 2, 0.64), "dq": (2, 1, 0.63)}
_SPLASH = re.compile(r"splash_[a-z]+_(fwd|dkv|dq)_")
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}, \w+=")
# Forward is a third of forward and backward.
_RECOMPUTED = {"none": 0.0, "paper": 0.0, "full": 1 / 3}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one optimizer step.

  Attributes:
    model: the FLOPs that the model needs, at the peak.
    products: those that the program makes, recomputation included.
    compiler: the compiler's estimate of all but kernels, if it makes one.
    kernels: products of the experts in kernels, at the peak.
    attention: kernels of attention, as fast as they are scheduled.
    hidden: collectives during which other work is scheduled.
    exposed: collectives that are waited for.
  """

  model: float
  products: float
  compiler: float | None
  kernels: float
  attention: float
  hidden: float
  exposed: float

  @property
  def computation(self) -> float:
    """All but the network."""
    if self.compiler is None:
      return self.products
    return max(self.products, self.compiler + self.kernels + self.attention)

  @property
  def step(self) -> float:
    """The whole step."""
    return max(self.computation, self.hidden) + self.exposed

  @property
  def mfu(self) -> float:
    """Share of the peak that the model's FLOPs would reach."""
    return self.model / self.step

  @property
  def best_mfu(self) -> float:
    """The same if computation hid all of the network."""
    return self.model / max(self.computation, self.hidden + self.exposed)


def estimate(step: ahead_of_time.CompiledStep) -> Estimate:
  """The estimate for a compiled step."""
  run, program = step.run, step.program
  length = run.data.sequence_length
  tokens = run.schedule.batch_size * length / len(step.topology.devices)
  chip = ahead_of_time.chip_of(step.topology.kind)
  peak = chip.bf16_tflops * 1e12 / chip.devices
  model = cost.flops_per_token(run.config, length, mtp=True) * tokens / peak
  recomputed = 1 + _RECOMPUTED[run.execution.remat]
  in_kernels = expert_flops_per_token(run.config) * tokens / peak
  behind = overlap.hidden(program)
  hidden = exposed = 0.0
  for one in step.collectives:
    took = seconds(step, one)
    if (one.computation, one.name) in behind:
      hidden += took
    else:
      exposed += took
  cycles = _cycles(program, step.trips)
  hertz = _HERTZ.get(step.topology.kind)
  return Estimate(
    model=model,
    products=model * recomputed,
    compiler=cycles / hertz if hertz and cycles else None,
    kernels=in_kernels * recomputed,
    attention=attention_flops(step) / peak,
    hidden=hidden,
    exposed=exposed,
  )


def expert_flops_per_token(config) -> float:
  """FLOPs of training in the routed experts, MTP's included."""
  matrices = 3 * config.hidden_size * config.moe_intermediate_size
  layers = config.num_moe_layers + config.num_nextn_predict_layers
  return 6.0 * layers * config.num_experts_per_tok * matrices


def attention_flops(step: ahead_of_time.CompiledStep) -> float:
  """FLOPs that a device could make at its peak while attention's kernels run.

  As often as the program runs them, recomputation included. Other kernels of
  attention than splash attention's are not known.
  """
  config, program, total = step.run.config, step.program, 0.0
  scores = step.run.data.sequence_length**2 / 2
  for name, times in program.runs(step.trips).items():
    for line in program.computations[name].instructions.values():
      found = _SPLASH.match(line.name)
      if times and found and line.opcode == "custom-call":
        on_keys, on_values, share = _ATTENTION[found[1]]
        products = on_keys * config.qk_head_dim + on_values * config.v_head_dim
        total += times * _heads(line) * 2 * scores * products / share
  return total


def _heads(kernel: hlo.Instruction) -> int:
  """Heads of all sequences that a kernel of attention is given."""
  operands = _OPERANDS.search(kernel.text)
  for _, shape in hlo.arrays(operands[1] if operands else ""):
    if len(shape) == 4:  # the queries: parts, heads of each, length and width
      return shape[0] * shape[1]
  raise ValueError(f"kernel {kernel.name}: expected operands of 4 dimensions")


def _cycles(program: hlo.Program, trips: dict[str, int]) -> int:
  """The compiler's cycles of one run; 0 where it gives none."""
  total = 0
  for name, times in program.runs(trips).items():
    if times:
      for line in program.computations[name].instructions.values():
        found = _CYCLES.search(line.text)
        cycles = int(found[1]) if found else 0
        total += times * cycles if cycles < _UNKNOWN else 0
  return total


def seconds(
  step: ahead_of_time.CompiledStep, one: collectives_lib.Collective
) -> float:
  """The least time of all runs of a collective in one step."""
  topology = step.topology
  where = links.place(step.mesh, one.axes, topology.kind, topology.shape)
  ragged = one.op == "ragged-all-to-all"
  share = _rows_in_use(step, one.axes) if ragged else 1.0
  return links.seconds(one, where, topology.kind) * one.times * share


def _rows_in_use(step: ahead_of_time.CompiledStep, names) -> float:
  """Share of an exchange's buffer that balanced experts fill, at most."""
  config = step.run.config
  factor = step.run.execution.dispatch.capacity_factor
  if factor is not None:
    return min(1.0, 1.0 / factor)
  if names == (axes.NODE,):  # room for all tokens, to each node
    return min(1.0, config.topk_group / step.mesh.shape[axes.NODE])
  devices = math.prod(step.mesh.shape[name] for name in axes.EXPERT_MESH_AXES)
  return min(1.0, config.num_experts_per_tok / devices)
