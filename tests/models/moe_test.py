"""The expert layer against loops; what its bias and its loads mean."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.models import moe
from dsx.ops import dtypes
from tests.models import oracle
from tests.models import tiny

_VARIANTS = tuple(v for v in tiny.VARIANTS if v not in ("v3_dense", "v3_yarn"))


def _layer(variant="v3", **changes):
  """(config, variables of one expert layer)."""
  c = tiny.config(**{**tiny.VARIANTS[variant], **changes})
  whole = tiny.variables(c)
  variables = {"params": tiny.layer(whole["params"]["moe_layers"]["mlp"], 0)}
  if c.has_router_bias:
    biases = whole["router_bias"]["moe_layers"]["mlp"]
    variables["router_bias"] = tiny.layer(biases, 0)
  return c, variables


@functools.cache
def _compiled(c, **kwargs):
  return jax.jit(moe.MoE(c, **kwargs).apply)


def _apply(c, variables, x, mask=None, **kwargs):
  if mask is None:
    mask = jnp.ones(x.shape[:2], bool)
  return _compiled(c, **kwargs)(variables, x, mask)


def _x(seed=0):
  return jax.random.normal(jax.random.key(seed), (2, 13, 12))


class MoeTest(parameterized.TestCase):
  @parameterized.parameters(*_VARIANTS)
  def test_equals_the_equations(self, variant):
    c, variables = _layer(variant)
    y, aux = _apply(c, variables, _x())
    bias = variables.get("router_bias")
    if bias is not None:
      bias = np.asarray(bias["gate"]["e_score_correction_bias"], np.float64)
    theirs, load = oracle.moe(
      c,
      oracle.float64(variables["params"]),
      bias,
      np.asarray(_x(), np.float64).reshape(26, 12),
    )
    self.assertGreater(theirs.std(), 0.3)
    theirs = theirs.reshape(2, 13, 12).astype(np.float32)
    chex.assert_trees_all_close(y, theirs, atol=3e-5)
    chex.assert_trees_all_equal(aux["load"], load.astype(np.float32))

  @parameterized.parameters("slots", "grouped", "dense")
  def test_implementations_agree(self, impl):
    c, variables = _layer()
    execution = config_lib.Execution(experts=impl)
    ours = _apply(c, variables, _x(), execution=execution)
    chex.assert_trees_all_close(ours, _apply(c, variables, _x()), atol=1e-5)

  @parameterized.parameters("v3", "v2")
  def test_balance_loss_is_of_the_unbiased_affinities(self, variant):
    c, variables = _layer(variant)
    _, aux = _apply(c, variables, _x())
    expected = []
    for sequence in np.asarray(_x(), np.float64):
      f, p = np.zeros(8), np.zeros(8)
      for x in sequence:
        s = oracle.affinities(c, oracle.float64(variables["params"]), x)
        f[np.argsort(s)[-3:]] += 8 / (3 * 13)
        p += s / s.sum() / 13
      expected.append(f @ p)
    chex.assert_trees_all_close(
      aux["balance_loss"], jnp.array(expected, jnp.float32), rtol=1e-5
    )
    if variant == "v3":
      moved = jax.tree.map(lambda b: -b, variables["router_bias"])
      _, other = _apply(c, {**variables, "router_bias": moved}, _x())
      self.assertFalse(np.array_equal(aux["load"], other["load"]))
      chex.assert_trees_all_equal(aux["balance_loss"], other["balance_loss"])

  def test_bias_can_force_an_expert(self):
    c, variables = _layer()
    gate = variables["router_bias"]["gate"]
    bias = gate["e_score_correction_bias"].at[5].set(10.0)
    forced = {"gate": {"e_score_correction_bias": bias}}
    _, aux = _apply(c, {**variables, "router_bias": forced}, _x())
    self.assertEqual(float(aux["load"][5]), 26.0)
    self.assertEqual(float(aux["load"].sum()), 26.0 * 3)

  def test_mask_is_for_counting_alone(self):
    c, variables = _layer()
    mask = jnp.arange(13)[None, :] < jnp.array([[13], [4]])
    y, aux = _apply(c, variables, _x(), mask)
    whole, _ = _apply(c, variables, _x())
    chex.assert_trees_all_equal(y, whole)
    self.assertEqual(float(aux["load"].sum()), 17.0 * 3)
    # What a masked token is does not matter for balance.
    moved = jnp.where(mask[:, :, None], _x(), 1.0)
    _, other = _apply(c, variables, moved, mask)
    chex.assert_trees_all_equal(aux["load"], other["load"])
    chex.assert_trees_all_close(
      aux["balance_loss"], other["balance_loss"], rtol=1e-6
    )

  def test_no_mask_counts_every_token(self):
    c, variables = _layer()
    ours = jax.jit(moe.MoE(c).apply)(variables, _x())
    chex.assert_trees_all_close(ours, _apply(c, variables, _x()), atol=1e-6)

  def test_gradients(self):
    """To chosen experts, the router and x; none to others or to the bias."""
    c, variables = _layer(num_experts_per_tok=1, norm_topk_prob=False)
    x = _x()[:1, :2]

    def loss(variables, x):
      y, _ = moe.MoE(c).apply(variables, x)
      return (y**2).sum()

    grads, dx = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables, x)
    _, aux = _apply(c, variables, x)
    chosen = np.asarray(aux["load"]) > 0
    self.assertBetween(chosen.sum(), 1, 2)
    for grad in jax.tree.leaves(grads["params"]["experts"]):
      moved = np.abs(grad).sum(axis=(1, 2)) > 0
      np.testing.assert_array_equal(moved, chosen)
    router = np.abs(grads["params"]["gate"]["kernel"]).sum(0) > 0
    np.testing.assert_array_equal(router, chosen)
    self.assertGreater(np.abs(dx).min(), 0.0)
    for grad in jax.tree.leaves(grads["router_bias"]):
      self.assertEqual(np.abs(grad).max(), 0.0)

  def test_gradients_are_those_of_the_dense_oracle(self):
    c, variables = _layer()

    def grads(impl):
      execution = config_lib.Execution(experts=impl)

      def loss(params, x):
        y, _ = moe.MoE(c, execution=execution).apply(
          {**variables, "params": params}, x
        )
        return (y * jnp.cos(jnp.arange(12.0))[None, None, :]).sum()

      return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], _x())

    dense = grads("dense")
    for impl in ("slots", "grouped"):
      chex.assert_trees_all_close(grads(impl), dense, atol=1e-4)

  def test_shared_experts_are_fused(self):
    """Two shared experts side by side are one of twice the width."""
    c, variables = _layer(n_shared_experts=2)
    alone = {**variables, "params": dict(variables["params"])}
    shared = alone["params"].pop("shared_experts")
    routed, _ = _apply(tiny.config(n_shared_experts=0), alone, _x())
    y, _ = _apply(c, variables, _x())
    shared = oracle.float64(shared)
    for half in (slice(0, 8), slice(8, 16)):
      own = {
        "gate_proj": {"kernel": shared["gate_proj"]["kernel"][:, half]},
        "up_proj": {"kernel": shared["up_proj"]["kernel"][:, half]},
        "down_proj": {"kernel": shared["down_proj"]["kernel"][half]},
      }
      routed = routed + oracle.swiglu(own, np.asarray(_x(), np.float64)).astype(
        np.float32
      )
    chex.assert_trees_all_close(y, routed, atol=3e-5)

  def test_router_stays_in_float32(self):
    """bfloat16 matrices change neither affinities' nor biases' precision."""
    c, variables = _layer()
    policy = dtypes.Dtypes(compute="bfloat16")
    x = _x().astype(jnp.bfloat16)
    (scores, bias) = jax.jit(moe.Router(c, policy).apply)(
      {
        "params": variables["params"]["gate"],
        "router_bias": variables["router_bias"]["gate"],
      },
      x,
    )
    chex.assert_type([scores, bias], jnp.float32)
    kernel = np.asarray(variables["params"]["gate"]["kernel"], np.float64)
    exact = 1 / (1 + np.exp(-np.asarray(x, np.float64) @ kernel))
    chex.assert_trees_all_close(scores, exact.astype(np.float32), atol=1e-6)
    y, aux = _apply(c, variables, x, dtypes=policy)
    self.assertEqual(y.dtype, jnp.bfloat16)
    _, wide = _apply(c, variables, x.astype(jnp.float32))
    chex.assert_trees_all_equal(aux["load"], wide["load"])


if __name__ == "__main__":
  absltest.main()
