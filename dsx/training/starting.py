"""Reading the weights that a run starts from: see `start.Start`.

What was read is told by a digest of its content, not by its path: of a run's
checkpoint, the checksums of the arrays; of a folder in Hugging Face's layout,
names and sizes of its files, their first and their last MiB (to read all of
many hundred GB twice would cost more than the start itself).
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np

from dsx.convert import deepseek as convert
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_source
from dsx.data import vocab as vocab_lib
from dsx.models import dense_config
from dsx.ops import block_scaled
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import manifest as manifest_lib
from dsx.training import restore
from dsx.training import start as start_lib
from dsx.training import verified_read
from dsx.training import workdir as workdir_lib

# What a model may be started with otherwise than it was trained: a longer
# context changes these, and an initialisation is past.
_FREE = (
  "initializer_range",
  "max_position_embeddings",
  "num_nextn_predict_layers",
  "rope_scaling",
  "rope_theta",
)
_EDGE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
  """Weights, and what they are.

  Attributes:
    variables: `params` and, if the model has one, `router_bias`.
    record: `path`, `step` and `digest`, as JSON data, for a checkpoint.
    note: the same, for people.
  """

  variables: Any
  record: dict
  note: str


def check(
  start: start_lib.Start, config: dense_config.Config, vocabulary: str
) -> None:
  """Refuses a start that a run cannot take, before anything is prepared.

  Nothing but descriptions is read.

  Args:
    start: what the run starts from.
    config: of the run's model.
    vocabulary: of the run's data.

  Raises:
    ValueError: there is nothing of the kind, or it is another model or
      vocabulary.
  """
  path = _path(start)
  if restore.is_workdir(path):
    with restore.checkpoints(path) as checkpoints:
      identity = checkpoints.metadata(start.step)["run"]
    if start.average and identity["ema_decay"] is None:
      raise ValueError(
        "init.average=True: expected a run that keeps an average of its "
        f"parameters, {path} does not; leave it out"
      )
    name = workdir_lib.vocabulary(path, identity["data"]["vocabulary"])
    found = restore.any_config_of(identity)
  else:
    found = huggingface_source.find(path).config
    name = str(path)
  _check_config(config, found, path)
  _check_vocabulary(vocabulary, name, path)


def load(
  start: start_lib.Start,
  config: dense_config.Config,
  dtypes: dtypes_lib.Dtypes,
  *,
  mesh: jax.sharding.Mesh,
  sharding: sharding_lib.Sharding,
) -> Started:
  """Reads the weights that a run starts from; a collective.

  Args:
    start: which.
    config: of the run's model; see `check`.
    dtypes: `param` is that of the parameters; router biases are float32.
    mesh: where they go.
    sharding: by which rules.

  Raises:
    ValueError: the files are damaged.
  """
  path = _path(start)
  mtp = config.num_nextn_predict_layers > 0
  if not restore.is_workdir(path):
    # It fills one device after the other, which a current mesh would forbid.
    with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):
      _, variables = convert.load(
        path, dtype=dtypes.param, mtp=mtp, mesh=mesh, sharding=sharding
      )
    digest = _folder_digest(path)
    return Started(
      variables=_without_surplus(config, variables),
      record={"path": str(path), "step": None, "digest": digest},
      note=f"from {path} ({digest[:12]})",
    )
  trained = restore.load(
    path,
    step=start.step,
    average=start.average,
    mtp=mtp,
    mesh=mesh,
    sharding=sharding,
  )
  params = trained.average if start.average else trained.variables["params"]
  params = jax.tree.map(
    lambda leaf: _in_dtype(leaf, dtypes.param),
    params,
    is_leaf=lambda leaf: isinstance(leaf, block_scaled.BlockScaled),
  )
  variables = {**trained.variables, "params": params}
  step = path / workdir_lib.CHECKPOINTS / str(trained.step)
  digest = _step_digest(step, start.average)
  what = "the average at " if start.average else ""
  note = f"from {what}step {trained.step:,} of {path} ({digest[:12]})"
  return Started(
    variables=_without_surplus(config, variables),
    record={"path": str(path), "step": trained.step, "digest": digest},
    note="; ".join([note, *trained.notes]),
  )


def check_same(start: start_lib.Start, record: dict) -> None:
  """Refuses to go on with a run whose start has become another since.

  A start that is no longer there cannot differ, and is not needed any more;
  nor does a run differ that only went on past the step that was taken.

  Args:
    start: of the run.
    record: `Started.record` of when it began.

  Raises:
    WorkdirError: other weights are there now.
  """
  path, now = pathlib.Path(start.path).expanduser(), None
  if restore.is_workdir(path):
    step = path / workdir_lib.CHECKPOINTS / str(record["step"])
    if (step / manifest_lib.NAME).is_file():
      now = _step_digest(step, start.average)
  elif (path / folder_lib.CONFIG).is_file():
    now = _folder_digest(path)
  if now is not None and now != record["digest"]:
    raise workdir_lib.WorkdirError(
      f"init.path={str(path)!r}: this run was started from weights with digest "
      f"{record['digest'][:12]}, expected them there still, and they are "
      f"{now[:12]}: bring the old ones back, or give another --workdir"
    )


def _path(start: start_lib.Start) -> pathlib.Path:
  path = pathlib.Path(start.path).expanduser()
  if restore.is_workdir(path):
    return path
  if not (path / folder_lib.CONFIG).is_file():
    raise workdir_lib.WorkdirError(
      f"init.path={start.path!r}: found no model, expected the workdir of a "
      f"run ({workdir_lib.CHECKPOINTS}/) or a Hugging Face folder "
      f"({folder_lib.CONFIG}); correct the path"
    )
  if start.step is not None or start.average:
    raise ValueError(
      f"init.path={start.path!r} is a Hugging Face folder: expected neither "
      "init.step nor init.average, which only runs have; leave them out"
    )
  return path


def _in_dtype(leaf, dtype: str):
  if isinstance(leaf, block_scaled.BlockScaled):
    return leaf.dequantise(dtype)
  return leaf.astype(dtype)


def _without_surplus(config: dense_config.Config, variables: dict):
  """Leaves out MTP modules that the run does not have."""
  kept = {f"mtp_{k}" for k in range(config.num_nextn_predict_layers)}
  return {
    collection: {
      name: tree
      for name, tree in found.items()
      if not name.startswith("mtp_") or name in kept
    }
    for collection, found in variables.items()
  }


def _check_config(
  wanted: dense_config.Config,
  found: dense_config.Config,
  path: pathlib.Path,
) -> None:
  kinds = [type(config).__name__ for config in (wanted, found)]
  if kinds[0] != kinds[1]:
    raise ValueError(
      f"config is a {kinds[0]}: expected a {kinds[1]}, as the model that "
      f"init.path={str(path)!r} names has; bind its config"
    )
  for field in dataclasses.fields(wanted):
    here, there = getattr(wanted, field.name), getattr(found, field.name)
    if here != there and field.name not in _FREE:
      raise ValueError(
        f"config.{field.name}={here!r}: expected {there!r}, as the model that "
        f"init.path={str(path)!r} names has; bind its config"
      )
  here, there = (c.num_nextn_predict_layers for c in (wanted, found))
  if here > there:
    raise ValueError(
      f"config.num_nextn_predict_layers={here}: expected at most {there}, as "
      f"many as the model that init.path={str(path)!r} names has; lower it"
    )


def _check_vocabulary(wanted: str, name: str, path: pathlib.Path) -> None:
  """Compares what ids stand for, where the start's are still to be found.

  Files may differ and mean the same, as does a byte vocabulary's export.
  """
  try:
    found = vocab_lib.load(name)
  except ValueError:
    return
  if _meaning(found) != _meaning(vocab_lib.load(wanted)):
    raise ValueError(
      f"data.vocabulary={wanted!r}: expected {name!r}, with which "
      f"the model that init.path={str(path)!r} names was trained; bind "
      "pipeline.Data.vocabulary to it"
    )


def _meaning(vocabulary: vocab_lib.Vocabulary):
  """What each id stands for; ids in no use, as at the end, count for none."""
  pieces = map(vocabulary.piece, range(vocabulary.size))
  used = {token: piece for token, piece in enumerate(pieces) if piece}
  return used, vocabulary.special


def _step_digest(step: pathlib.Path, average: bool) -> str:
  """Of the arrays that a start takes from a step's folder."""
  try:
    leaves = verified_read.manifest(step).leaves
  except manifest_lib.ManifestError as error:
    raise verified_read.CheckpointError(
      f"{step} is damaged: {error}; name another step"
    ) from None
  parts = ("ema/" if average else "state/params/", "state/router_bias/")
  return manifest_lib.digest(
    {
      name: [list(leaf.shape), leaf.dtype, leaf.checksum]
      for name, leaf in leaves.items()
      if name.startswith(parts)
    }
  )


def _folder_digest(path: pathlib.Path) -> str:
  """Of a Hugging Face folder's config and weights; see the module."""
  sha = hashlib.sha256()
  files = sorted([path / folder_lib.CONFIG, *path.glob("*.safetensors")])
  for file in files:
    size = file.stat().st_size
    sha.update(f"{file.name}\0{size}\0".encode())
    with file.open("rb") as stream:
      sha.update(stream.read(_EDGE_BYTES))
      stream.seek(max(_EDGE_BYTES, size - _EDGE_BYTES), os.SEEK_SET)
      sha.update(stream.read(_EDGE_BYTES))
  return sha.hexdigest()
