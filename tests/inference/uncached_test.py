"""Plain sampling says what the model says, token by token."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx.inference import uncached
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from tests.training import tiny

_PROMPT = [3, 1, 4, 1, 5]
_TOKENS = 12


def setUpModule():
  """One model for all tests; larger weights make it less indifferent."""
  global _model, _variables, _apply
  config = tiny.model_config(num_hidden_layers=1, first_k_dense_replace=0)
  _model = deepseek.DeepSeek(config)
  init = jax.jit(_model.init)(jax.random.key(1), tiny.tokens(1, 8))
  _variables = sharding_lib.unbox(init)
  _variables["params"] = jax.tree.map(
    lambda p: p * np.float32(4), _variables["params"]
  )
  _apply = jax.jit(_model.apply)


def _generate(prompt=_PROMPT, *, window=64, n_tokens=_TOKENS, **more):
  return uncached.generate(
    _model, _variables, prompt, n_tokens=n_tokens, window=window, **more
  )


def _greedy(prompt, n_tokens, window):
  """Brute force: the model on exactly the tokens of the window."""
  tokens = list(prompt)
  for _ in range(n_tokens):
    seen = np.array([tokens[-window:]], np.int32)
    logits, _ = _apply(_variables, seen)
    tokens.append(int(np.argmax(logits[0, -1])))
  return tokens[len(prompt) :]


class GenerateTest(parameterized.TestCase):
  @parameterized.parameters(
    (5, 64, 3),  # never full
    (5, 7, _TOKENS),  # slides
    (9, 4, _TOKENS),  # has to forget of the prompt
    (1, 1, _TOKENS),  # nothing but the latest token
  )
  def test_greedy_is_brute_force(self, prompt_length, window, n_tokens):
    prompt = (_PROMPT * 2)[:prompt_length]
    found = _generate(prompt, window=window, n_tokens=n_tokens, temperature=0.0)
    self.assertEqual(found, _greedy(prompt, n_tokens, window))

  def test_greedy_ignores_the_key(self):
    first = _generate(temperature=0.0, key=jax.random.key(1))
    second = _generate(temperature=0.0, key=jax.random.key(2))
    self.assertEqual(first, second)
    self.assertGreater(len(set(first)), 1)

  def test_the_key_decides(self):
    first = _generate(key=jax.random.key(1))
    self.assertEqual(_generate(key=jax.random.key(1)), first)
    self.assertNotEqual(_generate(key=jax.random.key(2)), first)
    # A longer text begins as the shorter one.
    longer = _generate(key=jax.random.key(1), n_tokens=_TOKENS + 8)
    self.assertEqual(longer[:_TOKENS], first)

  def test_the_temperature_decides(self):
    key = jax.random.key(3)
    best = _generate(temperature=0.0)
    self.assertEqual(_generate(temperature=1e-4, key=key), best)
    self.assertNotEqual(_generate(temperature=5.0, key=key), best)

  def test_first_tokens_follow_the_model(self):
    logits, _ = _apply(_variables, np.array([_PROMPT], np.int32))
    expected = np.asarray(jax.nn.softmax(logits[0, -1]))
    draws = 300
    drawn = [
      _generate(n_tokens=1, key=jax.random.key(seed))[0]
      for seed in range(draws)
    ]
    # Ten bins of about equal probability.
    order = np.argsort(expected)
    bins = np.minimum(np.cumsum(expected[order]) * 10, 9.999).astype(int)
    of_token = np.zeros(64, int)
    of_token[order] = bins
    counts = np.bincount(of_token[drawn], minlength=10)
    wanted = draws * np.bincount(of_token, expected, minlength=10)
    used = wanted > 1e-3
    statistic = ((counts - wanted)[used] ** 2 / wanted[used]).sum()
    # Chi-square of 9 degrees of freedom, exceeded once in 100,000 times.
    self.assertLess(statistic, 40.5)

  def test_stops_after_the_stop_token(self):
    whole = _generate(temperature=0.0)
    stop = whole[4]
    found = _generate(temperature=0.0, stop=stop)
    self.assertEqual(found, whole[: whole.index(stop) + 1])
    unused = next(i for i in range(64) if i not in whole)
    self.assertEqual(_generate(temperature=0.0, stop=unused), whole)

  def test_padding_rows_are_never_drawn(self):
    found = _generate(n_tokens=40, vocab_size=3, temperature=5.0)
    self.assertEqual(set(found), {0, 1, 2})

  def test_on_a_mesh_that_no_window_divides_over(self):
    expected = _generate(temperature=0.0)
    mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:6])
    sharding = sharding_lib.Sharding(strategy="replicated")
    with sharding_lib.use(mesh, sharding):
      self.assertEqual(_generate(temperature=0.0), expected)

  @parameterized.parameters(
    ({"prompt": []}, "prompt=.*at least one token; start with BOS"),
    ({"n_tokens": 0}, "n_tokens=0: expected at least 1"),
    ({"window": 0}, "window=0: expected at least 1"),
    ({"temperature": -0.1}, "temperature=-0.1: expected a finite number"),
    ({"temperature": float("nan")}, "temperature=nan: expected"),
  )
  def test_bad_input(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      _generate(**arguments)


if __name__ == "__main__":
  absltest.main()
