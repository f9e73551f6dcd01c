"""Attention over latents against attention over what they expand to."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from dsx.ops import attention
from dsx.ops import latent_attention

B, L, S, H, C, R, NOPE, U = 2, 3, 7, 4, 6, 2, 5, 3


def _arrays(seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return {
    "content": normal(B, L, H, NOPE),
    "position": normal(B, L, H, R),
    "latent": normal(B, S, C),
    "shared": normal(B, S, R),
    "key_up": normal(H, NOPE, C),
    "value_up": normal(H, C, U),
  }


def _expanded(a, first: int):
  """Queries at positions `first`... over keys and values of every head."""
  key = jnp.einsum("bsc,hnc->bshn", a["latent"], a["key_up"])
  shared = jnp.broadcast_to(a["shared"][:, :, None, :], (B, S, H, R))
  value = jnp.einsum("bsc,hcu->bshu", a["latent"], a["value_up"])
  return attention.attention(
    jnp.concatenate([a["content"], a["position"]], -1),
    jnp.concatenate([key, shared], -1),
    value,
    scale=0.4,
    q_positions=jnp.tile(first + jnp.arange(L)[None, :], (B, 1)),
    kv_positions=jnp.tile(jnp.arange(S)[None, :], (B, 1)),
    impl="naive",
  )


def _absorbed(a, memories):
  query = jnp.einsum("blhn,hnc->blhc", a["content"], a["key_up"])
  query = jnp.concatenate([query, a["position"]], -1)
  mixed = latent_attention.attend(query, memories, scale=0.4)
  return jnp.einsum("blhc,hcu->blhu", mixed[..., :C], a["value_up"])


class LatentAttentionTest(parameterized.TestCase):
  @parameterized.parameters(1, 4, S)
  def test_is_expanded_attention_wherever_entries_lie(self, cut):
    a, first = _arrays(), S - L
    entries = jnp.concatenate([a["latent"], a["shared"]], -1)
    seen = jnp.arange(S)[None, :] <= first + jnp.arange(L)[:, None]
    memories = [
      (entries[:, part], seen[None, :, part])
      for part in (slice(0, cut), slice(cut, S))
      if part.start < S
    ]
    chex.assert_trees_all_close(
      _absorbed(a, memories), _expanded(a, first), atol=2e-6
    )

  def test_a_query_that_sees_nothing_gives_zeros(self):
    a = _arrays(1)
    entries = jnp.concatenate([a["latent"], a["shared"]], -1)
    found = _absorbed(a, [(entries, jnp.zeros((B, 1, S), bool))])
    chex.assert_trees_all_equal(found, jnp.zeros_like(found))

  def test_what_is_not_seen_does_not_matter(self):
    a = _arrays(2)
    entries = jnp.concatenate([a["latent"], a["shared"]], -1)
    seen = jnp.ones((B, 1, S), bool).at[:, :, 2].set(False)
    other = entries.at[:, 2].set(1e3)
    chex.assert_trees_all_equal(
      _absorbed(a, [(entries, seen)]), _absorbed(a, [(other, seen)])
    )


if __name__ == "__main__":
  absltest.main()
