"""Chunked cross-entropy against the obvious one; masks by hand."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.training import losses


def _naive(hidden, kernel, targets):
  logits = hidden.astype(jnp.float32) @ kernel.astype(jnp.float32)
  return -jax.nn.log_softmax(logits)[jnp.arange(targets.size), targets]


class CrossEntropyTest(parameterized.TestCase):
  @parameterized.parameters(
    (40, 64), (40, 40), (40, 16), (41, 16), (7, 3), (129, 64)
  )
  def test_equals_naive_in_value_and_gradient(self, vocabulary, chunk):
    rng = np.random.default_rng(vocabulary)
    hidden = rng.normal(size=(9, 6)).astype(np.float32)
    kernel = rng.normal(size=(6, vocabulary)).astype(np.float32)
    targets = rng.integers(0, vocabulary, 9).astype(np.int32)
    weight = rng.normal(size=9).astype(np.float32)

    def ours(hidden, kernel):
      nats = losses.cross_entropy(hidden, kernel, targets, chunk=chunk)
      return (nats * weight).sum()

    def naive(hidden, kernel):
      return (_naive(hidden, kernel, targets) * weight).sum()

    np.testing.assert_allclose(
      losses.cross_entropy(hidden, kernel, targets, chunk=chunk),
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
    n, vocabulary, chunk = 8, 4096, 256
    args = (
      jnp.zeros((n, 4)),
      jnp.zeros((4, vocabulary)),
      jnp.zeros((n,), jnp.int32),
    )

    def loss(hidden, kernel, targets):
      return losses.cross_entropy(hidden, kernel, targets, chunk=chunk).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).as_text()
    self.assertNotIn(f"tensor<{n}x{vocabulary}xf32>", text)
    self.assertIn(f"tensor<{n}x{chunk}xf32>", text)

  def test_extreme_logits_stay_finite(self):
    hidden = jnp.array([[1e4, 0.0]])
    kernel = jnp.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    nats = losses.cross_entropy(hidden, kernel, jnp.array([1]), chunk=2)
    np.testing.assert_allclose(nats, [2e4])


class TargetMaskTest(parameterized.TestCase):
  def test_literal(self):
    batch = {"tokens": jnp.arange(5)[None, :]}
    rows = [losses.target_mask(batch, k)[0].tolist() for k in range(3)]
    self.assertEqual(
      rows,
      [
        [True, True, True, True],
        [True, True, True, False],
        [True, True, False, False],
      ],
    )

  def test_targets_are_shifted(self):
    record = jnp.array([[10, 11, 12, 13, 14]])
    self.assertEqual(losses.shifted(record, 0).tolist(), [[11, 12, 13, 14]])
    self.assertEqual(losses.shifted(record, 1)[0, :3].tolist(), [12, 13, 14])

  def test_segments_and_loss_mask(self):
    batch = {
      "tokens": jnp.zeros((1, 5), jnp.int32),
      "segment_ids": jnp.array([[1, 1, 1, 2, 2]]),
    }
    self.assertEqual(
      losses.target_mask(batch, 0)[0].tolist(), [True, True, False, True]
    )
    self.assertEqual(
      losses.target_mask(batch, 1)[0].tolist(), [True, False, False, False]
    )
    batch["loss_mask"] = jnp.array([[0, 0, 1, 1, 1]])
    self.assertEqual(
      losses.target_mask(batch, 0)[0].tolist(), [False, True, False, True]
    )
