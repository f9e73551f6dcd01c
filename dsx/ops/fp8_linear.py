"""A linear layer whose three products are FP8, and what it keeps meanwhile.

DeepSeek-V3 section 3.3.1, figure 6:

  Fprop  y  = q(x)  @ q(w)      x by 1 x 128 along D, w by blocks of 128 x 128
  Dgrad  dx = q(dy) @ q(w)^T    dy by 1 x 128 along F, w as in Fprop
  Wgrad  dw = q(x)^T @ q(dy)    both by 128 x 1, that is 128 tokens

Between them waits what `Linear.cache` says of x and nothing else: Fprop's own
FP8 numbers, their E5M6 copy, or x itself. Wgrad needs other tiles than Fprop,
so what waits is widened and rounded anew (section 3.5.2). Master weights are
quantised whenever they are needed: keeping the result would cost more than it
saves.

Legend (parallel/axes.py): R rows (tokens), D in, F out.
"""

import dataclasses
import functools
import logging
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dsx.ops import block_scaled
from dsx.ops import e5m6
from dsx.ops import fp8
from dsx.ops import fp8_probe
from dsx.ops import fp8_product
from dsx.ops import fp8_recipe
from dsx.ops import hopper_target
from dsx.ops import manual_axes
from dsx.ops import platforms

_log = logging.getLogger(__name__)

# By the beginnings of `jax.Device.device_kind`.
_HOPPER = ("NVIDIA H100", "NVIDIA H200", "NVIDIA H800")
_TPU = ("TPU7x",)
_UNKNOWN = "a device that is not known"

_TILES = {"tile": fp8.ROW_TILE, "block": fp8.BLOCK_TILE}
_TILES_OF_KERNELS = (fp8.ROW_TILE, fp8.COLUMN_TILE, fp8.BLOCK_TILE)


@dataclasses.dataclass(frozen=True)
class Spread:
  """How devices of a `jax.shard_map` body have parts of a matrix [D, F].

  Attributes:
    over: (dimension, mesh axes) pairs of what is to be gathered.
  """

  over: tuple[tuple[int, tuple[str, ...]], ...] = ()

  def whole(self, w, recipe: fp8_recipe.Recipe) -> fp8.Quantised:
    """The quantised matrix of a device's part; it travels in FP8 if it can."""
    blocks = recipe.weight_granularity == "block"
    if blocks and all(w.shape[d] % fp8.TILE == 0 for d, _ in self.over):
      own = quantised_weight(w, recipe)
      # As bytes: not every platform has collectives of FP8.
      values = lax.bitcast_convert_type(own.values, jnp.uint8)
      values, scales = self._gathered(values), self._gathered(own.scales)
      values = lax.bitcast_convert_type(values, own.values.dtype)
      return fp8.Quantised(values, scales, own.tile)
    return quantised_weight(self._gathered(w), recipe)

  def _gathered(self, x):
    for dimension, names in self.over:
      x = lax.all_gather(x, names, axis=dimension, tiled=True)
    return x

  def own(self, dw):
    """A device's part of the sum of all devices' gradients."""
    for dimension, names in self.over:
      dw = lax.psum_scatter(dw, names, scatter_dimension=dimension, tiled=True)
    return dw


WHOLE = Spread()


def matmul(
  x,
  w,
  linear: fp8_recipe.Linear,
  probe=None,
  spread: Spread = WHOLE,
):
  """x @ w in FP8, and so its gradient.

  Args:
    x: [..., D], in the compute dtype.
    w: [D, F], any floating dtype, or FP8 with block scales; then these are
      used as they are and have no gradient.
    linear: of `Recipe.linear`.
    probe: float32 [3, WIDTH], zeros, whose cotangent is the sums of
      `fp8_probe` over x, w and the gradient of y; or None.
    spread: what of w is elsewhere.

  Returns:
    [..., F] in x's dtype.

  Raises:
    ValueError: shapes do not fit together, or the recipe's implementation
      does not exist on this platform.
  """
  if not spread.over:
    check(x, w)
  rows, w, probe = aligned(x.reshape(-1, x.shape[-1]), w, probe)
  y = _matmul(rows, w, probe, linear, spread)
  return y.reshape(*x.shape[:-1], y.shape[-1])


def check(x, w) -> None:
  """Refuses x and w that `matmul` cannot take."""
  if w.ndim != 2 or x.shape[-1:] != w.shape[:1]:
    raise ValueError(
      f"x {x.shape}, w {w.shape}: expected [..., D] and [D, F]; transpose one "
      "of them"
    )


def aligned(*trees):
  """`manual_axes.align` of arrays, FP8 weights and None."""
  leaves, structure = jax.tree.flatten(trees)
  return jax.tree.unflatten(structure, manual_axes.align(*leaves))


def fprop(x, w, recipe: fp8_recipe.Recipe, *, dtype=jnp.float32):
  """q(x) @ q(w).

  Args:
    x: [..., R, D], or what `quantised_input` made of it.
    w: [..., D, F] with the same leading axes, likewise (`quantised_weight`).
    recipe: of the model.
    dtype: of the result.

  Returns:
    [..., R, F].
  """
  x, w = quantised_input(x, recipe), quantised_weight(w, recipe)
  return _multiply(x, w, recipe, dtype)


def dgrad(dy, w, recipe: fp8_recipe.Recipe, *, dtype=jnp.float32):
  """q(dy) @ q(w)^T.

  Args:
    dy: [..., R, F], or what `quantised_gradient` made of it.
    w: [..., D, F], or what `quantised_weight` made of it.
    recipe: of the model.
    dtype: of the result.

  Returns:
    [..., R, D].
  """
  dy, w = quantised_gradient(dy, recipe), quantised_weight(w, recipe)
  return _multiply(dy, w.transposed, recipe, dtype)


def wgrad(x, dy, recipe: fp8_recipe.Recipe, *, dtype=jnp.float32):
  """q(x)^T @ q(dy), both by tiles along R.

  Args:
    x: [..., R, D], what waited since Fprop, in any form, or `retiled`.
    dy: [..., R, F], or `quantised_gradient(..., along_rows=True)`.
    recipe: of the model.
    dtype: of the result.

  Returns:
    [..., D, F].
  """
  x = retiled(x, recipe)
  dy = quantised_gradient(dy, recipe, along_rows=True)
  return _multiply(x.transposed, dy, recipe, dtype)


def quantised_input(
  x, recipe: fp8_recipe.Recipe, scale_format: fp8.ScaleFormat | None = None
) -> fp8.Quantised:
  """Activations [..., R, D] as Fprop has them; what is so already stays.

  Args:
    x: floats, or their quantised form.
    recipe: of the model.
    scale_format: in place of the recipe's.
  """
  if isinstance(x, fp8.Quantised):
    return x
  tile = _tile(x, recipe.activation_granularity)
  return quantise(x, tile, recipe, recipe.activation_format, scale_format)


def quantised_weight(w, recipe: fp8_recipe.Recipe) -> fp8.Quantised:
  """Weights [..., D, F]; what is FP8 already keeps its values and scales."""
  if isinstance(w, fp8.Quantised):
    return w
  if isinstance(w, block_scaled.BlockScaled):
    return fp8.Quantised(w.values, w.scales, fp8.BLOCK_TILE)
  tile = _tile(w, recipe.weight_granularity)
  return quantise(w, tile, recipe, recipe.weight_format)


def quantised_gradient(
  dy, recipe: fp8_recipe.Recipe, *, along_rows: bool = False
) -> fp8.Quantised:
  """Gradients of activations [..., R, F] for Dgrad, or for Wgrad.

  Args:
    dy: floats, or their quantised form, which stays as it is.
    recipe: of the model.
    along_rows: whether tiles are 128 x 1, as Wgrad has them.
  """
  if isinstance(dy, fp8.Quantised):
    return dy
  tile = _tile(dy, recipe.gradient_granularity)
  tile = _turned(tile) if along_rows else tile
  return quantise(dy, tile, recipe, recipe.gradient_format)


def retiled(
  x, recipe: fp8_recipe.Recipe, scale_format: fp8.ScaleFormat | None = None
) -> fp8.Quantised:
  """What waited for Wgrad, by tiles along R.

  Args:
    x: [..., R, D] floats, FP8 or E5M6. FP8 whose tiles reach as far along R
      as Wgrad wants is taken as it is.
    recipe: of the model.
    scale_format: in place of the recipe's.
  """
  tile = _turned(_tile(x, recipe.activation_granularity))
  if isinstance(x, fp8.Quantised):
    if x.tile == tile:
      return x
    x = x.dequantise(jnp.float32)
  elif isinstance(x, e5m6.E5M6):
    x = e5m6.decode(x, jnp.float32)
  return quantise(x, tile, recipe, recipe.activation_format, scale_format)


def quantise(
  x,
  tile: tuple[int, int],
  recipe: fp8_recipe.Recipe,
  format: fp8.Format,
  scale_format: fp8.ScaleFormat | None = None,
) -> fp8.Quantised:
  """`fp8.quantise`, in a kernel where products are kernels.

  XLA would read a matrix once for its tiles and once more for its values, and
  on a GPU divides with other last bits.

  Args:
    x: floats [..., R, C].
    tile: rows and columns that share a scale.
    recipe: of the model.
    format: of the values.
    scale_format: in place of the recipe's.
  """
  scale_format = scale_format or recipe.scale_format
  if tile in _TILES_OF_KERNELS and implementation(recipe) == "kernel":
    from dsx.ops import hopper_quantise

    return hopper_quantise.quantise(
      x, tile, format=format, scale_format=scale_format
    )
  return fp8.quantise(x, tile, format=format, scale_format=scale_format)


def _tile(x, granularity: str) -> tuple[int, int]:
  return _TILES.get(granularity) or tuple(x.shape[-2:])


def _turned(tile: tuple[int, int]) -> tuple[int, int]:
  """Tiles of one row become tiles of one column; others are what they are."""
  return fp8.COLUMN_TILE if tile == fp8.ROW_TILE else tile


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _matmul(x, w, probe, linear, spread):
  return forward(x, w, probe, linear, spread)[0]


def forward(x, w, probe, linear: fp8_recipe.Linear, spread: Spread):
  """Fprop, and what Dgrad and Wgrad want of it.

  Args:
    x: [R, D].
    w: [D, F].
    probe: of `matmul`.
    linear: of the layer.
    spread: of `matmul`.

  Returns:
    (y [R, F], (what waits of x, w, statistics of x or None)).
  """
  recipe = linear.recipe
  x_fp8 = quantised_input(x, recipe, linear.scale_format)
  y = fprop(x_fp8, spread.whole(w, recipe), recipe, dtype=x.dtype)
  seen = None if probe is None else fp8_probe.statistics(x, x_fp8)
  return y, (waiting(x, x_fp8, linear), w, seen)


def _backward(linear, spread, saved, dy):
  return gradients(*saved, dy, linear, spread, dy.dtype)


def gradients(
  waited, w, seen, dy, linear: fp8_recipe.Linear, spread: Spread, dtype
):
  """Dgrad and Wgrad.

  Args:
    waited: x [R, D] in any form, of `forward` like the next two.
    w: [D, F].
    seen: statistics of x, or None.
    dy: [R, F].
    linear: of the layer.
    spread: of `matmul`.
    dtype: of the gradient of x.

  Returns:
    (dx [R, D], dw [D, F] or None for weights at rest, statistics of x, w and
    dy [3, WIDTH] or None).
  """
  recipe = linear.recipe
  w_fp8 = spread.whole(w, recipe)
  dy_fp8 = quantised_gradient(dy, recipe)
  dx = dgrad(dy_fp8, w_fp8, recipe, dtype=dtype)
  at_rest = isinstance(w, block_scaled.BlockScaled)
  if seen is not None:
    own = quantised_weight(w, recipe) if spread.over else w_fp8
    wide = w.dequantise(jnp.float32) if at_rest else w
    of_weights = fp8_probe.statistics(wide, own)
    of_gradients = fp8_probe.statistics(dy, dy_fp8)
    seen = jnp.stack([seen, of_weights, of_gradients])
  if at_rest:
    return dx, None, seen
  x_fp8 = retiled(waited, recipe, linear.scale_format)
  dw = spread.own(wgrad(x_fp8, dy, recipe))
  return dx, dw.astype(w.dtype), seen


_matmul.defvjp(forward, _backward)


def rounded(x, recipe: fp8_recipe.Recipe) -> Any:
  """What FP8 makes of activations [..., C], whose gradient passes by.

  For what is no product but is asked to be FP8 nonetheless, by 1 x 128 tiles.
  """
  return _rounded(x, recipe, False)


def rounded_weight(w, recipe: fp8_recipe.Recipe) -> Any:
  """What FP8 makes of weights [..., D, F], whose gradient passes by."""
  if isinstance(w, block_scaled.BlockScaled):
    return w
  return _rounded(w, recipe, True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _rounded(x, recipe, weight):
  matrix = x.reshape(-1, x.shape[-1])
  quantise = quantised_weight if weight else quantised_input
  return quantise(matrix, recipe).dequantise(x.dtype).reshape(x.shape)


_rounded.defvjp(
  lambda x, recipe, weight: (_rounded(x, recipe, weight), None),
  lambda recipe, weight, _, dy: (dy,),
)


def waiting(x, x_fp8: fp8.Quantised, linear: fp8_recipe.Linear) -> Any:
  """What is kept of x [..., R, D] from Fprop to Wgrad, named for remat.

  Args:
    x: the layer's input.
    x_fp8: what Fprop multiplied.
    linear: of the layer.
  """
  if linear.cache == "compute":
    kept = x
  elif linear.cache == "float8":
    kept = x_fp8
  else:
    kept = e5m6.encode(x)
  return named(kept, linear.saved_as)


def named(tree, name: str | None):
  """`tree` with each array named for `jax.checkpoint`'s policies."""
  if name is None:
    return tree
  return jax.tree.map(lambda x: checkpoint_name(x, name), tree)


def _multiply(a: fp8.Quantised, b: fp8.Quantised, recipe, dtype):
  which = implementation(recipe)
  if which == "kernel":
    from dsx.ops import hopper_gemm

    return hopper_gemm.multiply(a, b, dtype)
  if which == "native":
    from dsx.ops import fp8_native

    return fp8_native.multiply(a, b, dtype)
  y = fp8_product.multiply(
    a, b, accumulation=recipe.accumulation, promote=recipe.promote
  )
  return y.astype(dtype)


def implementation(recipe: fp8_recipe.Recipe) -> str:
  """`emulated`, `native` or `kernel`: what multiplies on this platform.

  Raises:
    ValueError: the recipe names one that the platform has not.
  """
  wanted, target, kind = recipe.implementation, platforms.target(), _kind()
  best = "emulated"
  if hopper_target.interpretation() is not None:
    best = "kernel"
  elif target == "gpu" and kind.startswith((*_HOPPER, _UNKNOWN)):
    best = "kernel"  # GPUs that are compiled for without one are Hoppers
  elif target == "tpu" and kind.startswith(_TPU):
    best = "native"
  formats = {
    recipe.activation_format, recipe.gradient_format, recipe.weight_format
  }  # fmt: skip
  if wanted == "auto":
    if recipe.accumulation != "float32" or not recipe.promote:
      return "emulated"  # what is studied so exists nowhere else
    if best != "emulated" and len(formats) > 1:
      _say_once(f"FP8 units of {kind} get one format: emulating two")
      return "emulated"
    if best == "emulated":
      _say_once(f"no FP8 units on {kind}: emulating")
    return best
  if wanted not in ("emulated", best):
    raise ValueError(
      f"implementation={wanted!r} on {kind}: expected 'auto' or "
      f"'emulated' there; 'kernel' wants {', '.join(_HOPPER)}, 'native' "
      f"{', '.join(_TPU)}"
    )
  if wanted != "emulated" and len(formats) > 1:
    raise ValueError(
      f"implementation={wanted!r} with formats {', '.join(sorted(formats))}: "
      "expected one for activations, gradients and weights; use 'auto', which "
      "emulates"
    )
  return wanted


def _kind() -> str:
  """What JAX calls the device that is compiled for, as far as is known."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None and device.platform == platforms.target():
    return device.device_kind
  if platforms.target() == jax.default_backend():
    return jax.devices()[0].device_kind
  return _UNKNOWN


@functools.cache
def _say_once(message: str) -> None:
  _log.info(message)
