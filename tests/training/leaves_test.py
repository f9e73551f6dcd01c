from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from dsx.training import leaves


class Moments(NamedTuple):
  mu: dict
  nu: tuple


def _tree():
  return {
    "opt": Moments({"w": jnp.ones(2)}, (jnp.zeros(3), None)),
    "step": jnp.int32(4),
  }


class LeavesTest(parameterized.TestCase):
  def test_names_are_paths(self):
    names = ["opt/mu/w", "opt/nu/0", "step"]
    self.assertEqual(list(leaves.named(_tree())), names)

  def test_nested_dicts_have_the_same_names(self):
    named = leaves.named(_tree())
    nested = leaves.nested(named)
    self.assertEqual(set(nested), {"opt", "step"})
    self.assertEqual(list(nested["opt"]["nu"]), ["0"])
    self.assertEqual(leaves.named(nested), named)

  def test_like_rebuilds_the_classes(self):
    tree = _tree()
    named = {name: leaf + 1 for name, leaf in leaves.named(tree).items()}
    rebuilt = leaves.like(tree, named)
    chex.assert_trees_all_equal(rebuilt, jax.tree.map(lambda x: x + 1, tree))
    self.assertIsInstance(rebuilt["opt"], Moments)

  @parameterized.parameters(
    ({"a": {"b": 1}, "a/b": 2},),
    ({"a": {"b": 1}, "a.b": 2},),
  )
  def test_refuses_two_leaves_of_one_name(self, tree):
    with self.assertRaisesRegex(ValueError, "have the same name"):
      leaves.named(tree)

  @parameterized.parameters(({},), (3,))
  def test_refuses_a_tree_without_names(self, tree):
    with self.assertRaisesRegex(ValueError, "expected a tree with named"):
      leaves.named(tree)

  def test_refuses_what_is_no_array(self):
    with self.assertRaisesRegex(ValueError, "'a' is int, expected a jax.Array"):
      leaves.check_savable({"a": 3})
    with self.assertRaisesRegex(ValueError, r"'a' has shape \(0, 2\)"):
      leaves.check_savable({"a": jnp.zeros((0, 2))})

  @parameterized.parameters(
    ("threefry2x32", "key<threefry2x32>", (3, 2)),
    ("rbg", "key<rbg>", (3, 4)),
    ("unsafe_rbg", "key<unsafe_rbg>", (3, 4)),
  )
  def test_typed_keys_survive(self, impl, name, shape):
    keys = jax.random.split(jax.random.key(5, impl=impl), 3)
    abstract = jax.ShapeDtypeStruct(
      keys.shape, keys.dtype, sharding=keys.sharding
    )
    self.assertEqual(leaves.dtype_name(keys), name)
    self.assertEqual(leaves.dtype_name(abstract), name)
    plain = leaves.plain(keys)
    target = leaves.plain(abstract)
    for array in (plain, target):
      self.assertEqual((array.shape, array.dtype), (shape, jnp.uint32))
    self.assertEqual(target.sharding, keys.sharding)
    back = leaves.typed(plain, name)
    self.assertEqual(back.dtype, keys.dtype)
    chex.assert_trees_all_equal(
      jax.random.key_data(back), jax.random.key_data(keys)
    )

  def test_other_dtypes_are_left_alone(self):
    array = jnp.ones(2, jnp.bfloat16)
    self.assertEqual(leaves.dtype_name(array), "bfloat16")
    self.assertIs(leaves.plain(array), array)
    self.assertIs(leaves.typed(array, "bfloat16"), array)


if __name__ == "__main__":
  absltest.main()
