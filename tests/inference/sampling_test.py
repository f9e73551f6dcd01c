"""Tokens are drawn with the model's probabilities."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx.inference import sampling

_LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
_DRAWS = 20_000
# Chi-square of 3 degrees of freedom, exceeded once in 100,000 times.
_CRITICAL = 25.9


class SamplingTest(parameterized.TestCase):
  def chi_square(self, temperature, expected):
    logits = np.broadcast_to(_LOGITS, (_DRAWS, 4))
    drawn = sampling.sample(jax.random.key(7), logits, np.float32(temperature))
    counts = np.bincount(np.asarray(drawn), minlength=4)
    wanted = _DRAWS * expected / expected.sum()
    return ((counts - wanted) ** 2 / wanted).sum()

  @parameterized.parameters(1.0, 0.5, 2.0)
  def test_distribution(self, temperature):
    expected = np.exp(_LOGITS / temperature)
    self.assertLess(self.chi_square(temperature, expected), _CRITICAL)
    # The test can tell one temperature from another.
    wrong = np.exp(_LOGITS / (temperature * 1.3))
    self.assertGreater(self.chi_square(temperature, wrong), _CRITICAL)

  @parameterized.parameters(0, 1, 2)
  def test_zero_takes_the_best(self, best):
    logits = np.zeros((5, 3), np.float32)
    logits[:, best] = 1e-3
    keys = jax.random.key(0)
    drawn = sampling.sample(keys, logits, np.float32(0))
    np.testing.assert_array_equal(drawn, np.full(5, best))

  def test_a_low_temperature_overflows_nothing(self):
    logits = np.array([-1e4, 1e4, 0.0], np.float32)
    drawn = sampling.sample(jax.random.key(0), logits, np.float32(1e-8))
    self.assertEqual(drawn, 1)

  @parameterized.parameters(-1.0, float("nan"), float("inf"), -float("inf"))
  def test_bad_temperatures(self, temperature):
    with self.assertRaisesRegex(
      ValueError, f"temperature={temperature}: expected a finite number"
    ):
      sampling.Sampling(temperature=temperature)

  @parameterized.parameters(
    ({"max_new_tokens": -1}, "max_new_tokens=-1: expected at least 0"),
    ({"top_k": -1}, "top_k=-1: expected at least 0"),
    ({"top_p": 0.0}, "top_p=0.0: expected above 0 and at most 1"),
    ({"top_p": float("nan")}, "top_p=nan: expected above 0"),
    ({"min_p": 1.5}, "min_p=1.5: expected 0 to 1"),
    ({"seed": 2**64}, "expected at most 18446744073709551615"),
    ({"top_logprobs": 21}, "top_logprobs=21: expected at most 20"),
    ({"stop": ("a", "")}, "none of them empty"),
    ({"stop_tokens": tuple(range(9))}, "expected at most 8 ids"),
  )
  def test_bad_fields(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      sampling.Sampling(**fields)


class DistributionTest(parameterized.TestCase):
  """Against the definitions, one token after the other, in numpy."""

  def expected(self, logits, temperature, top_k, top_p, min_p):
    logits = np.asarray(logits, np.float64)
    if temperature == 0:
      return (np.arange(logits.size) == logits.argmax()).astype(float)
    p = np.exp(logits / temperature - (logits / temperature).max())
    order = np.argsort(-p, kind="stable")
    if top_k:
      p[order[top_k:]] = 0
    p /= p.sum()
    kept, total = [], 0.0
    for token in order:
      if kept and (total >= top_p or p[token] < min_p * p[order[0]]):
        break
      kept.append(token)
      total += p[token]
    p = np.where(np.isin(np.arange(p.size), kept), p, 0)
    return p / p.sum()

  def test_matches_the_definitions(self):
    rng = np.random.default_rng(0)
    rows = [
      (t, k, p, m)
      for t in (0.0, 0.3, 1.0, 2.0)
      for k in (0, 1, 3, 100)
      for p in (1.0, 0.9, 0.4)
      for m in (0.0, 0.2, 1.0)
    ]
    logits = rng.normal(size=(len(rows), 11)).astype(np.float32)
    requests = [
      sampling.Sampling(temperature=t, top_k=k, top_p=p, min_p=m)
      for t, k, p, m in rows
    ]
    found = sampling.log_distribution(logits, sampling.Shape.of(requests))
    for got, row, how in zip(np.exp(found), logits, rows, strict=True):
      np.testing.assert_allclose(
        got, self.expected(row, *how), atol=2e-6, err_msg=str(how)
      )

  def test_a_row_does_not_depend_on_its_neighbours(self):
    logits = np.random.default_rng(1).normal(size=(2, 9)).astype(np.float32)
    plain, cut = sampling.Sampling(), sampling.Sampling(top_k=2)
    alone = sampling.log_distribution(logits[:1], sampling.Shape.of([plain]))
    shape = sampling.Shape.of([plain, cut])
    both = sampling.log_distribution(logits, shape)
    np.testing.assert_allclose(alone[0], both[0], atol=1e-6)
    self.assertEqual(int(np.isfinite(both[1]).sum()), 2)

  def test_keys_are_those_of_the_seed(self):
    seed = 2**40 + 7
    shape = sampling.Shape.of([sampling.Sampling(seed=seed)])
    np.testing.assert_array_equal(shape.key[0], [seed >> 32, seed & 0xFFFFFFFF])
    small = sampling.Shape.of([sampling.Sampling(seed=7)])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 3), 1)
    found = small.keys(np.array([3], np.int32), 1)[0]
    self.assertEqual(
      jax.random.key_data(found).tolist(), jax.random.key_data(key).tolist()
    )

  def test_draws_follow_the_distribution(self):
    n = 4000
    logits = np.tile(np.array([[0.0, 1.0, 2.0, -1.0]], np.float32), (n, 1))
    requests = [sampling.Sampling(temperature=1.0, seed=i) for i in range(n)]
    shape = sampling.Shape.of(requests)
    drawn = sampling.draw(
      sampling.log_distribution(logits, shape),
      shape.keys(np.zeros(n, np.int32), sampling.TOKEN),
    )
    share = np.bincount(drawn, minlength=4) / n
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    # Four standard deviations of a share of 4000 draws.
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / n**0.5)


if __name__ == "__main__":
  absltest.main()
