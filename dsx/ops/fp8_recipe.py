"""What is FP8 in a model and what is not.

DeepSeek-V3 section 3.3. `Recipe` is the whole of it, bound in gin as
`Dtypes.fp8`; every linear layer asks it by its own name (`Recipe.linear`) and
gets back what its three products are made of.

A layer's name is its place in the parameters of training: `moe_layers/...` and
`dense_layers/...` for what is stacked, `mtp_0/block/...`. `self_attn/o_proj`,
`mlp/experts` (the routed experts, as one layer) and `mlp/gate` (the router) are
among their ends; `self_attn/attention_core` has no parameters but a name.
"""

from collections.abc import Iterable
import dataclasses
import fnmatch
import typing
from typing import Literal

from dsx.ops import fp8
from dsx.ops import fp8_product

Precision = Literal["float8", "compute"]
Granularity = Literal["tile", "block", "tensor"]

# What section 3.3.1 keeps in its original precision, by the last part of its
# name, and why.
SENSITIVE = {
  "embed_tokens": "a lookup costs little, and every layer starts from it",
  "lm_head": "its errors go straight into the loss",
  "gate": "small errors of a router send tokens to other experts",
  "norm": "it costs little, and scales everything after it",
  "attention_core": "a softmax makes large errors of small ones",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """DeepSeek-V3's mixed precision, and how far to depart from it.

  Attributes:
    rules: (pattern, precision) pairs. The first pattern (with `*`) that matches
      a layer's name says whether its products are `float8` or stay in the
      `compute` dtype, as layers without a match do. Sensitive parts
      (`SENSITIVE`) are matched by no `*` but only by a pattern that ends with
      the end of their name: `*/gate`, `*norm`.
    allow_sensitive: whether such a rule may be `float8`. Embedding rows,
      norms' outputs and attention's queries, keys and values are then rounded
      to FP8, as are what output head and router multiply; gradients pass by.
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
    promote: whether partial sums move to float32 every 128 terms. Without,
      scales may change along a sum in `tensor_core` alone; else every
      granularity is `tensor`.
    cache_inputs: how a linear layer's input waits for the weights' gradient.
    cache_attention_output: the same of `o_proj`'s input (section 3.3.3 (1)).
    cache_swiglu_inputs: how SwiGLU's inputs wait, whose output is computed anew
      (section 3.3.3 (2)); `compute` keeps them, and its output as
      `cache_inputs` says.
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
  accumulation: fp8_product.Accumulation = "float32"
  promote: bool = True
  cache_inputs: Precision = "float8"
  cache_attention_output: Literal["e5m6", "float8", "compute"] = "e5m6"
  cache_swiglu_inputs: Precision = "float8"
  implementation: Literal["auto", "emulated", "native", "kernel"] = "auto"

  def __post_init__(self):
    self._check_fields()
    self._check_rules()
    if not self.promote and not (self.accumulation.startswith("tensor_core")):
      for kind in ("activation", "gradient", "weight"):
        found = getattr(self, f"{kind}_granularity")
        if found != "tensor":
          raise ValueError(
            f"promote=False, {kind}_granularity={found!r}: expected 'tensor', "
            f"because a sum by accumulation={self.accumulation!r} has one "
            "scale; change it, set accumulation='tensor_core', or promote"
          )
    if self.implementation in ("native", "kernel"):
      if self.accumulation != "float32" or not self.promote:
        raise ValueError(
          f"implementation={self.implementation!r}, accumulation="
          f"{self.accumulation!r}, promote={self.promote}: expected "
          "'float32' and True, because hardware adds as it does; set "
          "implementation='emulated' to study others"
        )

  def _check_fields(self) -> None:
    types = typing.get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
      found, wanted = getattr(self, field.name), types[field.name]
      options = (True, False) if wanted is bool else typing.get_args(wanted)
      if field.name != "rules" and found not in options:
        raise ValueError(
          f"{field.name}={found!r}: expected "
          f"{' or '.join(map(repr, options))}; change it"
        )

  def _check_rules(self) -> None:
    if not isinstance(self.rules, tuple):
      raise ValueError(
        f"rules={self.rules!r}: expected a tuple of (pattern, precision) "
        "pairs; put them in parentheses"
      )
    for rule in self.rules:
      right = isinstance(rule, tuple) and len(rule) == 2
      right = right and isinstance(rule[0], str)
      if not right or rule[1] not in typing.get_args(Precision):
        raise ValueError(
          f"rules={rule!r}: expected (pattern, precision) with 'float8' or "
          "'compute'; change it"
        )
      pattern, precision = rule
      own = _sensitive(pattern)
      if own and precision == "float8" and not self.allow_sensitive:
        raise ValueError(
          f"rules={rule!r}: expected 'compute' for {own}, because "
          f"{SENSITIVE[own]} (section 3.3.1); leave the rule out, or set "
          "allow_sensitive=True to see what happens"
        )

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
    rule = self._rule(name)
    return "compute" if rule is None else self.rules[rule][1]

  def _rule(self, name: str) -> int | None:
    """The first rule that matches a layer's name."""
    own = _sensitive(name)
    for i, (pattern, _) in enumerate(self.rules):
      if own and not pattern.endswith(own):
        continue
      if fnmatch.fnmatchcase(name, pattern):
        return i
    return None

  def check_names(self, names: Iterable[str]) -> None:
    """Refuses rules that decide for no layer of a model.

    Args:
      names: of all its layers.

    Raises:
      ValueError: a rule matches none of them, or earlier rules match all those
        that it matches.
    """
    names = tuple(names)
    deciding = {self._rule(name) for name in names}
    for i, rule in enumerate(self.rules):
      if i not in deciding:
        ends = sorted({"/".join(n.split("/")[-2:]) for n in names})
        raise ValueError(
          f"Recipe.rules has {rule!r}, which decides for no layer: expected a "
          f"pattern like '*' or '*/{ends[0].rsplit('/', 1)[-1]}', before the "
          f"rules that match as much; the layers end in {', '.join(ends)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InStack(Recipe):
  """A recipe inside one layer of those that training stacks.

  Attributes:
    stack: what the layer's name begins with in training, in place of its own
      beginning.
  """

  stack: str

  def _rule(self, name: str) -> int | None:
    return super()._rule("/".join([self.stack, *name.split("/")[1:]]))


def in_stack(recipe: Recipe | None, stack: str) -> Recipe | None:
  """The recipe for a layer `layers_3` that training keeps in `stack`."""
  return None if recipe is None else InStack(**{**vars(recipe), "stack": stack})


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
  """Which of `SENSITIVE` a layer or a pattern is about."""
  for end in SENSITIVE:
    before = name.removesuffix(end)[-1:]
    if name.endswith(end) and (end == "norm" or before in ("", *"/*?]")):
      return end
  return None
