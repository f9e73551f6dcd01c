"""Multi-head latent attention against loops, and what it must not see."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import mla
from dsx.ops import rope
from tests.models import oracle
from tests.models import tiny

_LENGTH = 9


def _attention(variant="v3", **changes):
  """(config, parameters of one attention, function of x and segments)."""
  c = tiny.config(**{**tiny.VARIANTS[variant], **changes})
  part = "dense_layers" if c.first_k_dense_replace else "moe_layers"
  params = tiny.layer(tiny.variables(c)["params"][part]["self_attn"], 0)

  def apply(x, segment_ids=None, positions=None, params=params):
    if positions is None:
      positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :]
      positions = jnp.broadcast_to(positions, x.shape[:2])
    rotation = rope.cos_sin(
      positions, c.qk_rope_head_dim, c.rope_theta, c.rope_scaling
    )
    return mla.MLA(c).apply({"params": params}, x, rotation, segment_ids)

  return c, params, jax.jit(apply)


def _x(batch=2, length=_LENGTH, width=12, seed=0):
  return jax.random.normal(jax.random.key(seed), (batch, length, width))


class MlaTest(parameterized.TestCase):
  @parameterized.product(
    variant=("v3", "v3_no_query_rank", "v3_yarn"), packed=(False, True)
  )
  def test_equals_the_equations(self, variant, packed):
    c, params, apply = _attention(variant)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [5] * 4 + [4] * 5])
    ours = apply(_x(), jnp.asarray(segments) if packed else None)
    theirs = [
      oracle.mla(
        c,
        oracle.float64(params),
        np.asarray(row, np.float64),
        segments[i] if packed else None,
      )
      for i, row in enumerate(_x())
    ]
    theirs = np.stack(theirs).astype(np.float32)
    self.assertGreater(theirs.std(), 0.3)
    chex.assert_trees_all_close(ours, theirs, atol=2e-5)

  def test_sees_nothing_of_the_future(self):
    _, _, apply = _attention()
    x = _x()
    for t in range(_LENGTH):
      moved = np.asarray(apply(x.at[:, t].add(1.0)) - apply(x))
      self.assertEqual(np.abs(moved[:, :t]).max(initial=0.0), 0.0)
      self.assertGreater(np.abs(moved[:, t:]).min(axis=(0, 2)).max(), 1e-4)

  def test_sees_its_own_segment_alone(self):
    _, _, apply = _attention()
    segments = jnp.array([[1] * 4 + [2] * 5] * 2)
    x = _x()
    moved = np.asarray(
      apply(x.at[:, 1].add(1.0), segments) - apply(x, segments)
    )
    self.assertEqual(np.abs(moved[:, 4:]).max(), 0.0)
    self.assertGreater(np.abs(moved[:, 1:4]).max(), 1e-3)

  @parameterized.parameters("v3", "v3_yarn")
  def test_positions_matter_by_their_distance(self, variant):
    _, _, apply = _attention(variant)
    x = _x()
    positions = jnp.broadcast_to(jnp.arange(_LENGTH)[None, :], x.shape[:2])
    chex.assert_trees_all_close(
      apply(x, None, positions + 50), apply(x), atol=2e-4
    )
    stretched = apply(x, None, 3 * positions) - apply(x)
    self.assertGreater(float(jnp.abs(stretched).max()), 1e-2)

  def test_heads_share_one_rotary_key(self):
    """The latent holds C + R numbers, whatever the number of heads."""
    for heads in (2, 3):
      c, params, _ = _attention(num_attention_heads=heads)
      kernel = params["kv_a_proj_with_mqa"]["kernel"]
      self.assertEqual(kernel.shape, (c.hidden_size, 8 + 4))
      self.assertEqual(params["kv_b_proj"]["kernel"].shape, (8, heads * 11))

  def test_rotary_key_is_not_normalised(self):
    """RMSNorm is on the latent only: a longer rotary key weighs more."""
    _, params, apply = _attention()
    kernel = params["kv_a_proj_with_mqa"]["kernel"]

    def scaled(columns):
      changed = kernel.at[:, columns].multiply(2.0)
      return apply(
        _x(), params={**params, "kv_a_proj_with_mqa": {"kernel": changed}}
      )

    # Twice the latent is the same latent after its norm.
    chex.assert_trees_all_close(scaled(slice(0, 8)), apply(_x()), atol=1e-5)
    moved = scaled(slice(8, 12)) - apply(_x())
    self.assertGreater(float(jnp.abs(moved).max()), 1e-2)


if __name__ == "__main__":
  absltest.main()
