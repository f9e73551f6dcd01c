"""Copies of experts, and which device holds each, from a measured load.

DeepSeek-V3 section 3.4: experts with much to do are held more than once, and
copies are arranged so that devices have about equally much to do, without more
traffic between nodes. A layer's placement is an array `expert` [P]: the expert
in each of P = E + R places, of which the i-th device of D has the i-th part;
devices are counted through the first node, then the second.

  hierarchical  whole groups go to nodes, then copies and devices are chosen
                within each, so that a token's `topk_group` groups are still on
                as many nodes
  global        any copy on any device

A copy takes an equal share of its expert's tokens (`replicas.py`). Choices are
greedy, the largest first, and then improved by exchanging two at a time; the
order of the experts as they are is always among the candidates, so that no
placement is worse than none.

Legend (parallel/axes.py): E experts, G expert groups, N nodes; P places,
R redundant ones, D devices, S places of one device.
"""

from typing import Literal

import numpy as np

Strategy = Literal["auto", "hierarchical", "global"]
STRATEGIES = ("auto", "hierarchical", "global")

# Exchanges that gain less are rounding.
_LEAST_GAIN = 1e-9


def in_order(experts: int, *, nodes: int, local: int, redundant: int = 0):
  """The placement without any: experts as they are numbered, int [P].

  Without copies, as where nothing is balanced, if they divide over the devices;
  otherwise with `redundant` copies of the first of them.
  """
  if experts % (nodes * local) == 0:
    return np.arange(experts)
  return np.arange(experts + redundant) % experts


def device_loads(load, expert, devices: int):
  """What each device has to do, float [D].

  Args:
    load: [E], tokens of each expert, in any unit.
    expert: int [P], a placement.
    devices: D.
  """
  share = _share(np.asarray(load, np.float64), expert)
  return share[expert].reshape(devices, -1).sum(1)


def imbalance(loads) -> float:
  """How much more than the mean the busiest has to do; 1 is perfect."""
  loads = np.asarray(loads, np.float64)
  mean = loads.mean()
  return float(loads.max() / mean) if mean else 1.0


def resolved(
  experts: int,
  *,
  nodes: int,
  local: int,
  redundant: int,
  groups: int,
  strategy: str = "auto",
) -> str:
  """The strategy, once the numbers are found to fit; see `balance`.

  Raises:
    ValueError: they do not, and why.
  """
  for field, value, least in (
    ("experts", experts, 1),
    ("nodes", nodes, 1),
    ("local", local, 1),
    ("redundant", redundant, 0),
    ("groups", groups, 1),
  ):
    if value < least:
      raise ValueError(f"{field}={value}: expected at least {least}; raise it")
  if strategy not in STRATEGIES:
    raise ValueError(
      f"strategy={strategy!r}: expected one of {', '.join(STRATEGIES)}"
    )
  if experts % groups:
    raise ValueError(
      f"groups={groups}: expected a divisor of the {experts} experts"
    )
  if strategy == "hierarchical" and groups % nodes:
    raise ValueError(
      f"strategy='hierarchical': expected groups={groups} to divide over "
      f"nodes={nodes}; change nodes, or choose global"
    )
  if strategy == "auto":
    strategy = "global" if groups % nodes else "hierarchical"
  _check_redundant(experts, nodes, local, redundant, strategy)
  return strategy


def _check_redundant(experts, nodes, local, redundant, strategy) -> None:
  devices = nodes * local
  least = -experts % devices
  if (experts + redundant) % devices:
    raise ValueError(
      f"redundant={redundant}: expected the {experts} experts and their "
      f"copies to divide over {nodes} x {local} devices; {least} or "
      f"{least + devices} would do"
    )
  within, reach = "device", devices
  if strategy == "hierarchical":
    within, reach = "device of its node", local
  if redundant > experts * (reach - 1):
    raise ValueError(
      f"redundant={redundant}: expected at most {experts * (reach - 1)}, with "
      f"which every {within} has an expert; lower it"
    )


def balance(
  load,
  *,
  nodes: int,
  local: int,
  redundant: int = 0,
  groups: int = 1,
  strategy: str = "auto",
):
  """Places the experts of one layer.

  Args:
    load: [E], tokens of each expert, in any unit.
    nodes: N.
    local: devices of a node.
    redundant: R, places for further copies, in all.
    groups: G of the routing; experts of one group are numbered consecutively.
    strategy: `hierarchical`, `global` or `auto`: the former where it can be.

  Returns:
    int [P], the expert in each place. Where experts divide over the devices,
    the busiest device has at most as much to do as in `in_order`, and so has
    the busiest node if it is hierarchical.

  Raises:
    ValueError: the load is none, or the numbers do not divide.
  """
  load = np.asarray(load, np.float64)
  if load.ndim != 1 or not np.isfinite(load).all() or (load < 0).any():
    raise ValueError(
      f"load of shape {load.shape}: expected [E] numbers from 0; leave out "
      "layers that were not measured"
    )
  shape = {"nodes": nodes, "local": local, "redundant": redundant}
  if resolved(load.size, **shape, groups=groups, strategy=strategy) == "global":
    return _best(load, [np.arange(load.size)[None]], nodes * local, redundant)
  experts = np.arange(load.size).reshape(groups, -1)
  weight = load.reshape(groups, -1).sum(1)
  as_they_are = np.arange(groups).reshape(nodes, -1)
  packed = _improved(weight, _packed(weight, np.arange(groups), nodes))
  if _busiest(weight, as_they_are) <= _busiest(weight, packed):
    packed = as_they_are
  homes = [experts[g].reshape(nodes, -1) for g in (packed, as_they_are)]
  return _best(load, homes, local, redundant // nodes)


def _best(load, homes, devices: int, redundant: int):
  """The best of several ways to give nodes their experts.

  Args:
    load: [E].
    homes: arrays int [N, E / N], the experts of each node.
    devices: of each node.
    redundant: places for copies in each node.
  """
  found = []
  for home in homes:
    nodes = [_of_node(load, e, devices, redundant) for e in home]
    found.append(np.concatenate(nodes))
  count = homes[0].shape[0] * devices
  return min(found, key=lambda e: device_loads(load, e, count).max())


def _of_node(load, experts, devices: int, redundant: int):
  """Places of one node with these experts, int [devices * S]."""
  copies = _copies(load[experts], redundant, devices)
  places = np.repeat(experts, copies)
  share = _share(load, places)
  candidates = [_improved(share, _packed(share, places, devices))]
  if experts.size % devices == 0:
    # Each device's own experts, and further copies of them that change nothing.
    own = np.sort(experts).reshape(devices, -1)
    rest = np.arange(redundant // devices) % own.shape[1]
    candidates.append(np.concatenate([own, own[:, rest]], axis=1))
    if not redundant:
      candidates.append(_improved(share, own))
  else:
    order = np.arange(places.size) % experts.size
    candidates.append(np.sort(experts)[order].reshape(devices, -1))
  best = min(candidates, key=lambda c: _busiest(_share(load, c), c))
  return np.sort(best, axis=1).reshape(-1)


def _share(load, expert):
  """What one copy of each expert has to do, [E]."""
  return load / np.maximum(np.bincount(expert.ravel(), minlength=load.size), 1)


def _busiest(weight, slots) -> float:
  return weight[slots].sum(1).max()


def _copies(load, redundant: int, most: int):
  """How many copies of each expert, int [E], at most one a device.

  Each goes to the expert whose copies have most to do; no other choice leaves
  the busiest copy less.
  """
  count = np.ones(load.size, np.int64)
  for _ in range(redundant):
    share = np.where(count < most, load / count, -1.0)
    count[np.argmax(share)] += 1
  return count


def _packed(weight, items, bins: int):
  """Items in bins of equal size, int [bins, S]; the heaviest first.

  Each goes to the lightest bin that has room and, if there is one, none like
  it. `weight` is looked up by item.
  """
  size = items.size // bins
  slots = np.full((bins, size), -1, items.dtype)
  filled, total = np.zeros(bins, np.int64), np.zeros(bins)
  for item in items[np.argsort(-weight[items], kind="stable")]:
    room = np.where(filled < size, total, np.inf)
    unlike = np.where((slots == item).any(1), np.inf, room)
    chosen = np.argmin(unlike if np.isfinite(unlike).any() else room)
    slots[chosen, filled[chosen]] = item
    filled[chosen] += 1
    total[chosen] += weight[item]
  return slots


def _improved(weight, slots):
  """`slots` [bins, S], with exchanges that relieve the busiest bin."""
  slots = slots.copy()
  for _ in range(4 * slots.size):
    mass = weight[slots]
    total = mass.sum(1)
    full = int(np.argmax(total))
    less = mass[full][:, None, None] - mass[None]  # [S, bins, S]
    after = np.maximum(total[full] - less, total[None, :, None] + less)
    same = slots[:, :, None] == slots[full][None, None, :]  # [bins, S, S]
    after[same.any(1).T] = np.inf  # the other bin has one of mine
    after[:, same.any(2)] = np.inf  # or this one has of theirs
    place = np.unravel_index(np.argmin(after), after.shape)
    if not after[place] < total[full] * (1 - _LEAST_GAIN):
      break
    mine, other, theirs = place
    slots[full, mine], slots[other, theirs] = (
      slots[other, theirs],
      slots[full, mine],
    )
  return slots
