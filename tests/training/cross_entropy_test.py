"""Chunked cross-entropy against the obvious one, divided and not."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.training import cross_entropy


def _naive(hidden, kernel, targets):
  logits = hidden.astype(jnp.float32) @ kernel.astype(jnp.float32)
  chosen = jax.nn.one_hot(targets, kernel.shape[1])
  return -(jax.nn.log_softmax(logits) * chosen).sum(-1)


class CrossEntropyTest(parameterized.TestCase):
  @parameterized.parameters(
    (40, 64), (40, 40), (40, 16), (41, 16), (7, 3), (129, 64)
  )
  def test_equals_naive_in_value_and_gradient(self, vocabulary, chunk):
    rng = np.random.default_rng(vocabulary)
    hidden = rng.normal(size=(3, 4, 6)).astype(np.float32)
    kernel = rng.normal(size=(6, vocabulary)).astype(np.float32)
    targets = rng.integers(0, vocabulary, (3, 4)).astype(np.int32)
    weight = rng.normal(size=(3, 4)).astype(np.float32)

    def ours(hidden, kernel):
      nats = cross_entropy.cross_entropy(hidden, kernel, targets, chunk=chunk)
      return (nats * weight).sum()

    def naive(hidden, kernel):
      return (_naive(hidden, kernel, targets) * weight).sum()

    np.testing.assert_allclose(
      cross_entropy.cross_entropy(hidden, kernel, targets, chunk=chunk),
      _naive(hidden, kernel, targets),
      rtol=1e-5,
      atol=1e-5,
    )
    chex.assert_trees_all_close(
      jax.grad(ours, argnums=(0, 1))(hidden, kernel),
      jax.grad(naive, argnums=(0, 1))(hidden, kernel),
      rtol=1e-4,
      atol=1e-5,
    )

  def test_never_holds_all_logits(self):
    vocabulary, chunk = 4096, 256
    args = (
      jnp.zeros((2, 4, 3)),
      jnp.zeros((3, vocabulary)),
      jnp.zeros((2, 4), jnp.int32),
    )

    def loss(hidden, kernel, targets):
      return cross_entropy.cross_entropy(
        hidden, kernel, targets, chunk=chunk
      ).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).as_text()
    self.assertNotIn(f"tensor<2x4x{vocabulary}xf32>", text)
    self.assertIn(f"tensor<2x4x1x{chunk}xf32>", text)

  def test_extreme_logits_stay_finite(self):
    hidden = jnp.array([[[1e4, 0.0]]])
    kernel = jnp.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    nats = cross_entropy.cross_entropy(
      hidden, kernel, jnp.array([[1]]), chunk=2
    )
    np.testing.assert_allclose(nats, [[2e4]])
