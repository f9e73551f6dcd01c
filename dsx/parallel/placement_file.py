"""Where a model's experts and their copies are, as a file.

`placement.json` is written by `experiments/balance_experts.py` and read by
whoever serves the model. It says for which devices it was made, and, for each
layer by its name (`1`, `2`, ..., `mtp_0`, as in the metrics), the expert in
each place (`placement.py`). A layer that it does not name stays as it is.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from dsx.parallel import axes
from dsx.parallel import placement
from dsx.parallel import replicas

FILE_NAME = "placement.json"
_KIND = "expert placement"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Placements of a model's layers.

  Attributes:
    strategy: `hierarchical` or `global`.
    experts: E of each layer.
    groups: G of the routing.
    nodes: N.
    local: devices of a node.
    redundant: R, places for copies.
    layers: by name, int [E + R], the expert in each place.
  """

  strategy: str
  experts: int
  groups: int
  nodes: int
  local: int
  redundant: int
  layers: Mapping[str, Any]

  def __post_init__(self):
    shape = {
      field: getattr(self, field)
      for field in ("nodes", "local", "redundant", "groups", "strategy")
    }
    placement.resolved(self.experts, **shape)
    for name, expert in self.layers.items():
      self._check_layer(name, np.asarray(expert))

  def _check_layer(self, name: str, expert) -> None:
    places = self.experts + self.redundant
    if expert.shape != (places,) or expert.dtype.kind != "i":
      raise ValueError(
        f"layer {name!r}: expected the expert in each of {places} places; "
        "balance it again"
      )
    missing = set(range(self.experts)) ^ set(expert.tolist())
    if missing:
      raise ValueError(
        f"layer {name!r}: expected each of the experts 0 to "
        f"{self.experts - 1}, and no others; see {sorted(missing)[0]}"
      )
    if self.strategy == "hierarchical":
      # A group on two nodes would send tokens to more than are reckoned with.
      group = expert.reshape(self.nodes, -1) // (self.experts // self.groups)
      homes = [set(of_node.tolist()) for of_node in group]
      if sum(map(len, homes)) != self.groups:
        raise ValueError(
          f"layer {name!r}: expected each group of experts on one node alone, "
          "as strategy='hierarchical' has it; balance it again"
        )

  def replicas(self, name: str) -> replicas.Replicas:
    """The table of one layer, for routing."""
    whole = self.nodes if self.strategy == "hierarchical" else 1
    return replicas.of(self.layers[name], self.experts, nodes=whole)

  def write(self, path: str | os.PathLike[str]) -> None:
    """Writes the file; a kill leaves the old one or the new one."""
    fields = dataclasses.asdict(self)
    layers = fields.pop("layers")
    lines = [f' "{name}": {json.dumps(x)}' for name, x in _plain(layers)]
    head = json.dumps({"kind": _KIND, **fields}, indent=1).removesuffix("\n}")
    text = f'{head},\n "layers": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)

  def check(self, config, mesh: jax.sharding.Mesh | None) -> None:
    """Refuses a model or devices that it was not made for.

    Args:
      config: an object with `DeepSeekConfig`'s fields.
      mesh: the devices; None for one alone.

    Raises:
      ValueError: and why.
    """
    for field, mine, theirs in (
      ("n_routed_experts", self.experts, config.n_routed_experts),
      ("n_group", self.groups, config.n_group),
    ):
      if mine != theirs:
        raise ValueError(
          f"placement of experts for {field}={mine}: expected the model's "
          f"{theirs}; balance again from this model's loads"
        )
    known = config.expert_layers
    for name in self.layers:
      if name not in known:
        raise ValueError(
          f"placement of experts names layer {name!r}: expected layers of this "
          f"model with experts, {', '.join(known) or 'none'}; balance again"
        )
    shape = {} if mesh is None else mesh.shape
    found = tuple(shape.get(a, 1) for a in axes.EXPERT_MESH_AXES)
    if found != (self.nodes, self.local):
      raise ValueError(
        f"placement of experts for {self.nodes} x {self.local} devices: the "
        f"mesh has {found[0]} x {found[1]} (node x local); balance again for "
        "these, or change the mesh"
      )


def _plain(layers):
  return [(name, np.asarray(x).tolist()) for name, x in layers.items()]


def read(path: str | os.PathLike[str]) -> Placement:
  """Reads a file.

  Raises:
    ValueError: it is none of ours, or damaged; in one line.
    OSError: it cannot be read.
  """
  path = pathlib.Path(path).expanduser()
  try:
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or found.pop("kind", None) != _KIND:
      raise ValueError(f"expected an object of kind {_KIND!r}")
    numbers = ("experts", "groups", "nodes", "local", "redundant")
    for name in numbers:
      if type(found.get(name)) is not int:
        raise ValueError(f"{name}={found.get(name)!r}: expected a whole number")
    layers = found.pop("layers", None)
    if not isinstance(layers, dict) or not layers:
      raise ValueError("expected `layers`, by name")
    arrays = {name: np.asarray(x) for name, x in layers.items()}
    return Placement(**found, layers=arrays)
  except (ValueError, TypeError, RecursionError) as error:
    raise ValueError(
      f"{path}: no placement of experts: {error}; write it with "
      "experiments.balance_experts"
    ) from error


def find(path: str, config, mesh: jax.sharding.Mesh | None) -> Placement | None:
  """Reads the file at `path`, if one is named, and checks that it fits.

  Raises:
    ValueError: it does not, and why.
    OSError: it cannot be read.
  """
  if not path:
    return None
  found = read(path)
  found.check(config, mesh)
  return found
