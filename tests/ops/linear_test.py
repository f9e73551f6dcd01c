from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dsx.ops import linear


def _inputs(shape=(2, 5, 4), features=3, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], shape, dtype)
  w = jax.random.normal(keys[1], (shape[-1], features), dtype)
  dy = jax.random.normal(keys[2], (*shape[:-1], features), dtype)
  return x, w, dy


def _value_and_grads(f, x, w, dy):
  y, pull = jax.vjp(f, x, w)
  return y, *pull(dy)


class LinearTest(parameterized.TestCase):
  @parameterized.parameters((4,), (5, 4), (2, 5, 4), (2, 3, 5, 4))
  def test_value_and_gradients(self, *shape):
    inputs = _inputs(shape)
    chex.assert_trees_all_close(
      _value_and_grads(linear.matmul, *inputs),
      _value_and_grads(jnp.matmul, *inputs),
      atol=1e-5,
    )

  def test_keeps_the_dtype(self):
    got = _value_and_grads(linear.matmul, *_inputs(dtype=jnp.bfloat16))
    chex.assert_type(got, jnp.bfloat16)

  def test_gradient_of_w_is_one_untransposed_product(self):
    def dw(f):
      def loss(w, x):
        return f(x, w).sum()

      return str(jax.make_jaxpr(jax.grad(loss))(*_inputs()[1::-1]))

    self.assertNotIn("transpose", dw(linear.matmul))
    self.assertIn("transpose", dw(jnp.matmul))

  @parameterized.parameters(False, True)
  def test_inside_shard_map(self, check_vma):
    mesh = jax.make_mesh(
      (8,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    x, w, _ = _inputs((8, 5, 4))

    def loss(matmul, x, w):
      y = jax.shard_map(
        matmul,
        mesh=mesh,
        in_specs=(P("shard"), P()),
        out_specs=P("shard"),
        check_vma=check_vma,
      )(x, w)
      return jnp.sin(y).sum()

    chex.assert_trees_all_close(
      jax.jit(jax.grad(loss, (1, 2)), static_argnums=0)(linear.matmul, x, w),
      jax.grad(lambda x, w: jnp.sin(x @ w).sum(), (0, 1))(x, w),
      atol=1e-5,
    )

  def test_refuses_what_does_not_fit(self):
    x, w, _ = _inputs()
    with self.assertRaisesRegex(ValueError, r"w \(3, 4\).*cast or transpose"):
      linear.matmul(x, w.T)
    with self.assertRaisesRegex(ValueError, "bfloat16.*in one dtype"):
      linear.matmul(x.astype(jnp.bfloat16), w)


if __name__ == "__main__":
  absltest.main()
