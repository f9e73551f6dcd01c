"""Rollouts: what is on record, whatever the engine, and again after a stop."""

import collections
import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.inference import decoding as decoding_lib
from dsx.inference import sampling as sampling_lib
from dsx.models import deepseek
from dsx.ops import dtypes
from dsx.rl import rollout
from tests.models import tiny

_EOS = 3
_DECODING = decoding_lib.Decoding(
  slots=16, page_size=4, steps=8, record_experts=True
)
_WARM = sampling_lib.Sampling(temperature=1.2, max_new_tokens=14)


def _prompts(*lengths):
  rng = np.random.default_rng(0)
  return [rng.integers(4, tiny.VOCAB, n).tolist() for n in lengths]


_PROMPTS = _prompts(1, 5, 9, 12, 6)


def _roller(version=7, **changes):
  roller = rollout.Roller(
    tiny.config(),
    decoding=dataclasses.replace(_DECODING, **changes),
    eos=_EOS,
  )
  roller.load(tiny.variables(tiny.config()), version)
  return roller


def _sample(roller, prompts=_PROMPTS, **changes):
  fields = {"group_size": 4, "sampling": _WARM, "run_seed": 1, "step": 2}
  return roller.sample(prompts, **(fields | changes))


@functools.cache
def _samples(drafts=0):
  return _sample(_roller(drafts=drafts))


def _text(sample):
  return np.concatenate([sample.prompt, sample.tokens])


@functools.cache
def _trainer(length: int):
  """The trainer's log-probabilities and routing, compiled once."""
  config = tiny.config()
  model, variables = deepseek.DeepSeek(config), tiny.variables(config)

  def load(tokens, n):
    """Tokens per expert and layer of the first n."""
    valid = jnp.arange(length)[None, :] < n
    aux = model.apply(variables, tokens, valid=valid, method="features")
    return aux["load"][: config.num_moe_layers]

  @jax.jit
  def run(tokens):
    logits, _ = model.apply(variables, tokens)
    loads = jax.vmap(load, (None, 0))(tokens, jnp.arange(length + 1))
    return jax.nn.log_softmax(logits[0], -1), loads

  return run


def _forward(text, length=32):
  """(log-probabilities [n, V], experts that each token is sent to)."""
  tokens = np.zeros((1, length), np.int32)
  tokens[0, : len(text)] = text
  logprobs, loads = _trainer(length)(tokens)
  chosen = np.diff(np.asarray(loads), axis=0)[: len(text)] > 0  # [n, M, E]
  return np.asarray(logprobs)[: len(text)], chosen


class RecordTest(parameterized.TestCase):
  @parameterized.parameters(0, 1)
  def test_is_what_the_trainer_computes(self, drafts):
    """Log-probabilities, and experts of prompts, answers and their drafts."""
    seen = collections.Counter()
    for sample in _samples(drafts)[::3]:
      text = _text(sample)
      logprobs, chosen = _forward(text[:-1])
      p, n = len(sample.prompt), len(sample.tokens)
      own = logprobs[p - 1 :][np.arange(n), sample.tokens]
      chex.assert_trees_all_close(sample.logprob, own, atol=2e-5)
      warm = jax.nn.log_softmax(logprobs[p - 1 :] / 1.2, -1)
      chex.assert_trees_all_close(
        sample.sampled_logprob, warm[np.arange(n), sample.tokens], atol=2e-5
      )
      chex.assert_shape(sample.experts, (p + n - 1, 2, 3))
      chex.assert_type(sample.experts, np.int32)
      recorded = (sample.experts[..., None] == np.arange(8)).any(-2)
      np.testing.assert_array_equal(recorded, chosen)
      seen.update(map(tuple, sample.experts.reshape(-1, 3).tolist()))
    self.assertGreater(len(seen), 20)

  def test_is_in_order_and_whole(self):
    samples = _samples()
    self.assertEqual(
      [(s.prompt_number, s.number) for s in samples],
      [(i, j) for i in range(5) for j in range(4)],
    )
    for sample in samples:
      self.assertEqual(sample.prompt.tolist(), _PROMPTS[sample.prompt_number])
      n = len(sample.tokens)
      self.assertEqual(sample.truncated, sample.tokens[-1] != _EOS)
      self.assertNotIn(_EOS, sample.tokens[:-1])
      self.assertTrue(n == 14 or not sample.truncated)
      self.assertEqual(sample.version.tolist(), [7] * n)
      for array, dtype in (
        (sample.prompt, np.int32),
        (sample.tokens, np.int32),
        (sample.version, np.int32),
        (sample.logprob, np.float32),
        (sample.sampled_logprob, np.float32),
      ):
        chex.assert_type(array, dtype)
    self.assertLen({s.truncated for s in samples}, 2)
    self.assertLen({tuple(s.tokens) for s in samples}, len(samples))

  def test_stop_tokens_end_an_answer_too(self):
    how = dataclasses.replace(_WARM, stop_tokens=(8, 9))
    for ours, whole in zip(
      _sample(_roller(), sampling=how), _samples(), strict=True
    ):
      ends = np.isin(whole.tokens, (8, 9))
      n = ends.argmax() + 1 if ends.any() else len(whole.tokens)
      self.assertEqual(ours.tokens.tolist(), whole.tokens[:n].tolist())
      self.assertEqual(ours.truncated, whole.truncated and not ends.any())

  def test_no_experts_unless_asked_for(self):
    roller = _roller(record_experts=False)
    for ours, theirs in zip(_sample(roller), _samples(), strict=True):
      self.assertIsNone(ours.experts)
      self.assertEqual(ours.tokens.tolist(), theirs.tokens.tolist())

  def test_a_prompt_is_read_once_for_its_group(self):
    roller = _roller(slots=4, steps=3)
    _sample(roller, group_size=9)
    # The last token of a prompt is read where answers are drawn.
    read = sum(len(prompt) for prompt in _PROMPTS if len(prompt) > 1)
    self.assertEqual(roller.stats.prompt_tokens, read)


class KeysTest(parameterized.TestCase):
  def _assert_same(self, found, expected):
    for ours, theirs in zip(found, expected, strict=True):
      self.assertEqual(ours.prompt_number, theirs.prompt_number)
      self.assertEqual(ours.tokens.tolist(), theirs.tokens.tolist())
      self.assertEqual(ours.truncated, theirs.truncated)
      np.testing.assert_array_equal(ours.experts, theirs.experts)
      chex.assert_trees_all_close(
        (ours.logprob, ours.sampled_logprob),
        (theirs.logprob, theirs.sampled_logprob),
        atol=1e-5,
      )

  @parameterized.parameters(
    {"slots": 4, "steps": 3},
    {"cache_tokens": 160},  # some are put out and read again
    {"slots": 64, "page_size": 16, "context": 60},
  )
  def test_no_engine_changes_what_is_said(self, **changes):
    self._assert_same(_sample(_roller(**changes)), _samples())

  def test_nor_does_company(self):
    roller = _roller()
    parts = [
      _sample(roller, _PROMPTS[3:], first_prompt=3),
      _sample(roller, _PROMPTS[:3]),
    ]
    self._assert_same([*parts[1], *parts[0]], _samples())
    few = _sample(roller, group_size=2)
    whole = [s for s in _samples() if s.number < 2]
    self._assert_same(few, whole)

  def test_a_resumed_run_says_the_same_to_the_bit(self):
    fresh = _sample(_roller())
    used = _roller()
    _sample(used, _PROMPTS[:2], group_size=9, step=1)
    for other in (fresh, _sample(used)):
      for ours, theirs in zip(other, _samples(), strict=True):
        chex.assert_trees_all_equal(
          dataclasses.asdict(ours), dataclasses.asdict(theirs)
        )

  @parameterized.parameters({"run_seed": 2}, {"step": 3}, {"first_prompt": 5})
  def test_run_step_and_prompt_make_a_difference(self, **changes):
    found = [s.tokens.tolist() for s in _sample(_roller(), **changes)]
    expected = [s.tokens.tolist() for s in _samples()]
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    self.assertLess(same, 3)  # EOS at once, perhaps

  def test_new_weights_and_their_version(self):
    config = tiny.config()
    roller = _roller()
    _sample(roller)
    other = jax.tree.map(lambda x: 1.1 * x, tiny.variables(config))
    roller.load(other, 8)
    found = _sample(roller)
    fresh = _roller()
    fresh.load(other, 8)
    for ours, theirs, old in zip(
      found, _sample(fresh), _samples(), strict=True
    ):
      self.assertEqual(ours.version.tolist(), [8] * len(ours.tokens))
      self.assertEqual(ours.tokens.tolist(), theirs.tokens.tolist())
      self.assertNotEqual(ours.logprob.tolist(), old.logprob.tolist())


class HalfTest(absltest.TestCase):
  def test_parameters_are_kept_in_the_type_of_the_sampler(self):
    config = tiny.config()
    half = dtypes.Dtypes(param="bfloat16", compute="bfloat16")
    roller = rollout.Roller(config, half, decoding=_DECODING, eos=_EOS)
    for version in range(2):
      roller.load(tiny.variables(config), version)
      for sample in _sample(roller)[::5]:
        text = _text(sample)
        logprobs, _ = _forward(text[:-1])
        p, n = len(sample.prompt), len(sample.tokens)
        own = logprobs[p - 1 :][np.arange(n), sample.tokens]
        difference = np.abs(sample.logprob - own).max()
        self.assertBetween(difference, 1e-4, 2.0)


class RefusalTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"prompts": []}, "prompts=.*: expected at least one"),
    ({"prompts": [[]]}, "prompt=.*: expected at least one token"),
    ({"prompts": [[99]]}, "id 99: expected ids from 0 to 28"),
    ({"group_size": 0}, "group_size=0: expected at least 1; raise it"),
    ({"sampling": {"seed": 3}}, "sampling.seed=3: expected 0, a rollout has"),
    ({"sampling": {"stop": ("a",)}}, r"sampling.stop=\('a',\): expected \(\)"),
    ({"sampling": {"top_logprobs": 2}}, "sampling.top_logprobs=2: expected 0"),
    ({"sampling": {"max_new_tokens": 0}}, "max_new_tokens=0: expected at le"),
  )
  def test_what_is_asked(self, changes, message):
    roller = _roller()
    if "sampling" in changes:
      how = dataclasses.replace(_WARM, **changes["sampling"])
      changes = changes | {"sampling": how}
    with self.assertRaisesRegex(ValueError, message):
      _sample(roller, **changes)

  def test_weights_that_are_not_there(self):
    config = tiny.config()
    roller = rollout.Roller(config, decoding=_DECODING)
    with self.assertRaisesRegex(ValueError, "no weights: expected those of"):
      _sample(roller)
    variables = jax.tree.map(lambda x: x + 0.0, tiny.variables(config))
    roller.load(variables, 4)
    _sample(roller)
    jax.jit(lambda x: x + 1, donate_argnums=0)(
      variables["params"]["norm"]["scale"]
    )
    with self.assertRaisesRegex(ValueError, "weights of version 4 were given"):
      _sample(roller)

  def test_experts_of_a_model_without_them(self):
    config = tiny.config(**tiny.VARIANTS["v3_dense"])
    with self.assertRaisesRegex(ValueError, "record_experts=True: expected a"):
      rollout.Roller(config, decoding=_DECODING)


if __name__ == "__main__":
  absltest.main()
