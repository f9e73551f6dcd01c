"""What is FP8 in a model and what is not.

DeepSeek-V3 section 3.3. `Recipe` is the whole of it, bound in gin as
`Dtypes.fp8`; every linear layer asks it by its own name (`Recipe.linear`) and
gets back what its three products are made of.
"""

import dataclasses
import fnmatch
from typing import Literal

from dsx.ops import fp8

Precision = Literal["float8", "compute"]
Granularity = Literal["tile", "block", "tensor"]

# What section 3.3.1 keeps in its original precision, by the last part of its
# name: embedding, output head, MoE gate, norms and the core of attention.
SENSITIVE = ("embed_tokens", "lm_head", "gate", "norm", "attention_core")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """DeepSeek-V3's mixed precision, and how far to depart from it.

  Attributes:
    rules: (pattern, precision) pairs. A layer's name is its place in the model,
      `moe_layers/self_attn/o_proj` or `mtp_0/eh_proj`; the first pattern (with
      `*`) that it matches says whether its products are `float8` or stay in the
      `compute` dtype, as layers without a match do. Sensitive parts
      (`SENSITIVE`) are matched by no `*` but only by a pattern that ends with
      their own name.
    allow_sensitive: whether such a rule may be `float8`.
    activation_format: of activations.
    gradient_format: of gradients of activations; `e5m2` is what hybrid FP8
      frameworks do (section 3.3.2, "Mantissa over Exponents").
    weight_format: of weights.
    activation_granularity: a scale for each 1 x 128 `tile`, 128 x 128 `block`
      or whole `tensor`.
    gradient_granularity: likewise; `block` diverged in appendix B.2.
    weight_granularity: `block` or `tensor`.
    scale_format: `float32`, or `ue8m0` for powers of two alone (V3.1).
    accumulation: of `fp8_product.multiply`.
    promote: whether partial sums move to float32 every 128 terms.
    cache_inputs: how a linear layer's input waits for the weights' gradient.
    cache_attention_output: the same of `o_proj`'s input (section 3.3.3 (1)).
    cache_swiglu_inputs: how SwiGLU's inputs wait, whose output is computed anew
      (section 3.3.3 (2)).
    implementation: `emulated`, `native` (FP8 units through XLA), `kernel`
      (ours, for Hopper), or `auto`, the fastest that the platform has.
  """

  rules: tuple[tuple[str, Precision], ...] = (("*", "float8"),)
  allow_sensitive: bool = False
  activation_format: fp8.Format = "e4m3"
  gradient_format: fp8.Format = "e4m3"
  weight_format: fp8.Format = "e4m3"
  activation_granularity: Granularity = "tile"
  gradient_granularity: Granularity = "tile"
  weight_granularity: Literal["block", "tensor"] = "block"
  scale_format: fp8.ScaleFormat = "float32"
  accumulation: Literal["float32", "exact", "tensor_core"] = "float32"
  promote: bool = True
  cache_inputs: Precision = "float8"
  cache_attention_output: Literal["e5m6", "float8", "compute"] = "e5m6"
  cache_swiglu_inputs: Precision = "float8"
  implementation: Literal["auto", "emulated", "native", "kernel"] = "auto"

  def linear(self, name: str) -> "Linear | None":
    """What the linear layer of this name does in FP8; None for nothing."""
    if self.precision(name) == "compute":
      return None
    if name.rsplit("/", 1)[-1] != "o_proj":
      return Linear(self, self.cache_inputs, self.scale_format)
    cache = self.cache_attention_output
    return Linear(self, cache, "ue8m0", saved_as="attention_output")

  def precision(self, name: str) -> Precision:
    """`float8` or `compute`, for a layer's name."""
    own = _sensitive(name)
    for pattern, precision in self.rules:
      if own and not pattern.endswith(own):
        continue
      if fnmatch.fnmatchcase(name, pattern):
        return precision
    return "compute"


@dataclasses.dataclass(frozen=True)
class Linear:
  """The recipe of one linear layer; hashable, so that JAX takes it as static.

  Attributes:
    recipe: of the model.
    cache: how its input waits for the weights' gradient.
    scale_format: of its input. Powers of two for attention's output, which
      changes its tiles while it waits: so nothing is rounded twice (section
      3.3.3 (1)).
    saved_as: name of what waits, for `jax.checkpoint`'s policies.
  """

  recipe: Recipe
  cache: Literal["e5m6", "float8", "compute"]
  scale_format: fp8.ScaleFormat
  saved_as: str | None = None


def _sensitive(name: str) -> str | None:
  last = name.rsplit("/", 1)[-1]
  return next((s for s in SENSITIVE if last.endswith(s)), None)
