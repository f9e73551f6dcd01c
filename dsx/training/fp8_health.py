"""What FP8 does to a model in training: underflow, saturation, scales.

A probe beside every FP8 layer has the layer's statistics as its cotangent
(`ops/fp8_probe.py`), so that one gradient with respect to the probes alone
measures all of them at once, forward and backward, on a micro-batch as it was
trained on. It is a program of its own: a train step knows nothing of it, and
costs what it did.

Rows of a record are matrices, `3/self_attn/o_proj` or `mtp_0/eh_proj`; the
experts of a layer are one row for each of their three matrices.

Shares and scales are what to read, not sums: on a mesh a token counts once for
every device that its experts live on, and a matrix divided within a block is
looked at part by part.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import dense_config
from dsx.models import language_model
from dsx.ops import fp8_probe
from dsx.ops import fp8_recipe
from dsx.parallel import distributed
from dsx.parallel import sharding as sharding_lib
from dsx.training import losses
from dsx.training import step as step_lib

KIND = "fp8"
# Fine tiles lose about a value in 100,000 of a normal distribution.
MUCH_UNDERFLOW = 0.05

_STACKS = ("dense_layers", "moe_layers")
_EXPERTS = ("gate_proj", "up_proj", "down_proj")
# The order of rows within a layer, by what their names contain.
_ORDER = (
  "/eh_proj",
  "/q_proj",
  "/q_a_proj",
  "/q_b_proj",
  "/kv_a_proj",
  "/kv_b_proj",
  "/o_proj",
  "/experts/",
  "/shared_experts/",
  "/gate_proj",
  "/up_proj",
  "/down_proj",
)


def probes(params, recipe: fp8_recipe.Recipe) -> dict:
  """Zeros for each layer that computes in FP8, as the collection of probes.

  Args:
    params: parameters or their shapes, in either layout.
    recipe: of the model.

  Returns:
    A tree of float32 [..., 3, WIDTH], [..., 3 matrices, 3, WIDTH] for
    experts, with the leading axes of stacked layers.
  """
  tree: dict = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    *module, last = (str(key.key) for key in path if hasattr(key, "key"))
    experts = module[-1:] == ["experts"] and last == _EXPERTS[0]
    if not experts and last != "kernel":
      continue
    if recipe.linear("/".join(module)) is None:
      continue
    matrices = (len(_EXPERTS),) if experts else ()
    leading = leaf.shape[: -3 if experts else -2]
    own = tree
    for name in module:
      own = own.setdefault(name, {})
    shape = (*leading, *matrices, len(fp8_probe.TENSORS), fp8_probe.WIDTH)
    own[fp8_probe.NAME] = jnp.zeros(shape, jnp.float32)
  return tree


def statistics(
  model: language_model.Model, params, router_bias, batch, scalars
) -> dict:
  """The sums of every FP8 layer over the first micro-batch.

  Args:
    model: with a recipe, `dtypes.fp8`.
    params: parameters.
    router_bias: router biases.
    batch: leaves [M, B, L+1], the global batch: gradients are divided by its
      targets, as the step's are.
    scalars: of `step.train_step`.

  Returns:
    A tree like `probes`.
  """
  recipe = model.dtypes.fp8
  if recipe is None:
    raise ValueError(
      "dtypes.fp8=None: expected a recipe, nothing is FP8 without; bind "
      "dtypes.Dtypes.fp8 = @fp8_recipe.Recipe()"
    )
  divide_by = step_lib.denominators(batch, scalars["micro_batches"])
  one = jax.tree.map(lambda x: x[0], batch)

  def loss(own):
    collections = {fp8_probe.COLLECTION: own}
    return losses.total(
      model, params, router_bias, one, divide_by, scalars, collections
    )[0]

  return jax.grad(loss)(probes(params, recipe))


def by_layer(
  config: dense_config.Config, tree: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The rows of a measurement: the name of each, and its sums [3, WIDTH].

  What no layer counted into is left out.
  """
  rows = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    module = [str(key.key) for key in path][:-1]
    sums = np.asarray(leaf)
    sums = sums if module[0] in _STACKS else sums[None]
    for number, layer in enumerate(sums):
      name = _row_name(config, module, number)
      if module[-1] == "experts":
        rows |= {f"{name}/{m}": s for m, s in zip(_EXPERTS, layer, strict=True)}
      else:
        rows[name] = layer
  names = [*map(str, range(config.num_hidden_layers)), *config.expert_layers]
  ordered = sorted(rows, key=lambda name: _place(name, names))
  return {name: rows[name] for name in ordered if rows[name].any()}


def _row_name(config, module: list[str], number: int) -> str:
  first, *rest = module
  if first in _STACKS:
    before = 0 if first == _STACKS[0] else config.first_k_dense_replace
    return "/".join([str(before + number), *rest])
  if first.startswith("layers_"):
    return "/".join([first.removeprefix("layers_"), *rest])
  return "/".join([first, *(name for name in rest if name != "block")])


def _place(name: str, layers: list[str]):
  layer, _, matrix = name.partition("/")
  known = layers.index(layer) if layer in layers else len(layers)
  order = [i for i, part in enumerate(_ORDER) if part in f"/{matrix}"]
  return known, order, name


def record(step: int, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """A record of kind `fp8`, as `metrics.py` describes it."""
  found: dict[str, Any] = {"kind": KIND, "step": step, "layers": list(rows)}
  shape = (len(rows), len(fp8_probe.TENSORS), fp8_probe.WIDTH)
  read = fp8_probe.read(np.asarray(list(rows.values())).reshape(shape))
  for place, tensor in enumerate(fp8_probe.TENSORS):
    for field in dataclasses.fields(read):
      values = getattr(read, field.name)[:, place]
      found[f"{tensor}_{field.name}"] = values
  return found


def warning(measured: Mapping[str, Any]) -> str | None:
  """A line about what went wrong, or None.

  Args:
    measured: from `record`.
  """
  for field, limit, words in (
    ("not_finite", 0.0, "not finite"),
    ("underflow", MUCH_UNDERFLOW, "lost to underflow"),
  ):
    shares = np.stack(
      [measured[f"{tensor}_{field}"] for tensor in fp8_probe.TENSORS]
    )
    shares = np.nan_to_num(shares)
    if shares.max(initial=0.0) > limit:
      tensor, row = np.unravel_index(shares.argmax(), shares.shape)
      others = int((shares > limit).any(0).sum()) - 1
      also = f", and {others} more such layers" if others else ""
      return (
        f"warning: FP8 at step {measured['step']:,}: "
        f"{shares[tensor, row]:.2%} of the {fp8_probe.TENSORS[tensor]} values "
        f"of {measured['layers'][row]} are {words}{also}"
      )
  return None


class Health:
  """Measures a run's FP8 layers every so often."""

  def __init__(
    self, model: language_model.Model, mesh, *, every: int, total_steps: int
  ):
    """Compiles nothing yet.

    Args:
      model: of the run.
      mesh: of the run.
      every: steps between measurements; 0 for none.
      total_steps: of the run.
    """
    self._model, self._every, self._last = model, every, total_steps
    self._mesh, self._measure = mesh, None

  def due(self, step: int) -> bool:
    """Whether to measure after this many steps."""
    if self._model.dtypes.fp8 is None or not self._every:
      return False
    return step % self._every == 0 or step in (1, self._last)

  def measure(self, step: int, state, batch, scalars) -> dict[str, Any]:
    """A record of what `batch` does in FP8 after `step` steps.

    Every process must call it. The first call compiles.
    """
    return record(step, self.sums(state, batch, scalars))

  def sums(self, state, batch, scalars) -> dict[str, np.ndarray]:
    """The rows of `by_layer`."""
    arguments = (state.params, state.router_bias, batch, scalars)
    if self._measure is None:
      measure = jax.jit(
        lambda *arguments: statistics(self._model, *arguments),
        out_shardings=sharding_lib.replicated(self._mesh),
      )
      self._measure = distributed.compiled(measure, *arguments)
    return by_layer(self._model.config, self._measure(*arguments))
