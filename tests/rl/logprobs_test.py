"""Log-probabilities and entropies against all logits at once."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import logprobs

_B, _L, _D, _V = 2, 8, 6, 44


def _inputs(dtype=jnp.float32, size=_V):
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.normal(size=(_B, _L, _D)), dtype),
    jnp.asarray(2 * rng.normal(size=(_D, _V)), dtype),
    jnp.asarray(rng.integers(0, size, (_B, _L)), jnp.int32),
    jnp.asarray(rng.normal(size=(2, _B, _L)), jnp.float32),
  )


def _naive(hidden, kernel, targets, temperature, size):
  logits = jnp.einsum(
    "bld,dv->blv", hidden, kernel, preferred_element_type=jnp.float32
  )
  table = jax.nn.log_softmax(logits[..., :size] / temperature)
  logp = jnp.take_along_axis(table, targets[..., None], -1)[..., 0]
  return logprobs.Scores(logp, -(jnp.exp(table) * table).sum(-1))


def _both(compute, weights):
  """Values, and gradients of a sum with the given weights of both scores."""

  def total(hidden, kernel):
    scores = compute(hidden, kernel)
    return (scores.logp * weights[0] + scores.entropy * weights[1]).sum(), (
      scores
    )

  return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))


class LogprobsTest(parameterized.TestCase):
  @parameterized.product(
    chunk=(7, 16, 44), temperature=(1.0, 0.6), size=(44, 30, 13)
  )
  def test_equals_all_logits_at_once(self, chunk, temperature, size):
    hidden, kernel, targets, weights = _inputs(size=size)
    ours = _both(
      lambda h, k: logprobs.log_probabilities(
        h,
        k,
        targets,
        temperature=temperature,
        vocab_size=size,
        entropy=True,
        chunk=chunk,
      ),
      weights,
    )
    theirs = _both(
      lambda h, k: _naive(h, k, targets, temperature, size), weights
    )
    chex.assert_trees_all_close(
      ours(hidden, kernel), theirs(hidden, kernel), rtol=2e-5, atol=2e-5
    )

  def test_padding_has_no_gradient(self):
    hidden, kernel, targets, weights = _inputs(size=30)
    grads, _ = _both(
      lambda h, k: logprobs.log_probabilities(
        h, k, targets, vocab_size=30, entropy=True, chunk=8
      ),
      weights,
    )(hidden, kernel)
    self.assertEqual(float(jnp.abs(grads[1][:, 30:]).max()), 0)
    self.assertGreater(float(jnp.abs(grads[1][:, :30]).min(0).max()), 0)

  def test_without_entropy(self):
    hidden, kernel, targets, _ = _inputs()
    for chunk in (16, 64):
      scores = logprobs.log_probabilities(hidden, kernel, targets, chunk=chunk)
      expected = _naive(hidden, kernel, targets, 1.0, _V)
      chex.assert_trees_all_close(scores.logp, expected.logp, atol=1e-5)
      self.assertEqual(float(jnp.abs(scores.entropy).max()), 0)

  def test_never_holds_all_logits(self):
    """[B, L, V] is in no shape of the compiled program, backward included."""
    hidden, kernel, targets, weights = _inputs()
    text = (
      _both(
        lambda h, k: logprobs.log_probabilities(
          h, k, targets, entropy=True, chunk=11
        ),
        weights,
      )
      .lower(hidden, kernel)
      .compile()
      .as_text()
    )
    for held in ("[2,8,44]", "[16,44]", "[4,2,8,1,11]", "[4,2,8,11]"):
      self.assertNotIn(f"f32{held}", text)
    self.assertTrue("f32[2,8,1,11]" in text or "f32[16,11]" in text)

  def test_bfloat16_is_near(self):
    hidden, kernel, targets, weights = _inputs(jnp.bfloat16)
    ours = _both(
      lambda h, k: logprobs.log_probabilities(
        h, k, targets, entropy=True, chunk=16
      ),
      weights,
    )(hidden, kernel)
    theirs = _both(
      lambda h, k: _naive(
        h.astype(jnp.float32), k.astype(jnp.float32), targets, 1.0, _V
      ),
      weights,
    )(hidden, kernel)
    chex.assert_trees_all_close(ours[1], theirs[1], atol=1e-4)
    for own, other in zip(ours[0], theirs[0], strict=True):
      self.assertEqual(own.dtype, jnp.bfloat16)
      chex.assert_trees_all_close(
        own.astype(jnp.float32), other.astype(jnp.float32), atol=0.15
      )

  def test_large_logits_do_not_overflow(self):
    hidden, kernel, targets, weights = _inputs()
    grads, scores = _both(
      lambda h, k: logprobs.log_probabilities(
        1e4 * h, k, targets, entropy=True, chunk=16
      ),
      weights,
    )(hidden, kernel)
    chex.assert_tree_all_finite((grads, scores))
    self.assertLess(float(scores.logp.min()), -1e4)

  @parameterized.parameters(
    ({"data": 2, "node": 2, "local": 2}, "fully_sharded"),
    ({"local": 2, "tensor": 4}, "fully_sharded"),
    ({"data": 2, "context": 2, "tensor": 2}, "zero1"),
  )
  def test_on_a_mesh(self, shape, strategy):
    hidden, kernel, targets, weights = _inputs()
    hidden, targets = (
      jnp.tile(x, (4, 1, 1)[: x.ndim]) for x in (hidden, targets)
    )
    weights = jnp.tile(weights, (1, 4, 1))

    def ours(h, k):
      return logprobs.log_probabilities(
        h, k, targets, temperature=0.7, entropy=True, chunk=16
      )

    expected = _both(lambda h, k: _naive(h, k, targets, 0.7, _V), weights)(
      hidden, kernel
    )
    mesh = mesh_lib.make(mesh_lib.MeshShape(**{"data": 1} | shape))
    with sharding_lib.use(mesh, sharding_lib.Sharding(strategy=strategy)):
      found = _both(ours, weights)(hidden, kernel)
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=2e-5)

  @parameterized.parameters(
    ({"vocab_size": 45}, "vocab_size=45: expected 1 to 44"),
    ({"vocab_size": 0}, "vocab_size=0: expected 1 to 44"),
    ({"chunk": 0}, "chunk=0: expected at least 1"),
  )
  def test_says_what_is_wrong(self, fields, message):
    hidden, kernel, targets, _ = _inputs()
    with self.assertRaisesRegex(ValueError, message):
      logprobs.log_probabilities(hidden, kernel, targets, **fields)


if __name__ == "__main__":
  absltest.main()
