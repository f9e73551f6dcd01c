"""An update is the documented gradient, however answers are laid out."""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.inference import sampling
from dsx.rl import mini_batches
from dsx.rl import objective
from dsx.rl import update
from tests.rl import tiny_policy

_OBJECTIVE = objective.Objective(kl_coefficient=0.3)
# Two micro-batches of two rows, whichever answers are read.
_SETTINGS = update.Settings(objective=_OBJECTIVE, micro_batch_tokens=128)
# Nothing but the gain counts.
_GAIN = dataclasses.replace(_SETTINGS, objective=objective.Objective(kl="none"))
_ADVANTAGES = np.random.default_rng(1).normal(size=12).astype(np.float32)


@functools.cache
def _samples():
  return tiny_policy.samples()


def _cut():
  """Answers as a sampler has them that truncates, if it says so or not."""
  return [
    dataclasses.replace(s, sampled_logprob=s.sampled_logprob + 0.4)
    for s in _samples()
  ]


@functools.cache
def _updater(settings=_SETTINGS):
  return tiny_policy.updater(settings)


@functools.cache
def _recomputed():
  return _updater().recompute(
    tiny_policy.variables(), _samples(), tiny_policy.variables(seed=1)
  )


def _step(settings=_SETTINGS, *, order=None, seed=2, **changes):
  """(gradient, facts) of one step from weights that have moved on."""
  order = np.arange(12) if order is None else order
  arguments = {
    "advantages": _ADVANTAGES[order],
    "logprobs": {
      name: [of[i] for i in order]
      for name, of in _recomputed().logprobs.items()
    },
    "learning_rate": 1.0,
  }
  before = tiny_policy.state(seed)
  after, facts = _updater(settings).update(
    tiny_policy.state(seed),
    [_samples()[i] for i in order],
    **(arguments | changes),
  )
  return tiny_policy.gradient(before, after), facts


def _largest(tree):
  return max(np.abs(x).max() for x in jax.tree.leaves(tree))


class RecomputeTest(absltest.TestCase):
  def test_equals_the_sampler_to_rounding(self):
    """And so the replayed experts are those that it chose."""
    found = _recomputed()
    for own, s in zip(found.logprobs["old"], _samples(), strict=True):
      np.testing.assert_allclose(own, s.sampled_logprob, atol=2e-5)
    self.assertLess(found.facts["mismatch_max"], 2e-5)
    self.assertLess(found.facts["mismatch_kl"], 1e-6)
    self.assertEqual(found.facts["mismatch_large"], 0)
    self.assertEqual(found.refusal, "")
    for own in found.logprobs["importance"]:
      np.testing.assert_array_equal(own, 1)

  def test_reference_and_entropy(self):
    found = _recomputed()
    free = [dataclasses.replace(s, experts=None) for s in _samples()]
    (theirs, _), _ = tiny_policy.logits(tiny_policy.variables(seed=1), free)
    (own, _), _ = tiny_policy.logits(tiny_policy.variables(), _samples())
    divergence = []
    for i, s in enumerate(_samples()):
      rows = tiny_policy.of_answer(s, tiny_policy.table(theirs[i]))
      expected = rows[np.arange(len(s.tokens)), s.tokens]
      np.testing.assert_allclose(
        found.logprobs["reference"][i], expected, atol=2e-5
      )
      divergence.append(float((found.logprobs["old"][i] - expected).sum()))
      rows = tiny_policy.of_answer(s, tiny_policy.table(own[i]))
      np.testing.assert_allclose(
        found.logprobs["entropy"][i], -(np.exp(rows) * rows).sum(-1), atol=2e-5
      )
    np.testing.assert_allclose(found.divergence, divergence, atol=1e-4)

  def test_a_sampler_too_far_off_is_refused(self):
    found = _updater(_GAIN).recompute(tiny_policy.state(), _cut())
    self.assertRegex(
      found.refusal,
      r"differ by a mean of 0\.4 nats a token: expected at most"
      r" refuse_mean=0.2",
    )
    np.testing.assert_allclose(found.facts["mismatch_signed"], -0.4, rtol=1e-3)
    before = tiny_policy.state()
    after, facts = mini_batches.learn(
      _updater(_GAIN),
      tiny_policy.state(),
      _samples(),
      _ADVANTAGES,
      found,
      learning_rates=[1.0] * 6,
      mini_batches=3,
      epochs=2,
    )
    chex.assert_trees_all_equal(after.params, before.params)
    self.assertEqual(int(after.skipped), 6)
    self.assertEqual(int(after.skipped_in_a_row), 6)
    self.assertEqual(int(after.step), 6)
    self.assertEqual([f["finite"] for f in facts], [0.0] * 6)

  def test_truncation_is_compared_at_temperature_1(self):
    """What was drawn from has no share in it but through `sampled_logprob`."""
    found = tiny_policy.updater(
      _GAIN, sampling=sampling.Sampling(temperature=0.8, top_p=0.9)
    ).recompute(tiny_policy.variables(), _cut())
    self.assertLess(found.facts["mismatch_max"], 2e-5)
    chex.assert_trees_all_close(
      found.logprobs["old"], _recomputed().logprobs["old"], atol=2e-5
    )

  def test_sampler_stands_in(self):
    settings = update.Settings(
      objective=objective.Objective(kl="none"), old="sampler"
    )
    found = tiny_policy.updater(settings).recompute(None, _samples())
    for own, s in zip(found.logprobs["old"], _samples(), strict=True):
      np.testing.assert_array_equal(own, s.sampled_logprob)
    self.assertEqual(found.facts, {})


class UpdateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.grads, cls.facts = _step()

  def test_is_the_documented_gradient(self):
    """DeepSeekMath eq. 3 and 4, answer by answer, from all logits."""
    variables, samples = tiny_policy.variables(seed=2), _samples()
    o = _OBJECTIVE

    def loss(params):
      variables_ = {**variables, "params": params}
      (found, _), _ = tiny_policy.logits(variables_, samples)
      total = 0.0
      for i, s in enumerate(samples):
        own = tiny_policy.of_answer(s, found[i]) / tiny_policy.TEMPERATURE
        rows = jax.nn.log_softmax(own)
        logp = rows[np.arange(len(s.tokens)), s.tokens]
        ratio = jnp.exp(logp - _recomputed().logprobs["old"][i])
        gain = jnp.minimum(
          ratio * _ADVANTAGES[i],
          jnp.clip(ratio, 1 - o.clip_low, 1 + o.clip_high) * _ADVANTAGES[i],
        )
        away = _recomputed().logprobs["reference"][i] - logp
        kl = jnp.exp(away) - away - 1
        total += (o.kl_coefficient * kl - gain).mean()
      return total / len(samples)

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    expected, grads = value_and_grad(variables["params"])
    np.testing.assert_allclose(self.facts["loss"], expected, rtol=1e-5)
    self.assertGreater(_largest(grads), 1e-2)
    chex.assert_trees_all_close(self.grads, grads, rtol=1e-3, atol=2e-6)
    self.assertEqual(self.facts["tokens"], sum(len(s.tokens) for s in samples))
    self.assertGreater(self.facts["clipped"], 0)
    router = self.grads["moe_layers"]["mlp"]["gate"]["kernel"]
    self.assertGreater(np.abs(router).max(), 1e-4)

  @parameterized.named_parameters(
    ("all_at_once", {"micro_batch_tokens": 4096}),
    ("an_answer_a_row", {"row_length": 22, "micro_batch_tokens": 1}),
  )
  def test_layout_does_not_matter(self, changes):
    settings = dataclasses.replace(_SETTINGS, **changes)
    order = np.random.default_rng(3).permutation(12)
    grads, facts = _step(settings, order=order)
    chex.assert_trees_all_close(grads, self.grads, rtol=1e-3, atol=2e-6)
    for name in ("loss", "kl", "clipped", "ratio", "tokens", "grad_norm"):
      np.testing.assert_allclose(facts[name], self.facts[name], rtol=1e-5)

  def test_what_does_not_count_is_not_there(self):
    counted = np.ones(12, bool)
    counted[[1, 5]] = False
    wrong = np.where(counted, _ADVANTAGES, np.nan)
    grads, facts = _step(counted=counted, advantages=wrong)
    expected, theirs = _step(order=np.flatnonzero(counted))
    chex.assert_trees_all_close(grads, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(facts["loss"], theirs["loss"], rtol=1e-5)

  def test_answers_without_advantage_need_not_be_read(self):
    advantages = np.where(np.arange(12) % 4, _ADVANTAGES, 0)
    grads, facts = _step(_GAIN, advantages=advantages)
    with mock.patch.object(update.Updater, "_only_gain", False):
      expected, theirs = _step(_GAIN, advantages=advantages)
    chex.assert_trees_all_close(grads, expected, rtol=1e-3, atol=2e-6)
    self.assertLess(facts["tokens"], theirs["tokens"])

  def test_refuses_what_is_not_finite(self):
    spoiled = tiny_policy.state(2)
    spoiled.params["norm"]["scale"] = jnp.full((32,), jnp.nan, jnp.float32)
    kept = jax.device_get(spoiled.params)
    state, facts = _updater().update(
      spoiled,
      _samples(),
      _ADVANTAGES,
      _recomputed().logprobs,
      learning_rate=1.0,
    )
    self.assertEqual(facts["finite"], 0)
    self.assertEqual(int(state.skipped), 1)
    chex.assert_trees_all_equal(jax.device_get(state.params), kept)

  def test_nothing_counts(self):
    before = tiny_policy.state(2)
    state, facts = _updater().update(
      before,
      _samples(),
      _ADVANTAGES,
      _recomputed().logprobs,
      counted=np.zeros(12, bool),
      learning_rate=1.0,
    )
    self.assertEqual(facts, {"tokens": 0.0, "finite": 0.0})
    self.assertEqual(int(state.skipped), 1)

  def test_mtp_modules_learn_alone(self):
    """Their loss is eq. 24's over answers, and moves nothing else."""
    settings = dataclasses.replace(
      _SETTINGS, mtp_weight=0.5, bias_update_speed=0.01
    )
    grads, facts = _step(settings)
    own = grads.pop("mtp_0")
    main = dict(self.grads)
    self.assertEqual(_largest(main.pop("mtp_0")), 0)
    chex.assert_trees_all_close(grads, main, rtol=1e-3, atol=2e-6)
    self.assertGreater(_largest(own), 1e-3)
    expected = []
    variables = tiny_policy.variables(seed=2)
    (_, found), _ = tiny_policy.logits(variables, _samples())
    for s, row in zip(_samples(), found, strict=True):
      both = np.concatenate([s.prompt, s.tokens])
      table = np.asarray(tiny_policy.table(row, 1.0))
      for i in range(max(len(s.prompt) - 2, 0), len(both) - 2):
        expected.append(-float(table[i, both[i + 2]]))
    tokens = sum(len(s.tokens) for s in _samples())
    np.testing.assert_allclose(
      facts["mtp_loss"], sum(expected) / tokens, rtol=1e-4
    )

  def test_learns(self):
    """What paid becomes likelier, what did not less so."""
    updater = _updater(_GAIN)
    state, samples = tiny_policy.state(), _samples()
    old = updater.recompute(state, samples)
    state, _ = mini_batches.learn(
      updater,
      state,
      samples,
      np.sign(_ADVANTAGES),
      old,
      learning_rates=[0.3] * 5,
      epochs=5,
    )
    self.assertEqual(int(state.step), 5)
    new = updater.recompute(state, samples)
    moved = [
      float((a - b).mean())
      for a, b in zip(new.logprobs["old"], old.logprobs["old"], strict=True)
    ]
    paid = _ADVANTAGES > 0
    self.assertGreater(np.mean(moved, where=paid), 0.05)
    self.assertLess(np.mean(moved, where=~paid), -0.05)


class MiniBatchesTest(absltest.TestCase):
  def test_deals_everything_once(self):
    parts = mini_batches.shuffled(11, 3, (0, 1))
    self.assertEqual(sorted(np.concatenate(parts).tolist()), list(range(11)))
    self.assertEqual([len(p) for p in parts], [4, 4, 3])
    again = mini_batches.shuffled(11, 3, (0, 1))
    chex.assert_trees_all_equal(parts, again)
    other = np.concatenate(mini_batches.shuffled(11, 3, (0, 2)))
    self.assertFalse(np.array_equal(np.concatenate(parts), other))

  def test_one_part_is_in_order(self):
    chex.assert_trees_all_equal(mini_batches.shuffled(4, 1, 0), [np.arange(4)])


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"old": "both"}, "old='both': expected trainer or sampler"),
    ({"mtp_weight": -1.0}, "mtp_weight=-1.0: expected at least 0"),
    ({"row_length": 0}, "row_length=0: expected at least 1"),
  )
  def test_settings(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      update.Settings(**fields)

  def test_what_does_not_go_together(self):
    for settings, sampling_, message in (
      ({}, {"temperature": 0.0}, "temperature=0.0: expected above 0"),
      ({"old": "sampler"}, {"top_p": 0.9}, "old='sampler': expected 'trainer'"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        tiny_policy.updater(
          update.Settings(**settings), sampling=sampling.Sampling(**sampling_)
        )
    with self.assertRaisesRegex(ValueError, "reference=None: expected the"):
      _updater().recompute(tiny_policy.variables(), _samples())
    with self.assertRaisesRegex(ValueError, "advantages of 3 answers: exp"):
      _step(advantages=np.ones(3))
    with self.assertRaisesRegex(ValueError, "expected 'old' too; take them"):
      _step(logprobs={})
    with self.assertRaisesRegex(ValueError, r"advantages\[2\]=nan: expected"):
      _step(advantages=np.where(np.arange(12) == 2, np.nan, 1.0))
    with self.assertRaisesRegex(ValueError, "learning_rates of 1 updates"):
      mini_batches.learn(
        _updater(),
        tiny_policy.state(),
        _samples(),
        _ADVANTAGES,
        _recomputed(),
        learning_rates=[1.0],
        epochs=2,
      )


if __name__ == "__main__":
  absltest.main()
