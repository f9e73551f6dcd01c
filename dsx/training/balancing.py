"""Balancing a model's experts over devices by their measured load.

What gin binds, what comes of it, and the table that shows it. Loads of other
records than those that the placement was made from say what it will be worth:
a load changes from batch to batch.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np

from dsx.parallel import placement
from dsx.parallel import placement_file
from dsx.training import expert_loads
from dsx.training import restore
from dsx.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Balancing:
  """How to balance.

  Attributes:
    loads: file of measured loads; empty for the workdir's metrics.
    nodes: machines that share one copy of the experts.
    local: devices of each.
    redundant: places for copies of experts, in all.
    groups: of the routing; None for those of the workdir's run.
    strategy: `hierarchical` keeps each group of experts on one node, `global`
      does not, `auto` is the former where groups divide over nodes.
    records: how many records of loads to add up.
    held_out: how many later ones to judge the placement by, at most half.
  """

  loads: str = ""
  nodes: int = 1
  local: int = 8
  redundant: int = 0
  groups: int | None = None
  strategy: placement.Strategy = "auto"
  records: int = 10
  held_out: int = 10

  def __post_init__(self):
    for field, least in (("records", 1), ("held_out", 0)):
      if getattr(self, field) < least:
        raise ValueError(
          f"{field}={getattr(self, field)}: expected at least {least}; raise it"
        )

  def run(self, workdir: str | os.PathLike[str]) -> "Balanced":
    """Balances; writes nothing.

    Args:
      workdir: of the run, if loads or groups are to be found there.

    Raises:
      ValueError: there are no loads, or the numbers do not fit them.
    """
    found = expert_loads.read(self.loads or workdir)
    groups = self.groups or _groups(pathlib.Path(workdir))
    experts = found.load.shape[-1]
    shape = {"nodes": self.nodes, "local": self.local}
    shape |= {"redundant": self.redundant, "groups": groups}
    strategy = placement.resolved(experts, **shape, strategy=self.strategy)
    fitted, later = self._divided(len(found.names))
    load = found.load[fitted].sum(0)
    layers = {
      name: placement.balance(row, **shape, strategy=strategy)
      for name, row in zip(found.layers, load, strict=True)
    }
    return Balanced(
      placement=placement_file.Placement(
        strategy=strategy, experts=experts, layers=layers, **shape
      ),
      fitted=_compared(load, layers, self),
      later=_compared(found.load[later].sum(0), layers, self)
      if later.size
      else None,
      fitted_names=[found.names[i] for i in fitted],
      later_names=[found.names[i] for i in later],
    )

  def _divided(self, records: int):
    """Places of the records to fit and of those to judge by."""
    places = np.arange(records)
    cut = records - min(self.held_out, records // 2)
    return places[max(cut - self.records, 0) : cut], places[cut:]


def _groups(workdir: pathlib.Path) -> int:
  """Groups of the run of a workdir."""
  path = workdir / workdir_lib.IDENTITY
  try:
    return restore.config_of(json.loads(path.read_text())).n_group
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: expected the model's n_group in it; give Balancing.groups"
    ) from error


class Compared(NamedTuple):
  """Loads of devices, before and after.

  Attributes:
    before: float [layers, N, devices of a node].
    after: the same.
  """

  before: np.ndarray
  after: np.ndarray

  def imbalances(self, layer: int | None = None) -> list[float]:
    """Of devices before and after, then of nodes before and after.

    The busiest over the mean. Layers wait for each other: for all of them, the
    sum of their busiest over the sum of their means.
    """
    rows = slice(None) if layer is None else slice(layer, layer + 1)
    result = []
    for loads in (self.before[rows], self.after[rows]):
      n = loads.shape[0]
      result.append([_over(loads.reshape(n, -1)), _over(loads.sum(2))])
    (device, node), (device_after, node_after) = result
    return [device, device_after, node, node_after]


def _over(loads) -> float:
  """[layers, n]: how much the busiest have to do over the mean."""
  mean = loads.mean(1).sum()
  return float(loads.max(1).sum() / mean) if mean else 1.0


def _compared(load, layers, shape: Balancing) -> Compared:
  """Of loads [layers, E], as experts are numbered and as they are placed."""
  n, local = shape.nodes, shape.local
  order = placement.in_order(
    load.shape[1], nodes=n, local=local, redundant=shape.redundant
  )
  before = [placement.device_loads(row, order, n * local) for row in load]
  after = [
    placement.device_loads(row, expert, n * local)
    for row, expert in zip(load, layers.values(), strict=True)
  ]
  return Compared(*(np.stack(x).reshape(-1, n, local) for x in (before, after)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Balanced:
  """A placement, and what it does to measured loads.

  Attributes:
    placement: of all layers that were measured.
    fitted: by the loads that it was made from.
    later: by those held out; None if there were none.
    fitted_names: of the records of these loads.
    later_names: of those.
  """

  placement: placement_file.Placement
  fitted: Compared
  later: Compared | None
  fitted_names: Sequence[str]
  later_names: Sequence[str]

  def table(self) -> str:
    """Imbalance by layer and in total, before and after."""
    p = self.placement
    lines = [
      f"{len(p.layers)} layers of {p.experts} experts in {p.groups} groups on "
      f"{p.nodes} x {p.local} devices, {p.redundant} places for copies, "
      f"{p.strategy}",
      f"placed by the loads of {_span(self.fitted_names)}",
    ]
    shown = [self.fitted]
    if self.later is not None:
      lines.append(f"held against those of {_span(self.later_names)}")
      shown.append(self.later)
    lines += ["", "busiest / mean:", *_heads(len(shown))]
    for row, name in enumerate(p.layers):
      lines.append(_row(name, [x.imbalances(row) for x in shown]))
    lines.append(_row("total", [x.imbalances() for x in shown]))
    return "\n".join(lines)


def _span(names: Sequence[str]) -> str:
  if len(names) == 1:
    return names[0]
  return f"{len(names)} records, {names[0]} to {names[-1]}"


def _heads(blocks: int) -> list[str]:
  names = ("placed by", "held against")[:blocks]
  top = "".join(f"{n + ':':>16}{'':22}" for n in names)
  middle = f"{'device':>8}{'':11}{'node':>6}{'':13}" * blocks
  below = f"{'before':>8}{'after':>8}   " * 2 * blocks
  lines = (f"{'':8}{top}", f"{'':8}{middle}", f"{'layer':<8}{below}")
  return [line.rstrip() for line in lines]


def _row(name: str, blocks) -> str:
  cells = [
    f"{before:8.3f}{after:8.3f}   "
    for device, device_after, node, node_after in blocks
    for before, after in ((device, device_after), (node, node_after))
  ]
  return f"{name:<8}{''.join(cells)}".rstrip()
