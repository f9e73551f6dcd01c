from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from dsx.ops import grouped_matmul
from dsx.ops import tiled_matmul

FAST = ("blocked", "tiled", "ragged")

SIZES = {
  "uneven": (40, (7, 0, 19, 14)),
  "empty_ends": (12, (0, 5, 7, 0)),
  "one_has_all": (300, (0, 300, 0)),
  "rows_past_the_sum": (290, (130, 0, 129)),
  "nothing_at_all": (9, (0, 0)),
  "one_group": (140, (140,)),
  "fewer_rows_than_a_block": (3, (1, 2)),
  "more_groups_than_rows": (2, (0, 0, 1, 0, 1)),
}
CASES = [
  (f"{impl}_{name}", impl, *case)
  for impl in FAST
  for name, case in SIZES.items()
]


def _inputs(n_rows, sizes, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(n_rows), 3)
  x = jax.random.normal(keys[0], (n_rows, 6), dtype)
  w = jax.random.normal(keys[1], (len(sizes), 6, 5), dtype)
  dy = jax.random.normal(keys[2], (n_rows, 5), dtype)
  return x, w, jnp.array(sizes, jnp.int32), dy


def _value_and_grads(impl, x, w, sizes, dy):
  def product(x, w):
    return grouped_matmul.grouped_matmul(x, w, sizes, impl=impl)

  y, pull = jax.vjp(product, x, w)
  return y, *pull(dy)


class GroupedMatmulTest(parameterized.TestCase):
  def test_each_row_meets_its_own_matrix(self):
    x = jnp.array([[1.0, 0], [0, 1], [1, 1], [5, 5]])
    w = jnp.array([[[1.0], [2]], [[10], [20]]])
    for impl in grouped_matmul.IMPLEMENTATIONS:
      y = grouped_matmul.grouped_matmul(x, w, jnp.array([1, 2]), impl=impl)
      chex.assert_trees_all_close(y, jnp.array([[1.0], [20], [30], [0]]))

  def test_dense_is_a_loop_over_groups(self):
    x, w, sizes, _ = _inputs(*SIZES["rows_past_the_sum"])
    expected, row = np.zeros((x.shape[0], w.shape[2])), 0
    for group, size in enumerate(np.asarray(sizes)):
      expected[row : row + size] = x[row : row + size] @ w[group]
      row += size
    y = grouped_matmul.grouped_matmul(x, w, sizes, impl="dense")
    chex.assert_trees_all_close(y, expected, atol=1e-5)

  @parameterized.named_parameters(*CASES)
  def test_value_and_gradients(self, impl, n_rows, sizes):
    inputs = _inputs(n_rows, sizes)
    chex.assert_trees_all_close(
      jax.jit(_value_and_grads, static_argnums=0)(impl, *inputs),
      _value_and_grads("dense", *inputs),
      atol=2e-4,
      rtol=1e-5,
    )

  @parameterized.parameters(*FAST)
  def test_bfloat16_accumulates_in_float32(self, impl):
    n_rows, sizes = 600, (1, 599)
    x = jnp.ones((n_rows, 4), jnp.bfloat16)
    w = jnp.ones((2, 4, 3), jnp.bfloat16)
    dy = jnp.ones((n_rows, 3), jnp.bfloat16)
    y, dx, dw = _value_and_grads(impl, x, w, jnp.array(sizes), dy)
    chex.assert_type((y, dx, dw), jnp.bfloat16)
    # A sum of 599 ones sticks at 256 in bfloat16; rounded once it is 600.
    chex.assert_trees_all_equal(dw[1], jnp.full((4, 3), 600.0, jnp.bfloat16))
    chex.assert_trees_all_equal(y, jnp.full((n_rows, 3), 4.0, jnp.bfloat16))

  @parameterized.parameters(*FAST)
  def test_under_remat_and_scan(self, impl):
    x, _, sizes, dy = _inputs(*SIZES["uneven"])
    w = jax.random.normal(jax.random.key(1), (3, 4, 6, 6))

    def layers(impl, x, w):
      @jax.checkpoint
      def layer(x, w):
        y = grouped_matmul.grouped_matmul(x, w, sizes, impl=impl)
        return jnp.tanh(y), None

      return (jax.lax.scan(layer, x, w)[0][:, :5] * dy).sum()

    grad = jax.jit(jax.grad(layers, (1, 2)), static_argnums=0)
    chex.assert_trees_all_close(
      grad(impl, x, w), grad("dense", x, w), atol=1e-5, rtol=1e-5
    )

  @parameterized.parameters(
    ("blocked", False),
    ("blocked", True),
    ("tiled", False),  # Pallas knows nothing of the other
    ("ragged", False),
    ("ragged", True),
  )
  def test_inside_shard_map(self, impl, check_vma):
    mesh = jax.make_mesh(
      (8,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    x, _, _, dy = _inputs(8 * 10, (1,))
    w = jax.random.normal(jax.random.key(1), (2, 6, 5))
    sizes = jnp.array([[i, 8 - i] for i in range(8)], jnp.int32).reshape(-1)

    def loss(impl, x, w):
      def shard(x, w, sizes, dy):
        y = grouped_matmul.grouped_matmul(x, w, sizes, impl=impl)
        return jax.lax.psum((jnp.sin(y) * dy).sum(), "shard")

      rows = P("shard")
      return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(rows, P(), rows, rows),
        out_specs=P(),
        check_vma=check_vma,
      )(x, w, sizes, dy)

    def reference(x, w):
      parts = zip(
        x.reshape(8, 10, 6), sizes.reshape(8, 2), dy.reshape(8, 10, 5),
        strict=True,
      )  # fmt: skip
      return sum(
        (jnp.sin(grouped_matmul.grouped_matmul(*xw, impl="dense")) * dy).sum()
        for *xw, dy in ((x, w, n, dy) for x, n, dy in parts)
      )

    chex.assert_trees_all_close(
      jax.jit(jax.grad(loss, (1, 2)), static_argnums=0)(impl, x, w),
      jax.jit(jax.grad(reference, (0, 1)))(x, w),
      atol=1e-4,
      rtol=1e-5,
    )

  @parameterized.parameters((640, (300, 0, 211)), (1025, (1, 1023, 1)))
  def test_tiles_of_every_size(self, n_rows, sizes):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (n_rows, 1152), jnp.bfloat16)
    w = jax.random.normal(keys[1], (len(sizes), 1152, 256), jnp.bfloat16)
    dy = jax.random.normal(keys[2], (n_rows, 256), jnp.bfloat16)
    inputs = x, w, jnp.array(sizes, jnp.int32), dy
    self.assertTrue(tiled_matmul.suits(x, w))
    chex.assert_trees_all_close(
      *(
        jax.tree.map(
          lambda a: a.astype(np.float32), _value_and_grads(i, *inputs)
        )
        for i in ("tiled", "blocked")
      ),
      atol=0.6,  # one step of bfloat16 at the largest values
      rtol=1e-2,
    )

  def test_auto_never_picks_the_quadratic_one_on_a_cpu(self):
    x, w, sizes, _ = _inputs(*SIZES["uneven"])
    text = jax.jit(grouped_matmul.grouped_matmul).lower(x, w, sizes).as_text()
    self.assertNotIn("ragged_dot", text)
    self.assertIn("while", text)

  def test_refuses_what_does_not_fit(self):
    x, w, sizes, _ = _inputs(*SIZES["uneven"])
    with self.assertRaisesRegex(ValueError, "impl='fast': expected one of"):
      grouped_matmul.grouped_matmul(x, w, sizes, impl="fast")
    with self.assertRaisesRegex(ValueError, r"x \(40, 5\).* as w's rows"):
      grouped_matmul.grouped_matmul(x[:, :5], w, sizes)
    with self.assertRaisesRegex(ValueError, r"group_sizes \(3,\): expected"):
      grouped_matmul.grouped_matmul(x, w, sizes[:3])
    with self.assertRaisesRegex(ValueError, "bfloat16.*cast both"):
      grouped_matmul.grouped_matmul(x.astype(jnp.bfloat16), w, sizes)


if __name__ == "__main__":
  absltest.main()
