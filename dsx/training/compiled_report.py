"""What `experiments.compile_topology` prints about a compiled step."""

import collections
from collections.abc import Iterator

from dsx import cost
from dsx.parallel import links
from dsx.parallel import overlap
from dsx.training import ahead_of_time
from dsx.training import dry_run
from dsx.training import roofline

_AXES = "·"


def describe(step: ahead_of_time.CompiledStep) -> str:
  """Tables of memory, collectives and time.

  Args:
    step: from `ahead_of_time.compile_step`.
  """
  tables = (
    (("what", "value"), list(_what(step))),
    (("memory of a device", "GiB"), list(_memory(step))),
    (_SENT, list(_sent(step))),
    (("time of a step", "seconds"), list(_time(step))),
  )
  return "\n\n".join("\n".join(dry_run.table(*table)) for table in tables)


def _what(step: ahead_of_time.CompiledStep) -> Iterator[tuple[str, str]]:
  run, topology = step.run, step.topology
  shape = " x ".join(f"{n}={s}" for n, s in step.mesh.shape.items() if s > 1)
  tokens = run.schedule.batch_size * run.data.sequence_length
  yield "topology", f"{topology.name}, {len(topology.devices):,} devices"
  yield "mesh", shape or "one device"
  for name, size in step.mesh.shape.items():
    if size > 1:
      where = links.place(step.mesh, (name,), topology.kind, topology.shape)
      yield f"  {name}", str(where)
  yield "strategy", run.sharding.strategy
  yield "parameters", f"{cost.parameters(run.config):,}"
  yield "parameters of MTP", f"{cost.mtp_parameters(run.config):,}"
  yield (
    "batch",
    f"{run.schedule.batch_size:,} x {run.data.sequence_length:,} "
    f"({tokens:,} tokens), {run.micro_batches} micro-batches",
  )
  flops = tokens * cost.flops_per_token(
    run.config, run.data.sequence_length, mtp=True
  )
  yield "FLOPs of a step", f"{flops:.3e}"
  yield "FLOPs of a device", f"{flops / len(topology.devices):.3e}"
  yield "execution", _execution(run)
  yield "traced in", f"{step.trace_seconds:.0f} s"
  yield "compiled in", f"{step.compile_seconds:.0f} s"


def _execution(run) -> str:
  execution, dispatch = run.execution, run.execution.dispatch
  factor = dispatch.capacity_factor
  room = "any number of copies" if factor is None else f"{factor} of the mean"
  return (
    f"remat {execution.remat}, dispatch {dispatch.transport} "
    f"({dispatch.dtype}, room for {room}), overlap {execution.overlap}"
  )


def _memory(step: ahead_of_time.CompiledStep) -> Iterator[tuple[str, str]]:
  memory = step.memory
  for name in ("state", "arguments", "temporaries", "code", "total", "device"):
    yield name, f"{getattr(memory, name) / 2**30:.2f}"
  yield "fits", "yes" if memory.fits else "NO"


_SENT = (
  "collective",
  "mesh axes",
  "runs",
  "GB a device sends",
  "at least, s",
  "overlapped",
)


def _sent(step: ahead_of_time.CompiledStep) -> Iterator[tuple[str, ...]]:
  rows: dict[tuple[str, tuple[str, ...]], list] = collections.defaultdict(list)
  for one in step.collectives:
    rows[one.op, one.axes].append(one)
  hidden = overlap.hidden(step.program)

  def sent(item):
    return -sum(one.total_wire_bytes for one in item[1])

  for (op, axes), found in sorted(rows.items(), key=sent):
    seconds = sum(roofline.seconds(step, one) for one in found)
    behind = sum(
      one.total_wire_bytes
      for one in found
      if (one.computation, one.name) in hidden
    )
    total = sum(one.total_wire_bytes for one in found)
    upper = "at most " if op == "ragged-all-to-all" else ""
    yield (
      op,
      _AXES.join(axes) or "-",
      f"{sum(one.times for one in found):,}",
      f"{upper}{total / 1e9:,.2f}",
      f"{seconds:.2f}",
      f"{behind / total:.0%}" if total else "-",
    )


def _time(step: ahead_of_time.CompiledStep) -> Iterator[tuple[str, str]]:
  estimate = roofline.estimate(step)
  yield "model FLOPs at the peak", f"{estimate.model:.2f}"
  yield "products of the program at the peak", f"{estimate.products:.2f}"
  if estimate.compiler is not None:
    yield "compiler's own estimate, without kernels", f"{estimate.compiler:.2f}"
    yield "kernels of grouped products at the peak", f"{estimate.kernels:.2f}"
    yield "kernels of attention as scheduled", f"{estimate.attention:.2f}"
  yield "network, hidden behind computation", f"{estimate.hidden:.2f}"
  yield "network, not hidden", f"{estimate.exposed:.2f}"
  # Without the compiler's word for it, computation is at its best.
  bound = "" if estimate.compiler is not None else ", at most"
  yield f"step{bound and ', at least'}", f"{estimate.step:.2f}"
  yield f"MFU{bound}", f"{estimate.mfu:.1%}"
  yield "MFU if all of the network were hidden", f"{estimate.best_mfu:.1%}"
