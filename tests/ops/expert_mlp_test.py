from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dsx.ops import block_scaled
from dsx.ops import expert_mlp

FAST = ("slots", "grouped", "lookup")


def _inputs(n_tokens=19, n_experts=5, k=2, d=6, f=4, skew=0.0):
  keys = jax.random.split(jax.random.key(n_tokens), 7)
  scores = jax.random.normal(keys[0], (n_tokens, n_experts))
  scores += skew * jnp.arange(n_experts)[None, :]
  _, index = jax.lax.top_k(scores, k)
  return (
    jax.random.normal(keys[1], (n_tokens, d)),
    index,
    jax.random.uniform(keys[2], (n_tokens, k)),
    jax.random.normal(keys[3], (n_experts, d, f)),
    jax.random.normal(keys[4], (n_experts, d, f)),
    jax.random.normal(keys[5], (n_experts, f, d)),
  ), jax.random.normal(keys[6], (n_tokens, d))


def _value_and_grads(impl, inputs, dout):
  x, index, *rest = inputs

  def experts(x, *rest):
    return expert_mlp.expert_mlp(x, index, *rest, impl=impl)

  out, pull = jax.vjp(experts, x, *rest)
  return out, *pull(dout)


def _loop(inputs):
  """Token by token, expert by expert."""
  x, index, weight, gate, up, down = inputs
  rows = []
  for t in range(x.shape[0]):
    terms = []
    for k in range(index.shape[1]):
      e = int(index[t, k])
      hidden = jax.nn.silu(x[t] @ gate[e]) * (x[t] @ up[e])
      terms.append(weight[t, k] * (hidden @ down[e]))
    rows.append(sum(terms))
  return jnp.stack(rows)


class ExpertMlpTest(parameterized.TestCase):
  def test_dense_is_a_loop_over_tokens(self):
    inputs, _ = _inputs(n_tokens=4)
    chex.assert_trees_all_close(
      expert_mlp.expert_mlp(*inputs, impl="dense"), _loop(inputs), atol=1e-4
    )

  @parameterized.product(
    impl=FAST,
    case=(
      {"n_tokens": 40},  # even enough for the slots
      {"n_tokens": 200, "skew": 2.0},  # overflows, some experts empty
      {"n_tokens": 150, "skew": 99.0, "k": 1},  # one expert has all
      {"n_tokens": 3, "n_experts": 8},  # fewer copies than experts
      {"n_tokens": 30, "n_experts": 1, "k": 1},
    ),
  )
  def test_value_and_gradients(self, impl, case):
    inputs, dout = _inputs(**case)
    chex.assert_trees_all_close(
      jax.jit(_value_and_grads, static_argnums=0)(impl, inputs, dout),
      _value_and_grads("dense", inputs, dout),
      atol=2e-4,
      rtol=1e-4,
    )

  @parameterized.parameters(*FAST)
  def test_no_expert_adds_nothing(self, impl):
    inputs, dout = _inputs(n_tokens=70, skew=2.0)
    x, index, *rest = inputs
    index = index.at[3, 1].set(5).at[60, 0].set(-1).at[61].set(5)
    inputs = (x, index, *rest)
    chex.assert_trees_all_close(
      jax.jit(_value_and_grads, static_argnums=0)(impl, inputs, dout),
      _value_and_grads("dense", inputs, dout),
      atol=1e-4,
      rtol=1e-4,
    )

  @parameterized.parameters(*FAST)
  def test_bfloat16(self, impl):
    inputs, dout = _inputs(n_tokens=60, skew=1.0)
    x, index, weight, *kernels = inputs
    narrow = [a.astype(jnp.bfloat16) for a in (x, *kernels)]
    got = _value_and_grads(
      impl,
      (narrow[0], index, weight, *narrow[1:]),
      dout.astype(jnp.bfloat16),
    )
    chex.assert_type(
      got, [jnp.bfloat16] * 2 + [jnp.float32] + [jnp.bfloat16] * 3
    )
    for mine, oracle in zip(
      got, _value_and_grads("dense", inputs, dout), strict=True
    ):
      error = jnp.linalg.norm(mine.astype(jnp.float32) - oracle)
      self.assertLess(error / jnp.linalg.norm(oracle), 0.02)

  @parameterized.product(impl=(*FAST, "dense"), n_tokens=(3, 40))
  def test_fp8_weights_are_what_they_stand_for(self, impl, n_tokens):
    inputs, _ = _inputs(n_tokens=n_tokens, d=140, f=12)
    x, index, weight, *kernels = inputs
    fp8 = [block_scaled.quantise(kernel) for kernel in kernels]
    wide = [kernel.dequantise(jnp.float32) for kernel in fp8]
    chex.assert_trees_all_equal(
      jax.jit(expert_mlp.expert_mlp, static_argnames="impl")(
        x, index, weight, *fp8, impl=impl
      ),
      jax.jit(expert_mlp.expert_mlp, static_argnames="impl")(
        x, index, weight, *wide, impl=impl
      ),
    )

  @parameterized.parameters(*FAST)
  def test_under_remat_and_scan(self, impl):
    inputs, dout = _inputs(n_tokens=70, skew=2.0)
    x, index, *rest = inputs

    def layers(impl, x, rest):
      @jax.checkpoint
      def layer(x, _):
        y = expert_mlp.expert_mlp(x, index, *rest, impl=impl)
        return x + jnp.tanh(y), None

      return (jax.lax.scan(layer, x, length=2)[0] * dout).sum()

    grad = jax.jit(jax.grad(layers, (1, 2)), static_argnums=0)
    chex.assert_trees_all_close(
      grad(impl, x, rest), grad("dense", x, rest), atol=2e-4, rtol=1e-3
    )

  @parameterized.product(impl=FAST, check_vma=(False, True))
  def test_inside_shard_map(self, impl, check_vma):
    mesh = jax.make_mesh(
      (8,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    inputs, dout = _inputs(n_tokens=8 * 9, skew=1.0)

    def sharded(*inputs):
      return jax.shard_map(
        lambda *a: expert_mlp.expert_mlp(*a, impl=impl),
        mesh=mesh,
        in_specs=(*[P("shard")] * 3, *[P()] * 3),
        out_specs=P("shard"),
        check_vma=check_vma,
      )(*inputs)

    def loss(f, x, weight, *kernels):
      return (f(x, inputs[1], weight, *kernels) * dout).sum()

    args = (inputs[0], *inputs[2:])
    grads = jax.grad(loss, (1, 2, 3, 4, 5))
    chex.assert_trees_all_close(
      jax.jit(grads, static_argnums=0)(sharded, *args),
      grads(lambda *a: expert_mlp.expert_mlp(*a, impl="dense"), *args),
      atol=2e-4,
      rtol=1e-4,
    )

  def test_refuses_what_does_not_fit(self):
    (x, index, weight, gate, up, down), _ = _inputs()
    with self.assertRaisesRegex(ValueError, "impl='fast': expected one of"):
      expert_mlp.expert_mlp(x, index, weight, gate, up, down, impl="fast")
    with self.assertRaisesRegex(ValueError, r"weight \(19, 1\): expected"):
      expert_mlp.expert_mlp(x, index, weight[:, :1], gate, up, down)
    with self.assertRaisesRegex(ValueError, r"down \(5, 6, 4\): expected"):
      expert_mlp.expert_mlp(x, index, weight, gate, up, gate)
    with self.assertRaisesRegex(ValueError, "cast all to one dtype"):
      expert_mlp.expert_mlp(
        x.astype(jnp.bfloat16), index, weight, gate, up, down
      )


if __name__ == "__main__":
  absltest.main()
