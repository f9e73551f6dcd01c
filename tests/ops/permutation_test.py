from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from dsx.ops import permutation
from dsx.ops import platforms


def _inputs(n_tokens=23, n_experts=5, k=3, width=4):
  keys = jax.random.split(jax.random.key(0), 4)
  scores = jax.random.normal(keys[0], (n_tokens, n_experts))
  _, index = jax.lax.top_k(scores, k)
  x = jax.random.normal(keys[1], (n_tokens, width))
  weight = jax.random.uniform(keys[2], (n_tokens, k))
  scale = jax.random.normal(keys[3], (n_tokens * k, width))
  return x, index, weight, scale


def _oracle(x, index, weight, scale):
  """Permute, scale each sorted row, unpermute; by advanced indexing."""
  copy = jnp.argsort(index.reshape(-1), stable=True)
  y = x[copy // index.shape[1]] * scale
  contribution = y * weight.reshape(-1)[copy][:, None]
  return jnp.zeros_like(x).at[copy // index.shape[1]].add(contribution)


def _ours(x, index, weight, scale):
  y, order = permutation.permute(x, index, 5)
  return permutation.unpermute(y * scale, weight, order)


class PermutationTest(parameterized.TestCase):
  @parameterized.product(
    shape=[(1, 1), (23, 3), (64, 4), (300, 2), (1000, 8)], experts=[1, 5, 33]
  )
  def test_counting_is_sorting(self, shape, experts):
    """What a TPU does is what others do, unknown experts included."""
    rng = np.random.default_rng(0)
    index = jnp.asarray(rng.integers(-2, experts + 2, shape), jnp.int32)
    by_sorting = permutation.by_expert(index, experts)
    with platforms.compiling_for("tpu"):
      by_counting = permutation.by_expert(index, experts)
    chex.assert_trees_all_equal(by_counting, by_sorting)

  def test_literal(self):
    x = jnp.array([[1.0], [2.0]])
    index = jnp.array([[2, 0], [0, 1]])
    y, order = permutation.permute(x, index, 5)
    chex.assert_trees_all_equal(y, jnp.array([[1.0], [2], [2], [1]]))
    weight = jnp.array([[1.0, 10], [100, 1000]])
    out = permutation.unpermute(y, weight, order)
    chex.assert_trees_all_equal(out, jnp.array([[11.0], [2200.0]]))

  def test_rows_are_sorted_and_stable(self):
    _, index, _, _ = _inputs()
    order = permutation.by_expert(index, 5)
    expert = np.asarray(index).reshape(-1)[np.asarray(order.copy)]
    self.assertTrue((np.diff(expert) >= 0).all())
    for e in range(5):
      self.assertTrue((np.diff(order.copy[expert == e]) > 0).all())
    places = np.asarray(order.copy)[np.asarray(order.row)]
    np.testing.assert_array_equal(places.reshape(-1), np.arange(index.size))

  def test_no_expert_comes_last(self):
    order = permutation.by_expert(jnp.array([[3, -1], [1, 0]]), 3)
    chex.assert_trees_all_equal(order.copy, jnp.array([3, 2, 0, 1]))

  def test_too_many_copies_for_one_number_sort_alike(self):
    _, index, _, _ = _inputs()
    small = permutation.by_expert(index, 5)
    with mock.patch.object(permutation, "_INT32_MAX", 10):
      chex.assert_trees_all_equal(permutation.by_expert(index, 5), small)

  def test_group_sizes_count_copies(self):
    index = jnp.array([[2, 0], [0, 3]])
    sizes = permutation.group_sizes(index, 5)
    chex.assert_trees_all_equal(sizes, jnp.array([2, 0, 1, 1, 0]))

  def test_value_and_gradients(self):
    x, index, weight, scale = _inputs()

    def grads(f):
      def loss(x, weight, scale):
        return jnp.sin(f(x, index, weight, scale)).sum()

      return jax.value_and_grad(loss, (0, 1, 2))(x, weight, scale)

    chex.assert_trees_all_close(grads(_ours), grads(_oracle), atol=1e-5)

  def test_there_and_back_is_the_identity(self):
    x, index, weight, _ = _inputs()
    weight /= weight.sum(1, keepdims=True)
    y, order = permutation.permute(x, index, 5)
    chex.assert_trees_all_close(
      permutation.unpermute(y, weight, order), x, atol=1e-6
    )

  def test_bfloat16_rows_with_float32_weights(self):
    x, index, weight, scale = _inputs()
    x, scale = x.astype(jnp.bfloat16), scale.astype(jnp.bfloat16)

    def loss(x, weight):
      return _ours(x, index, weight, scale).astype(jnp.float32).sum()

    dx, dweight = jax.grad(loss, (0, 1))(x, weight)
    chex.assert_type(_ours(x, index, weight, scale), jnp.bfloat16)
    chex.assert_type((dx, dweight), (jnp.bfloat16, jnp.float32))

  def test_no_rows_are_scattered(self):
    x, index, weight, scale = _inputs()

    def loss(x, weight):
      return _ours(x, index, weight, scale).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, weight).as_text()
    floats = [line for line in text.splitlines() if "scatter" in line]
    self.assertFalse([line for line in floats if "f32" in line])

  @parameterized.parameters(False, True)
  def test_inside_shard_map(self, check_vma):
    mesh = jax.make_mesh(
      (8,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    x, index, weight, _ = _inputs(n_tokens=24)
    scale = jnp.ones((24 * 3, 4))
    rows = P("shard")

    def loss(x, weight):
      y = jax.shard_map(
        _ours,
        mesh=mesh,
        in_specs=(rows, rows, rows, rows),
        out_specs=rows,
        check_vma=check_vma,
      )(x, index, weight, scale)
      return jnp.sin(y).sum()

    def reference(x, weight):
      return jnp.sin(_oracle(x, index, weight, scale)).sum()

    chex.assert_trees_all_close(
      jax.jit(jax.grad(loss, (0, 1)))(x, weight),
      jax.grad(reference, (0, 1))(x, weight),
      atol=1e-5,
    )


if __name__ == "__main__":
  absltest.main()
