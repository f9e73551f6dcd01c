"""What a run would be: shapes, shardings, memory and FLOPs, in seconds.

Nothing is allocated or compiled: shapes come from `jax.eval_shape`, and the
mesh may be larger than the machine, so that the 671B run can be looked at on
a laptop.
"""

import collections
import math

import jax
import numpy as np

from dsx import cost
from dsx.models import language_model
from dsx.parallel import axes
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import pretraining
from dsx.training import schedules
from dsx.training import state as state_lib


def _count(number: float) -> str:
  for unit in ("", "K", "M", "B", "T"):
    if abs(number) < 1000 or unit == "T":
      return f"{number:,.0f}{unit}" if not unit else f"{number:,.2f}{unit}"
    number /= 1000
  raise AssertionError(number)


def _bytes(number: float) -> str:
  for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
    if number < 1024 or unit == "TiB":
      return f"{number:,.1f} {unit}"
    number /= 1024
  raise AssertionError(number)


def abstract_mesh(run: pretraining.Pretraining) -> jax.sharding.AbstractMesh:
  """The run's mesh, without devices; an axis of -1 takes this machine's."""
  sizes = [getattr(run.mesh, name) for name in axes.MESH_AXES]
  wanted = jax.device_count() if -1 in sizes else math.prod(sizes)
  kinds = (jax.sharding.AxisType.Auto,) * len(axes.MESH_AXES)
  return jax.sharding.AbstractMesh(
    run.mesh.resolve(wanted), axes.MESH_AXES, axis_types=kinds
  )


def _spec(sharding) -> str:
  def part(p):
    return "-" if p is None else p if isinstance(p, str) else "·".join(p)

  return "[" + ", ".join(part(p) for p in sharding.spec) + "]"


def _local_bytes(tree, placement) -> int:
  """Bytes of a tree on one device."""
  sizes = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize,
    tree,
    placement,
  )
  return sum(jax.tree.leaves(sizes))


def parameter_rows(state, placement):
  """(name, shape, spec, count, dtype) of every parameter, in tree order."""
  leaves = jax.tree_util.tree_flatten_with_path(state.params)[0]
  biases = jax.tree_util.tree_flatten_with_path(state.router_bias)[0]
  where = jax.tree.leaves(placement.params)
  where += jax.tree.leaves(placement.router_bias)
  for (path, leaf), sharding in zip([*leaves, *biases], where, strict=True):
    name = "/".join(str(key.key) for key in path)
    shape = "x".join(map(str, leaf.shape))
    size = math.prod(leaf.shape)
    yield name, shape, _spec(sharding), size, leaf.dtype.name


def memory_rows(state, placement):
  """(what, bytes on one device) of everything that outlives a step."""
  gradients = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), state.params
  )
  yield "parameters", _local_bytes(state.params, placement.params)
  yield "gradients (float32)", _local_bytes(gradients, placement.params)
  yield "optimizer", _local_bytes(state.opt_state, placement.opt_state)
  biases = _local_bytes(state.router_bias, placement.router_bias)
  yield "router biases", biases


def table(header, rows) -> list[str]:
  """Lines of a table whose columns line up."""
  rows = [tuple(map(str, row)) for row in rows]
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  return [
    "  ".join(
      cell.ljust(w) for cell, w in zip(row, widths, strict=True)
    ).rstrip()
    for row in (header, *rows)
  ]


def describe(run: pretraining.Pretraining) -> str:
  """The tables of `--dry_run`.

  Args:
    run: what would be trained.

  Raises:
    ValueError: the mesh does not divide what it should.
  """
  mesh = abstract_mesh(run)
  shards = mesh_lib.batch_shards(mesh)
  run.check_batch(shards)
  model = language_model.build(run.config, run.dtypes, run.execution)
  boxed = state_lib.abstract(model, run.optimizer.transformation())
  placement = state_lib.shardings(boxed, run.sharding, mesh)
  state = sharding_lib.unbox(boxed)
  rows = [
    (name, shape, spec, f"{size:,}", dtype)
    for name, shape, spec, size, dtype in parameter_rows(state, placement)
  ]
  lines = table(("parameter", "shape", "sharding", "count", "dtype"), rows)
  memory: list[tuple[str, int]] = list(memory_rows(state, placement))
  memory.append(("total", sum(size for _, size in memory)))
  lines += [
    "",
    *table(
      ("per device", "bytes"), [(what, _bytes(size)) for what, size in memory]
    ),
  ]
  lines += ["", *table(("quantity", "value"), _quantities(run, mesh))]
  return "\n".join(lines)


def _quantities(run: pretraining.Pretraining, mesh):
  config, schedule = run.config, run.schedule
  length = schedule.sequence_length
  flops = cost.flops_per_token(config, length)
  both = cost.flops_per_token(config, length, mtp=True)
  sizes = collections.OrderedDict(mesh.shape)
  shape = " x ".join(f"{name}={size}" for name, size in sizes.items())
  yield "parameters", f"{cost.parameters(config):,}"
  yield "parameters of MTP", f"{cost.mtp_parameters(config):,}"
  yield "active parameters", f"{cost.active_parameters(config):,}"
  yield f"FLOPs per token, {length} causal", f"{flops / 1e9:,.3f} G"
  yield "the same with MTP", f"{both / 1e9:,.3f} G"
  cache = cost.cache_bytes_per_token(config)
  yield "cache per token (bfloat16)", f"{cache:,} bytes"
  yield "mesh", f"{shape} ({math.prod(sizes.values()):,} devices)"
  yield "strategy", run.sharding.strategy
  by_tokens = isinstance(schedule, schedules.Schedule)
  if by_tokens:
    yield "steps", f"{schedule.total_steps():,}"
    yield "tokens", _count(schedule.total_tokens)
  else:
    yield "steps", f"{schedule.count:g} epochs of the prepared data"
  yield (
    "batch",
    f"{schedule.batch_size_start:,} to {schedule.batch_size:,} x {length}",
  )
  yield "micro-batch", f"{run.micro_batch:,} sequences"
  if by_tokens:
    yield "training FLOPs", f"{both * schedule.total_tokens:.3e}"
