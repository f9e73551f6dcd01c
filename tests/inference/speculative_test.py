"""Speculation is lossless: what comes out has the model's distribution."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.inference import sampling
from dsx.inference import speculative

V, N = 5, 40_000


def _distributions(seed: int, n: int, sharp: float):
  rng = np.random.default_rng(seed)
  logits = sharp * rng.normal(size=(n, V))
  return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), -1)


def _many(log_p, log_q, seed: int = 0):
  """Tokens [N, J + 1] and counts accepted of N tries with drafts from q."""
  n = log_q.shape[0]
  keys = jax.random.split(jax.random.key(seed), 3)
  drafts = jax.random.categorical(keys[0], log_q[None], shape=(N, n))
  uniform = jax.random.uniform(keys[1], (N, n))

  def draw(rest, accepted):
    del accepted
    return jax.random.categorical(keys[2], rest).astype(jnp.int32)

  return speculative.verify(
    drafts.astype(jnp.int32),
    jnp.broadcast_to(log_q, (N, *log_q.shape)),
    jnp.broadcast_to(log_p, (N, *log_p.shape)),
    uniform,
    draw,
  )


def _shares(tokens):
  return np.bincount(np.asarray(tokens), minlength=V) / len(tokens)


# Four standard deviations of a share of N draws.
_ERROR = 4 * 0.5 / N**0.5


class SpeculativeTest(parameterized.TestCase):
  @parameterized.parameters((0, 1.0), (1, 3.0), (2, 0.1), (3, 6.0))
  def test_one_draft(self, seed, sharp):
    log_p, log_q = (
      _distributions(seed, 2, sharp),
      _distributions(seed + 9, 1, sharp),
    )
    found = _many(log_p, log_q)
    p, q = np.exp(log_p), np.exp(log_q)
    # The first token is the model's, whether it was drafted or not.
    np.testing.assert_allclose(_shares(found.tokens[:, 0]), p[0], atol=_ERROR)
    # As often as theory says: the overlap of both distributions.
    accepted = np.asarray(found.accepted) == 1
    overlap = np.minimum(p[0], q[0]).sum()
    self.assertAlmostEqual(accepted.mean(), overlap, delta=_ERROR)
    second = np.asarray(found.tokens[:, 1])[accepted]
    error = 4 * 0.5 / max(len(second), 1) ** 0.5
    np.testing.assert_allclose(_shares(second), p[1], atol=error)

  def test_two_drafts_are_accepted_in_order(self):
    log_p, log_q = _distributions(4, 3, 1.0), _distributions(5, 2, 1.0)
    found = _many(log_p, log_q)
    p, q = np.exp(log_p), np.exp(log_q)
    overlap = np.minimum(p[:2], q).sum(1)
    shares = np.bincount(np.asarray(found.accepted), minlength=3) / N
    expected = [
      1 - overlap[0],
      overlap[0] * (1 - overlap[1]),
      overlap[0] * overlap[1],
    ]
    np.testing.assert_allclose(shares, expected, atol=_ERROR)
    for place in range(3):
      reached = np.asarray(found.tokens[:, place])[found.accepted >= place]
      error = 4 * 0.5 / len(reached) ** 0.5
      np.testing.assert_allclose(_shares(reached), p[place], atol=error)

  def test_a_certain_draft_of_nothing(self):
    """What fresh sequences have: token 0 for certain."""
    log_p = _distributions(6, 2, 1.0)
    log_q = jnp.full((1, V), -jnp.inf).at[0, 0].set(0.0)
    found = _many(log_p, log_q)
    np.testing.assert_allclose(
      _shares(found.tokens[:, 0]), np.exp(log_p[0]), atol=_ERROR
    )

  def test_without_drafts_it_draws(self):
    log_p = _distributions(7, 1, 1.0)
    found = _many(log_p, jnp.zeros((0, V)))
    self.assertEqual(int(found.accepted.max()), 0)
    self.assertEqual(found.tokens.shape, (N, 1))
    np.testing.assert_allclose(
      _shares(found.tokens[:, 0]), np.exp(log_p[0]), atol=_ERROR
    )

  def test_equal_distributions_always_stand(self):
    log_p = _distributions(8, 2, 2.0)
    found = _many(log_p, log_p[:1])
    self.assertEqual(int(found.accepted.min()), 1)

  def test_greedy_is_the_limit_of_temperature_zero(self):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(64, 3, V)), jnp.float32)
    drafts = jnp.asarray(rng.integers(0, V, (64, 2)), jnp.int32)
    best = sampling.best_token(logits)
    # Half of the drafts are right.
    drafts = jnp.where(drafts % 2 == 0, best[:, :2], drafts)
    shape = sampling.Shape.of([sampling.Sampling(temperature=0.0)] * 64)
    log_p = jnp.stack(
      [sampling.log_distribution(logits[:, j], shape) for j in range(3)], 1
    )
    log_q = jnp.log(jax.nn.one_hot(drafts, V))
    uniform = jnp.asarray(rng.uniform(size=(64, 2)), jnp.float32)

    def draw(rest, accepted):
      return jnp.argmax(rest, -1).astype(jnp.int32)

    slow = speculative.verify(drafts, log_q, log_p, uniform, draw)
    fast = speculative.verify_greedy(drafts, best)
    self.assertEqual(slow.accepted.tolist(), fast.accepted.tolist())
    self.assertGreater(len(set(fast.accepted.tolist())), 2)
    for row in range(64):
      n = int(fast.accepted[row]) + 1
      self.assertEqual(
        slow.tokens[row, :n].tolist(), fast.tokens[row, :n].tolist()
      )


if __name__ == "__main__":
  absltest.main()
