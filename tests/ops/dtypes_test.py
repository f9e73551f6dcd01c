"""The dtype policy refuses what loses small numbers."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax.numpy as jnp

from dsx.ops import dtypes


class DtypesTest(parameterized.TestCase):
  def test_defaults_are_float32(self):
    policy = dtypes.Dtypes()
    names = (policy.param, policy.compute, policy.accum, policy.router)
    self.assertEqual(set(names), {"float32"})

  @parameterized.parameters("param", "compute")
  def test_matrices_may_be_narrow(self, field):
    policy = dtypes.Dtypes(**{field: "bfloat16"})
    self.assertEqual(getattr(policy, field), "bfloat16")

  @parameterized.parameters("accum", "router")
  def test_routing_and_accumulation_may_not(self, field):
    with self.assertRaisesWithLiteralMatch(
      ValueError,
      f"{field}='bfloat16': expected float32, because routing and "
      "accumulation lose small updates below it (section 3.3.1)",
    ):
      dtypes.Dtypes(**{field: "bfloat16"})

  @parameterized.product(
    field=("param", "compute", "accum", "router"),
    name=("int32", "bool", "brain16"),
  )
  def test_only_floating_dtypes(self, field, name):
    with self.assertRaisesWithLiteralMatch(
      ValueError,
      f"{field}={name!r}: expected a floating dtype such as 'float32' or "
      "'bfloat16'",
    ):
      dtypes.Dtypes(**{field: name})

  def test_cast_leaves_integers(self):
    tree = {"w": jnp.ones((2,)), "n": jnp.ones((2,), jnp.int32)}
    out = dtypes.cast(tree, "bfloat16")
    expected = {"w": jnp.ones((2,), jnp.bfloat16), "n": tree["n"]}
    chex.assert_trees_all_equal(out, expected)
    chex.assert_trees_all_equal_dtypes(out, expected)


if __name__ == "__main__":
  absltest.main()
