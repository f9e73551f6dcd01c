"""GRPO's variants by hand, their gradients' identities, and all layouts."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.rl import grpo
from dsx.rl import objective as objective_lib

Objective = objective_lib.Objective

# Two answers, of three tokens and of one, with advantages 1 and -2.
_LOGP = ((-1.0, -2.0, -0.5), (-1.5,))
_OLD = ((-1.1, -1.5, -0.5), (-1.0,))
_REFERENCE = ((-1.0, -2.2, -0.4), (-2.0,))
_ADVANTAGE = (1.0, -2.0)


def _padded(rows, width=4, fill=9.0):
  padded = np.full((len(rows), width), fill, np.float32)
  for own, row in zip(padded, rows, strict=True):
    own[: len(row)] = row
  return jnp.asarray(padded)


def _answers(advantage=_ADVANTAGE, importance=1.0):
  mask = _padded(tuple((1.0,) * len(row) for row in _LOGP), fill=0.0) > 0
  return grpo.Answers(
    sequence=jnp.broadcast_to(jnp.arange(2, dtype=jnp.int32)[:, None], (2, 4)),
    mask=mask,
    old=_padded(_OLD),
    reference=_padded(_REFERENCE, fill=np.nan),
    importance=jnp.full((2, 4), importance),
    advantage=jnp.asarray(advantage, jnp.float32),
    length=mask.sum(1),
  )


def _loss(objective, **changes):
  answers = _answers(**changes)
  divisor = grpo.denominator(answers.length, objective)
  return grpo.loss(_padded(_LOGP), answers, objective, divisor)


def _term(ratio, advantage, low, high):
  return -min(ratio * advantage, min(max(ratio, low), high) * advantage)


def _k3(reference, logp):
  return math.exp(reference - logp) - (reference - logp) - 1


def _by_hand(objective):
  """The definitions, with Python's numbers."""
  low, high = 1 - objective.clip_low, 1 + objective.clip_high
  total, tokens = 0.0, 0
  for logp, old, reference, advantage in zip(
    _LOGP, _OLD, _REFERENCE, _ADVANTAGE, strict=True
  ):
    n = len(logp)
    moved = [a - b for a, b in zip(logp, old, strict=True)]
    if objective.ratio == "sequence":
      kl = _k3(sum(reference), sum(logp))
      term = _term(math.exp(sum(moved)), advantage, low, high)
      total += term + objective.kl_coefficient * kl
      continue
    if objective.ratio == "geometric_mean":
      moved = [sum(moved) / n] * n
    own = 0.0
    for i in range(n):
      own += _term(math.exp(moved[i]), advantage, low, high)
      if objective.kl == "k3":
        own += objective.kl_coefficient * _k3(reference[i], logp[i])
      elif objective.kl == "k2":
        own += objective.kl_coefficient * (reference[i] - logp[i]) ** 2 / 2
    total += own / n if objective.divide_by == "sequence" else own
    tokens += n
  divisor = {
    "sequence": len(_LOGP),
    "token": tokens,
    "constant": len(_LOGP) * (objective.longest or 0),
  }
  return total / divisor[objective.divide_by]


_VARIANTS = {
  "deepseekmath": Objective(kl_coefficient=0.04),
  "as_printed": Objective(ratio="sequence", kl_coefficient=0.04),
  "r1": Objective(clip_low=10.0, clip_high=10.0),
  "k2": Objective(kl="k2", kl_coefficient=0.5),
  "dr_grpo": Objective(divide_by="constant", longest=8, kl="none"),
  "dapo": Objective(divide_by="token", kl="none", clip_high=0.28),
  "gspo": Objective(
    ratio="geometric_mean", kl="none", clip_low=3e-4, clip_high=4e-4
  ),
}


class LossTest(parameterized.TestCase):
  @parameterized.named_parameters(*_VARIANTS.items())
  def test_by_hand(self, objective):
    value, _ = _loss(objective)
    self.assertAlmostEqual(float(value), _by_hand(objective), places=5)

  def test_literally(self):
    """One number worked out with pen and paper.

    Ratios e^0.1, e^-0.5 and 1 with advantage 1: cut nowhere but from above at
    1.2, so -(1.105171 + 0.606531 + 1) / 3. Ratio e^-0.5 with advantage -2: cut
    at 0.8, so +1.6. Half their sum.
    """
    value, sums = _loss(Objective(kl="none"))
    self.assertAlmostEqual(float(value), 0.5 * (-0.903901 + 1.6), places=5)
    self.assertEqual(float(sums["clipped"]), 1)
    self.assertEqual(float(sums["tokens"]), 4)

  def test_epsilon_of_ten_cuts_off_above_eleven_alone(self):
    objective = Objective(clip_low=10.0, clip_high=10.0, kl="none")

    def gradient(log_ratio, advantage):
      one = grpo.Answers(
        sequence=jnp.zeros((1, 1), jnp.int32),
        mask=jnp.ones((1, 1), bool),
        old=jnp.full((1, 1), -log_ratio),
        reference=jnp.zeros((1, 1)),
        importance=jnp.ones((1, 1)),
        advantage=jnp.full((1,), advantage),
        length=jnp.ones((1,), jnp.int32),
      )
      of = jax.grad(lambda x: grpo.loss(x, one, objective, 1.0)[0])
      return float(of(jnp.zeros((1, 1)))[0, 0])

    self.assertAlmostEqual(gradient(math.log(10.9), 1.0), -10.9, places=4)
    self.assertEqual(gradient(math.log(11.1), 1.0), 0.0)
    self.assertAlmostEqual(gradient(math.log(1e-4), 1.0), -1e-4, places=7)
    self.assertAlmostEqual(gradient(math.log(11.1), -1.0), 11.1, places=4)

  def test_importance_multiplies_the_gain_alone(self):
    objective = Objective(kl_coefficient=0.3)
    gain, _ = _loss(Objective(kl="none"))
    both, _ = _loss(objective)
    half, _ = _loss(objective, importance=0.5)
    chex.assert_trees_all_close(half, both - 0.5 * gain, atol=1e-6)

  def test_entropy(self):
    answers = _answers()
    objective = Objective(kl="none", entropy_coefficient=0.5)
    args = (_padded(_LOGP), answers, objective, 2.0)
    with self.assertRaisesRegex(ValueError, "entropy_coefficient=0.5: exp"):
      grpo.loss(*args)
    value, sums = grpo.loss(*args, entropy=jnp.ones((2, 4)))
    plain, _ = _loss(Objective(kl="none"))
    self.assertAlmostEqual(float(value), float(plain) - 0.5, places=6)
    self.assertEqual(float(sums["entropy"]), 4.0)

  def test_far_away_stays_finite(self):
    answers = _answers()._replace(reference=jnp.full((2, 4), 500.0))
    logp = _padded(_LOGP)

    def loss(logp):
      return grpo.loss(logp - 500.0, answers, Objective(), 2.0)[0]

    value, slope = jax.value_and_grad(loss)(logp)
    chex.assert_tree_all_finite((value, slope))

  def test_padding_has_no_gradient(self):
    answers = _answers()
    slope = jax.grad(lambda x: grpo.loss(x, answers, Objective(), 2.0)[0])(
      _padded(_LOGP)
    )
    self.assertTrue(bool((slope[~answers.mask] == 0).all()))
    self.assertTrue(bool((slope[answers.mask] != 0).any()))


class LayoutTest(parameterized.TestCase):
  @parameterized.named_parameters(*_VARIANTS.items())
  def test_packed_equals_padded_equals_micro_batches(self, objective):
    answers, logp = _answers(), _padded(_LOGP)
    divisor = grpo.denominator(answers.length, objective)
    loss = jax.value_and_grad(grpo.loss, has_aux=True)
    (value, sums), slope = loss(logp, answers, objective, divisor)
    slope = slope[answers.mask]

    def packed(x, fill):
      """Both answers in one row, and a place for none at its end."""
      x = x[answers.mask]
      return jnp.concatenate([x, jnp.full((1,), fill, x.dtype)])[None]

    rows = answers._replace(
      sequence=packed(answers.sequence, 0),
      mask=packed(answers.mask, False),
      old=packed(answers.old, 0.0),
      reference=packed(answers.reference, np.nan),
      importance=packed(answers.importance, 1.0),
    )
    (own, own_sums), own_slope = loss(
      packed(logp, 7.0), rows, objective, divisor
    )
    chex.assert_trees_all_close((own, own_sums), (value, sums), atol=1e-6)
    chex.assert_trees_all_close(own_slope[0, :-1], slope, atol=1e-6)

    parts = []
    for i in range(2):
      one = grpo.Answers(*(x[i : i + 1] for x in answers[:5]), *answers[5:])
      parts.append(loss(logp[i : i + 1], one, objective, divisor))
    total = jax.tree.map(jnp.add, parts[0][0], parts[1][0])
    chex.assert_trees_all_close(total, (value, sums), atol=1e-6)

  def test_denominators(self):
    length = jnp.array([3, 0, 1])
    for objective, expected in (
      (Objective(), 2.0),
      (Objective(divide_by="token"), 4.0),
      (Objective(divide_by="constant", longest=8), 16.0),
    ):
      self.assertEqual(float(grpo.denominator(length, objective)), expected)
    self.assertEqual(float(grpo.denominator(length * 0, Objective())), 1.0)


class DivergenceTest(parameterized.TestCase):
  """The estimators' expected gradients, summed over a whole vocabulary."""

  def _expected_gradient(self, estimator):
    policy, reference = self._logits()
    p = jax.nn.softmax(policy)

    def loss(logits):
      away = jax.nn.log_softmax(reference) - jax.nn.log_softmax(logits)
      return (p * grpo.divergence(away, estimator)).sum()

    return jax.grad(loss)(policy)

  def _logits(self):
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=6), jnp.float32) for _ in range(2))

  def _gradient_of(self, divergence):
    policy, reference = self._logits()

    def value(logits):
      p, r = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
      first, second = (p, r) if divergence == "policy_reference" else (r, p)
      return (jnp.exp(first) * (first - second)).sum()

    return jax.grad(value)(policy)

  def test_k1_as_a_loss_has_no_gradient(self):
    gradient = self._expected_gradient("k1")
    chex.assert_trees_all_close(gradient, jnp.zeros(6), atol=1e-6)

  def test_k2_has_the_gradient_of_the_divergence(self):
    expected = self._gradient_of("policy_reference")
    self.assertGreater(float(jnp.abs(expected).max()), 0.05)
    gradient = self._expected_gradient("k2")
    chex.assert_trees_all_close(gradient, expected, atol=1e-6)

  def test_k3_has_the_gradient_of_the_reverse(self):
    expected = self._gradient_of("reference_policy")
    self.assertGreater(float(jnp.abs(expected).max()), 0.05)
    gradient = self._expected_gradient("k3")
    chex.assert_trees_all_close(gradient, expected, atol=1e-6)

  def test_k1_and_k3_are_unbiased(self):
    policy, reference = self._logits()
    p, r = jax.nn.log_softmax(policy), jax.nn.log_softmax(reference)
    expected = (jnp.exp(p) * (p - r)).sum()
    for estimator in ("k1", "k3"):
      mean = (jnp.exp(p) * grpo.divergence(r - p, estimator)).sum()
      chex.assert_trees_all_close(mean, expected, atol=1e-6)
    self.assertTrue(bool((grpo.divergence(r - p, "k3") >= 0).all()))

  def test_unknown(self):
    with self.assertRaisesRegex(ValueError, "estimator='k4': expected k1, k2"):
      grpo.divergence(jnp.zeros(1), "k4")


class ObjectiveTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"ratio": "word"}, "ratio='word': expected one of token, sequence, .*"),
    ({"clip_low": -0.1}, "clip_low=-0.1: expected a number of at least 0; .*"),
    (
      {"ratio": "sequence", "divide_by": "token"},
      "divide_by='token': expected 'sequence' with ratio='sequence', .*",
    ),
    ({"divide_by": "constant"}, "longest=None: expected a number of tokens .*"),
    ({"kl_in_reward": True}, "kl='k3': expected 'none' with kl_in_reward; .*"),
  )
  def test_refused(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      Objective(**fields)


if __name__ == "__main__":
  absltest.main()
