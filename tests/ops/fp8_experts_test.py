"""Experts in FP8: against their definition, and against each other."""

import contextlib
import dataclasses
import functools
import io
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax.ad_checkpoint import print_saved_residuals
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from dsx.ops import block_scaled
from dsx.ops import expert_mlp
from dsx.ops import fp8
from dsx.ops import fp8_experts
from dsx.ops import fp8_grouped
from dsx.ops import fp8_linear
from dsx.ops import fp8_places
from dsx.ops import fp8_probe
from dsx.ops import fp8_product
from dsx.ops import fp8_recipe
from dsx.ops import hopper_target
from dsx.ops import platforms
from dsx.ops import row_blocks
from dsx.ops import tile_scaled

_RECIPE = fp8_recipe.Recipe(accumulation="exact")
_COMPUTE = dataclasses.replace(
  _RECIPE, cache_inputs="compute", cache_swiglu_inputs="compute"
)


def _inputs(n_tokens=300, n_experts=3, k=2, d=140, f=136, skew=1.0):
  """Arguments of `expert_mlp`, with outliers, and a cotangent."""
  rng = np.random.default_rng(n_tokens)
  scores = rng.normal(size=(n_tokens, n_experts)) + skew * np.arange(n_experts)
  index = np.argsort(-scores, axis=1)[:, :k].astype(np.int32)
  index[n_tokens // 2, 0] = -1

  def draw(*shape):
    scale = np.exp(rng.normal(size=(shape[-2], 1)) + rng.normal(size=shape[-1]))
    return (rng.normal(size=shape) * scale / d**0.5).astype(np.float32)

  arrays = (
    draw(n_tokens, d),
    index,
    rng.uniform(size=(n_tokens, k)).astype(np.float32),
    draw(n_experts, d, f),
    draw(n_experts, d, f),
    draw(n_experts, f, d),
  )
  return tuple(map(jnp.asarray, arrays)), jnp.asarray(draw(n_tokens, d))


def _value_and_grads(impl, recipe, dispatched, inputs, dout, probe):
  x, index, *rest = inputs

  def experts(x, probe, *rest):
    return expert_mlp.expert_mlp(
      x,
      index,
      *rest,
      impl=impl,
      fp8=recipe,
      dispatched=dispatched,
      probe=probe,
    )

  out, pull = jax.vjp(experts, x, probe, *rest)
  dx, dprobe, *grads = pull(dout)
  return (out, dx, *grads) if probe is None else (out, dx, *grads, dprobe)


# Most of the time goes into compiling.
_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
_program = _jit(_value_and_grads, static_argnums=(0, 1, 2))


def _compiled(impl, recipe, inputs, dout, *, probe=None, dispatched=False):
  return _program(impl, recipe, dispatched, inputs, dout, probe)


def _compiled_anew(impl, recipe, inputs, dout):
  """Of a program that was not traced under other circumstances."""

  def program(inputs, dout):
    return _value_and_grads(impl, recipe, False, inputs, dout, None)

  return _jit(program)(inputs, dout)


def _error(found, expected):
  found, expected = (np.asarray(a, np.float64) for a in (found, expected))
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def _product(a: fp8.Quantised, b: fp8.Quantised):
  """In numpy, term by term of 128."""
  left, right = (np.asarray(q.values).astype(np.float64) for q in (a, b))
  left_scales, right_scales = (
    np.asarray(fp8.expand(q.scales, q.tile, q.shape), np.float64)
    for q in (a, b)
  )
  total = np.zeros((left.shape[0], right.shape[1]))
  for k in range(0, left.shape[1], 128):
    terms = slice(k, k + 128)
    scales = left_scales[:, k : k + 1] * right_scales[k : k + 1]
    total += (left[:, terms] @ right[terms]) * scales
  return total.astype(np.float32)


def _sigmoid(x):
  return (1 + np.tanh(x / 2)) / 2


def _definition(
  inputs, dout, *, cache: bool, scale_format: fp8.ScaleFormat = "float32"
):
  """Expert by expert in numpy: values and gradients of all but `index`.

  `scale_format` is that of what enters: rows and gradients of results.
  """
  x, index, weight, *weights = (np.asarray(a) for a in inputs)
  dout = np.asarray(dout)
  y, dx, dweight = np.zeros_like(x), np.zeros_like(x), np.zeros_like(weight)
  dweights = [np.zeros_like(w) for w in weights]
  travelled = scale_format == "ue8m0"

  def entering(x, tile):
    return fp8.quantise(x, tile, scale_format=scale_format)

  for e in range(weights[0].shape[0]):
    token, k = np.nonzero(index == e)  # in the order of tokens
    gate, up, down = (fp8.quantise(w[e], fp8.BLOCK_TILE) for w in weights)
    share = weight[token, k][:, None]
    rows = entering(x[token], fp8.ROW_TILE)
    gated, passed = _product(rows, gate), _product(rows, up)
    hidden = gated * _sigmoid(gated) * passed * share
    y_rows = _product(fp8.quantise(hidden, fp8.ROW_TILE), down)
    np.add.at(y, token, y_rows)

    dy = dout[token]
    dy_fp8 = entering(dy, fp8.ROW_TILE)
    if travelled:
      dy = np.asarray(dy_fp8.dequantise(np.float32))
    dhidden = _product(dy_fp8, down.transposed)
    if cache:
      gated, passed = (
        np.asarray(fp8.quantise(a, fp8.ROW_TILE).dequantise(np.float32))
        for a in (gated, passed)
      )
    sigmoid = _sigmoid(gated)
    silu = gated * sigmoid
    dweight[token, k] = (dhidden * silu * passed).sum(1)
    hidden = silu * passed * share
    dpassed = dhidden * share * silu
    dgated = dhidden * share * passed * (sigmoid + silu * (1 - sigmoid))
    drows = sum(
      _product(fp8.quantise(d, fp8.ROW_TILE), w.transposed)
      for d, w in ((dgated, gate), (dpassed, up))
    )
    np.add.at(dx, token, drows)
    kept = rows.dequantise(np.float32) if cache or travelled else x[token]
    kept = entering(np.asarray(kept), fp8.COLUMN_TILE).transposed
    for i, d in enumerate((dgated, dpassed)):
      dweights[i][e] = _product(kept, fp8.quantise(d, fp8.COLUMN_TILE))
    hidden = fp8.quantise(hidden, fp8.COLUMN_TILE).transposed
    dweights[2][e] = _product(hidden, entering(dy, fp8.COLUMN_TILE))
  return y, dx, dweight, *dweights


class Fp8ExpertsTest(parameterized.TestCase):
  def _assert_close(self, found, expected, tolerance=1e-6):
    """Where FP8 rounds another way because of an ulp before, up to 1e-3."""
    for one, other in zip(found, expected, strict=True):
      self.assertLess(_error(one, other), tolerance)

  @parameterized.parameters(
    ("slots", _RECIPE, False),
    ("slots", _COMPUTE, True),
    ("grouped", _RECIPE, True),
  )
  def test_is_the_definition(self, impl, recipe, dispatched):
    inputs, dout = _inputs()
    found = _compiled(impl, recipe, inputs, dout, dispatched=dispatched)
    expected = _definition(
      inputs,
      dout,
      cache=recipe.cache_inputs == "float8",
      scale_format="ue8m0" if dispatched else "float32",
    )
    self._assert_close(found, expected, 1e-3)

  @parameterized.parameters(
    {},  # some overflows
    {"n_tokens": 290, "skew": 99.0, "k": 1},  # one expert has all
  )
  def test_layouts_agree(self, **case):
    inputs, dout = _inputs(d=40, f=24, **case)
    expected = _compiled("dense", _RECIPE, inputs, dout)
    for impl in ("slots", "grouped"):
      self._assert_close(_compiled(impl, _RECIPE, inputs, dout), expected)

  @parameterized.parameters(
    ("block", "block", "block"),
    ("tensor", "tensor", "tensor"),
  )
  def test_layouts_agree_at_any_granularity(self, activations, gradients, w):
    recipe = dataclasses.replace(
      _RECIPE,
      activation_granularity=activations,
      gradient_granularity=gradients,
      weight_granularity=w,
      gradient_format="e5m2",
      accumulation="float32",
    )
    inputs, dout = _inputs(d=40, f=24)
    found = _compiled("auto", recipe, inputs, dout)
    expected = _compiled("dense", recipe, inputs, dout)
    self._assert_close(found, expected, 1e-3)

  def test_tiles_do_not_know_the_capacity(self):
    inputs, dout = _inputs(d=40, f=24)
    expected = _compiled("slots", _RECIPE, inputs, dout)
    with mock.patch.object(fp8_places, "_SLACK", 0.3):
      found = _compiled_anew("slots", _RECIPE, inputs, dout)
    self._assert_close(found, expected)

  def test_blocks_that_take_turns(self):
    """What GPU and TPU do without a kernel is what a CPU does at once."""
    inputs, dout = _inputs(d=40, f=24)
    expected = _compiled("grouped", _RECIPE, inputs, dout)
    with platforms.compiling_for("tpu"):
      found = _compiled_anew("grouped", _RECIPE, inputs, dout)
    self._assert_close(found, expected)

  def test_few_copies_fetch_their_matrices(self):
    inputs, dout = _inputs(n_tokens=4, n_experts=24, d=140, f=24)
    self.assertEqual(fp8_experts.fastest(_RECIPE, 8, 24), "lookup")
    self._assert_close(
      _compiled("auto", _RECIPE, inputs, dout),
      _compiled("dense", _RECIPE, inputs, dout),
    )

  @parameterized.parameters(("slots", jnp.bfloat16), ("lookup", jnp.float32))
  def test_what_travelled_is_not_rounded_again(self, impl, dtype):
    """Nor does it matter whether it has travelled yet."""

    def travelled(x):
      return tile_scaled.quantise(x).dequantise(dtype)

    inputs, dout = _inputs(n_tokens=60, d=300, f=24)
    x, index, weight, *weights = inputs
    x, dout = x.astype(dtype), dout.astype(dtype)
    there, back = travelled(x), travelled(dout)
    again = fp8.quantise(there, fp8.ROW_TILE, scale_format="ue8m0")
    chex.assert_trees_all_equal(again.dequantise(dtype), there)
    weights = [w.astype(dtype) for w in weights]
    before = (x, index, weight, *weights)
    after = (there, index, weight, *weights)
    chex.assert_trees_all_equal(
      _compiled(impl, _COMPUTE, before, dout, dispatched=True),
      _compiled(impl, _COMPUTE, after, back, dispatched=True),
    )

  def test_weights_that_are_fp8_are_used_as_they_are(self):
    impl = "lookup"
    recipe = dataclasses.replace(_RECIPE, scale_format="ue8m0")
    (x, index, weight, *weights), dout = _inputs(n_tokens=20, f=24)
    stored = [
      block_scaled.quantise(np.asarray(w), scale_format="ue8m0")
      for w in weights
    ]
    stored = jax.tree.map(jnp.asarray, stored)
    wide = [w.dequantise(jnp.float32) for w in stored]
    expected = _compiled(impl, recipe, (x, index, weight, *wide), dout)

    @_jit
    def found(x, weight, stored):
      def experts(x, weight):
        return expert_mlp.expert_mlp(
          x, index, weight, *stored, impl=impl, fp8=recipe
        )

      y, pull = jax.vjp(experts, x, weight)
      return y, *pull(dout)

    self._assert_close(found(x, weight, stored), expected[:3], 1e-5)

  def test_lookup_never_holds_the_whole_stack_wide(self):
    (x, index, weight, *weights), _ = _inputs(n_tokens=2, n_experts=30, f=24)
    stored = [block_scaled.quantise(np.asarray(w)) for w in weights]
    stored = jax.tree.map(jnp.asarray, stored)
    text = str(
      jax.make_jaxpr(
        lambda *args: expert_mlp.expert_mlp(*args, fp8=_RECIPE, impl="lookup")
      )(x, index, weight, *stored)
    )
    self.assertIn("f8_e4m3fn[30,140,24]", text)
    self.assertNotIn("f32[30,140,24]", text)
    self.assertNotIn("bf16[30,140,24]", text)

  def test_what_waits_is_fp8(self):
    """Under a policy of names, and without any."""
    inputs, dout = _inputs(n_tokens=60, d=40, f=24)
    x, index, *rest = inputs

    def waiting(recipe, policy=None):
      def loss(x, *rest):
        y = expert_mlp.expert_mlp(x, index, *rest, impl="slots", fp8=recipe)
        return jnp.vdot(y, dout)

      if policy is not None:
        loss = jax.checkpoint(loss, policy=policy)
      out = io.StringIO()
      with contextlib.redirect_stdout(out):
        print_saved_residuals(loss, x, *rest)
      lines = out.getvalue().splitlines()
      return [line for line in lines if " from " not in line or "named" in line]

    policy = jax.checkpoint_policies.save_only_these_names(
      "dispatched", "swiglu_input"
    )
    lines = "\n".join(waiting(_RECIPE, policy))
    self.assertIn("f8_e4m3fn[60,40] named 'dispatched'", lines)
    self.assertEqual(lines.count("f8_e4m3fn[3,48,24] named 'swiglu_input'"), 2)
    self.assertNotRegex(lines, r"f32\[(60,40|3,48,24)\]")
    without = "\n".join(waiting(_RECIPE))
    self.assertNotRegex(without, r"f32\[(60,40|3,48,24|3,40,24|3,48,40)\]")
    self.assertRegex("\n".join(waiting(_COMPUTE)), r"f32\[3,48,24\]")

  def test_probe(self):
    impl = "slots"
    inputs, dout = _inputs(d=40, f=24)
    x, index, weight, *weights = inputs
    probe = jnp.zeros((3, 3, fp8_probe.WIDTH))
    *found, sums = _compiled(impl, _RECIPE, inputs, dout, probe=probe)
    chex.assert_trees_all_equal(
      tuple(found), _compiled(impl, _RECIPE, inputs, dout)
    )
    rows = fp8_probe.statistics(x, fp8.quantise(x, fp8.ROW_TILE))
    chex.assert_trees_all_equal(sums[0, 0], rows)
    chex.assert_trees_all_equal(sums[1, 0], rows)
    for i, w in enumerate(weights):
      chex.assert_trees_all_equal(
        sums[i, 1], fp8_probe.statistics(w, fp8.quantise(w, fp8.BLOCK_TILE))
      )
    chex.assert_trees_all_equal(
      sums[2, 2], fp8_probe.statistics(dout, fp8.quantise(dout, fp8.ROW_TILE))
    )
    copies = int((index >= 0).sum())
    hidden, dgated = sums[2, 0], sums[0, 2]
    # 24 columns: one tile for each copy, hidden or gradient.
    self.assertEqual(hidden[4:].sum(), copies)
    self.assertEqual(dgated[4:].sum(), copies)
    self.assertBetween(int(hidden[0]), 23 * copies, 24 * copies)

  def test_inside_shard_map(self):
    """A shard's rows have tiles of their own; weights' gradients add up."""
    mesh = jax.make_mesh(
      (8,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    (x, index, weight, *weights), dout = _inputs(n_tokens=8 * 20, d=40, f=24)

    @_jit
    def sharded(x, index, weight, *weights):
      def experts(x, weight, *weights):
        return jax.shard_map(
          lambda *a: expert_mlp.expert_mlp(*a, fp8=_RECIPE),
          mesh=mesh,
          in_specs=(*[P("shard")] * 3, *[P()] * 3),
          out_specs=P("shard"),
          check_vma=False,
        )(x, index, weight, *weights)

      y, pull = jax.vjp(experts, x, weight, *weights)
      return y, *pull(dout)

    parts = []
    for i in range(8):
      own = slice(20 * i, 20 * i + 20)
      inputs = (x[own], index[own], weight[own], *weights)
      parts.append(_compiled("dense", _RECIPE, inputs, dout[own]))
    y, dx, dweight, *dweights = zip(*parts, strict=True)
    expected = (jnp.concatenate(a) for a in (y, dx, dweight))
    expected = (*expected, *(sum(d) for d in dweights))
    self._assert_close(sharded(x, index, weight, *weights), expected)

  def test_refuses_scales_of_rows_that_are_elsewhere(self):
    inputs, _ = _inputs(n_tokens=5, d=6, f=4)
    tensor = fp8_recipe.Recipe(activation_granularity="tensor")
    with self.assertRaisesRegex(ValueError, "impl='slots' with activation_gra"):
      expert_mlp.expert_mlp(*inputs, impl="slots", fp8=tensor)
    block = fp8_recipe.Recipe(gradient_granularity="block")
    with self.assertRaisesRegex(ValueError, "='block': expected 'grouped'"):
      expert_mlp.expert_mlp(*inputs, impl="lookup", fp8=block)

  def test_auto_knows_its_platform(self):
    tensor = fp8_recipe.Recipe(activation_granularity="tensor")
    self.assertEqual(fp8_experts.fastest(_RECIPE, 99, 9), "slots")
    self.assertEqual(fp8_experts.fastest(tensor, 1, 9), "grouped")
    with platforms.compiling_for("gpu"):
      self.assertEqual(fp8_experts.fastest(_RECIPE, 99, 9), "grouped")


class ProductsTest(parameterized.TestCase):
  @parameterized.parameters(100, 128, 300)
  def test_sums_of_tiles_are_those_of_one_product(self, rows):
    """Whether rows are whole tiles or not."""
    keys = jax.random.split(jax.random.key(rows))
    x, dy = (jax.random.normal(key, (2, rows, 24)) for key in keys)
    x, dy = (fp8.quantise(a, fp8.COLUMN_TILE) for a in (x, dy))
    found = jax.jit(fp8_grouped.Batched(_RECIPE).wgrad)(x, dy)
    expected = fp8_product.multiply(x.transposed, dy, accumulation="exact")
    self.assertLess(_error(found, expected), 1e-6)

  def test_hoppers_kernels(self):
    """They take the same arguments, and give the same."""
    keys = jax.random.split(jax.random.key(0), 3)
    blocks = row_blocks.pad(jnp.array([100, 0, 130], jnp.int32), 230, 128)
    x = jax.random.normal(keys[0], (128 * blocks.group.size, 128))
    used = jnp.arange(x.shape[0])[:, None] < 128 * blocks.count
    x = jnp.where(used, x, 0.0)
    w = jax.random.normal(keys[1], (3, 128, 128))
    products = fp8_grouped.Blocks(blocks, 3, _RECIPE)

    def both():
      rows, columns = (
        fp8.quantise(x, tile) for tile in (fp8.ROW_TILE, fp8.COLUMN_TILE)
      )
      y = products.fprop(rows, fp8.quantise(w, fp8.BLOCK_TILE), jnp.float32)
      return y, products.wgrad(columns, columns)

    expected = jax.jit(lambda: both())()
    with (
      mock.patch.object(fp8_linear, "implementation", return_value="kernel"),
      hopper_target.interpreted(),
    ):
      found = jax.jit(lambda: both())()
    for one, other in zip(found, expected, strict=True):
      self.assertLess(_error(one, other), 1e-6)


if __name__ == "__main__":
  absltest.main()
