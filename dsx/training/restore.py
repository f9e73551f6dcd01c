"""A trained model, read back from the workdir of its run.

    from dsx.training import restore
    trained = restore.load("runs/v3_tiny")
    logits, _ = trained.model.apply(trained.variables, tokens)

The checkpoint says itself what it is of: neither gin files nor the optimizer
state are read.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from dsx.data import pipeline
from dsx.models import config as config_lib
from dsx.models import dense_config
from dsx.models import language_model
from dsx.ops import block_scaled
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import fp8_recipe
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import checkpoint as checkpoint_lib
from dsx.training import pretraining
from dsx.training import workdir as workdir_lib

# In a checkpoint's metadata: a matrix that is kept as FP8 values with scales.
FP8 = "fp8"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """A model and where it comes from.

  Attributes:
    model: the model.
    variables: `params` and, if the model has one, `router_bias`.
    average: the moving average of `params`, if it was asked for and kept.
    data: what the model was trained on.
    step: optimizer steps taken.
    tokens: tokens trained on.
    notes: one line for everything that a person should know.
  """

  model: language_model.Model
  variables: Any
  average: Any
  data: pipeline.Data
  step: int
  tokens: int
  notes: tuple[str, ...]


def is_workdir(path: str | os.PathLike[str]) -> bool:
  """Whether a run has put checkpoints into this folder."""
  return (pathlib.Path(path) / workdir_lib.CHECKPOINTS).is_dir()


def checkpoints(path: str | os.PathLike[str]) -> checkpoint_lib.Checkpointer:
  """Opens the checkpoints of a workdir.

  Raises:
    WorkdirError: there are none.
  """
  if not is_workdir(path):
    raise workdir_lib.WorkdirError(
      f"{path}: no checkpoint; expected the workdir of a run that saved one "
      f"(it has a folder {workdir_lib.CHECKPOINTS}/)"
    )
  return checkpoint_lib.Checkpointer(
    pathlib.Path(path) / workdir_lib.CHECKPOINTS
  )


def config_of(identity: dict) -> config_lib.DeepSeekConfig:
  """The config of a DeepSeek model in a run's identity; see `any_config_of`.

  Raises:
    ValueError: it is of a dense model.
  """
  return dense_config.only_deepseek(any_config_of(identity), "run.json")


def any_config_of(identity: dict) -> dense_config.Config:
  """The model's config in a run's identity (`run.json`).

  Raises:
    WorkdirError: it has fields that this version does not know.
  """
  fields = dict(identity["config"])
  scaling = fields.pop("rope_scaling", None)
  if "num_key_value_heads" in fields:
    if scaling is not None:
      llama = "high_freq_factor" in scaling
      kind = dense_config.Llama3Scaling if llama else config_lib.RopeScaling
      scaling = _made(kind, scaling)
    return _made(dense_config.DenseConfig, {**fields, "rope_scaling": scaling})
  if scaling is not None:
    scaling = _made(config_lib.RopeScaling, scaling)
  return _made(config_lib.DeepSeekConfig, {**fields, "rope_scaling": scaling})


def dtypes_of(identity: dict) -> dtypes_lib.Dtypes:
  """The precision of the model in a run's identity; see `config_of`."""
  fields = dict(identity["dtypes"])
  recipe = fields.pop("fp8", None)  # runs from before there was one
  if recipe is not None:
    rules = tuple(map(tuple, recipe["rules"]))  # JSON has lists
    recipe = _made(fp8_recipe.Recipe, {**recipe, "rules": rules})
  return _made(dtypes_lib.Dtypes, {**fields, "fp8": recipe})


def _made(cls, fields: dict):
  try:
    return cls(**fields)
  except TypeError as error:
    raise workdir_lib.WorkdirError(
      f"the checkpoint's {cls.__name__} is not of this version ({error}): use "
      "the commit in its versions.json"
    ) from error


def load(
  workdir: str | os.PathLike[str],
  *,
  run: pretraining.Pretraining | None = None,
  step: int | None = None,
  average: bool = False,
  mtp: bool = True,
  mesh: jax.sharding.Mesh | None = None,
  sharding: sharding_lib.Sharding | None = None,
) -> Trained:
  """Loads a trained model.

  Args:
    workdir: of the run.
    run: says how to place and run the model, and may have other data. Without
      it, the model is the one that was saved.
    step: this step or none. By default the newest that is good.
    average: whether to load the average of the parameters, too, if there is
      one.
    mtp: without `run`: whether to load the MTP modules, too.
    mesh: without `run`: where to; by default one device.
    sharding: without `run`: how; by default `Sharding()`'s rules.

  Returns:
    The model; of a checkpoint that was made from FP8 files, matrices are
    `BlockScaled` as they were there.

  Raises:
    WorkdirError: there is no checkpoint.
    CheckpointError: there is no good one, or it is not of `run`.
  """
  with checkpoints(workdir) as checkpointer:
    metadata = checkpointer.metadata(step)
    identity = metadata["run"]
    if run is None:
      config = any_config_of(identity)
      if not mtp and isinstance(config, config_lib.DeepSeekConfig):
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
      model = language_model.build(config, dtypes_of(identity))
      if mesh is None:
        mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
      sharding = sharding or sharding_lib.Sharding()
    else:
      model = language_model.build(run.config, run.dtypes, run.execution)
      mesh, sharding = mesh_lib.make(run.mesh), run.sharding
    plain = abstract(model, sharding.parameters, mesh)
    target = {"state": as_stored(plain, metadata.get("stored", {}))}
    if average and identity["ema_decay"] is not None:
      target["ema"] = jax.tree.map(_averaged, plain["params"])
    restored = checkpointer.restore(target, step=step, partial=True)
  notes = [*restored.notes, *_differences(identity, run, pathlib.Path(workdir))]
  return Trained(
    model=model,
    variables=restored.arrays["state"],
    average=restored.arrays.get("ema"),
    data=_made(pipeline.Data, identity["data"]),
    step=restored.step,
    tokens=restored.metadata["tokens"],
    notes=tuple(notes),
  )


def abstract(model: nn.Module, rules: sharding_lib.Rules, mesh):
  """ShapeDtypeStructs of a model's variables with their shardings.

  Args:
    model: the model.
    rules: logical to mesh axes, see `Sharding.parameters`.
    mesh: the device mesh.
  """
  boxed = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, 8), jnp.int32)),
    jax.random.key(0),
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    sharding_lib.unbox(boxed),
    sharding_lib.shardings(boxed, rules, mesh),
  )


def as_stored(target, stored: Mapping[str, str]):
  """A tree of ShapeDtypeStructs with the dtypes that a checkpoint has.

  Args:
    target: from `abstract`.
    stored: dtypes by the names of leaves, `fp8` for values with scales; of
      other leaves the dtype is the target's own. Checkpoints of runs say
      nothing here, those of `imported` what their files had.
  """

  def leaf(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    dtype = stored.get(name)
    if dtype is None:
      return x
    if dtype != FP8:
      return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    return block_scaled.BlockScaled(
      jax.ShapeDtypeStruct(x.shape, jnp.float8_e4m3fn, sharding=x.sharding),
      _scales(x),
    )

  return jax.tree_util.tree_map_with_path(leaf, target)


def _scales(values: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """Scales lie beside their values, each matrix's whole."""
  shape = block_scaled.scales_shape(values.shape)
  stacked = (*values.sharding.spec, None, None)[: len(shape) - 2]
  sharding = NamedSharding(values.sharding.mesh, PartitionSpec(*stacked))
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def _averaged(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """The average is float32 whatever the parameters are."""
  return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)


def _differences(identity: dict, run: pretraining.Pretraining | None, workdir):
  """Lines on what `run` changes that changes what the model says."""
  if run is None:
    return
  now = run.identity()
  for name in ("config", "dtypes"):
    found = workdir_lib.difference(identity[name], now[name], name)
    if found:
      yield f"{found[0]} is {found[2]!r} here, and was {found[1]!r} in training"
  before, here = identity["data"]["vocabulary"], now["data"]["vocabulary"]
  if here not in (before, workdir_lib.vocabulary(workdir, before)):
    yield f"data.vocabulary is {here!r} here, and was {before!r} in training"
