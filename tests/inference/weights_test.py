"""New weights in a live engine: no program, no needless copy, no surprise."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.inference import decoding
from dsx.inference import engine as engine_lib
from dsx.inference import request
from dsx.inference import sampling
from dsx.inference import weights
from dsx.models import decoder
from dsx.models import layout
from tests.models import tiny

_COMPILED = "/jax/core/compile/backend_compile_duration"
_EVENTS: collections.Counter[str] = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(
  lambda event, _, **__: _EVENTS.update([event])
)


def _other(config):
  """Other weights, in arrays of their own."""
  return jax.tree.map(lambda x: 1.1 * x, tiny.variables(config))


def _engine(variables, **options):
  return engine_lib.Engine(
    tiny.config(),
    variables,
    decoding=decoding.Decoding(slots=2, page_size=4, steps=4, **options),
  )


def _answers(engine):
  """Greedy tokens and log-probabilities of two prompts."""
  how = sampling.Sampling(max_new_tokens=9, temperature=0.0)
  for prompt in ((1, 2, 3, 4, 5), (6,)):
    engine.submit(request.Request(prompt=prompt, sampling=how))
  found = collections.defaultdict(list)
  while engine.busy:
    for record in engine.advance():
      found[record.request % 2] += [record.tokens, record.logprob]
  return {n: np.concatenate(parts).tolist() for n, parts in found.items()}


class LoadTest(parameterized.TestCase):
  @parameterized.product(drafts=(0, 1), by_layers=(False, True))
  def test_says_what_a_new_engine_says_and_compiles_nothing(
    self, drafts, by_layers
  ):
    config = tiny.config()
    first, second = tiny.variables(config), _other(config)
    if by_layers:
      first, second = (layout.to_layers(config, v) for v in (first, second))
    engine = _engine(first, drafts=drafts)
    before = _answers(engine)
    engine.load(second)  # compiles a cast or a slice, if anything
    expected = _answers(_engine(second, drafts=drafts))
    compiled = _EVENTS[_COMPILED]
    engine.load(second)
    self.assertEqual(_answers(engine), expected)
    engine.load(first)
    self.assertEqual(_answers(engine), before)
    self.assertEqual(_EVENTS[_COMPILED], compiled)
    self.assertNotEqual(before, expected)
    self.assertGreater(compiled, 0)  # the counter counts

  def test_copies_what_needs_another_layout_and_no_more(self):
    config = tiny.config()
    variables = _other(config)
    held = weights.Weights(decoder.Decoder(config, n_mtp=1), variables)
    for _ in range(2):
      params = held.arrays["params"]
      for name in ("embed_tokens", "norm", "lm_head", "mtp_0"):
        for ours, theirs in zip(
          jax.tree.leaves(params[name]),
          jax.tree.leaves(variables["params"][name]),
          strict=True,
        ):
          self.assertEqual(
            ours.unsafe_buffer_pointer(), theirs.unsafe_buffer_pointer()
          )
      variables = _other(config)
      held.load(variables)

  def test_numbers_take_the_type_that_was_there(self):
    config = tiny.config()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _other(config))
    held = weights.Weights(decoder.Decoder(config), half)
    types = jax.tree.map(lambda x: x.dtype, held.arrays)
    held.load(_other(config))
    chex.assert_trees_all_equal(
      jax.tree.map(lambda x: x.dtype, held.arrays), types
    )
    expected = weights.Weights(decoder.Decoder(config), half)
    kernel = "params/layers_1/mlp/experts/up_proj".split("/")
    ours, theirs = held.arrays, expected.arrays
    for name in kernel:
      ours, theirs = ours[name], theirs[name]
    chex.assert_trees_all_equal(ours, theirs)

  def test_says_whether_they_were_given_away(self):
    config = tiny.config()
    variables = _other(config)
    held = weights.Weights(decoder.Decoder(config), variables)
    self.assertFalse(held.deleted)
    jax.jit(lambda x: x + 1, donate_argnums=0)(
      variables["params"]["norm"]["scale"]
    )
    self.assertTrue(held.deleted)


class RefusalTest(parameterized.TestCase):
  def test_while_there_are_requests(self):
    variables = tiny.variables(tiny.config())
    engine = _engine(variables)
    number = engine.submit(request.Request(prompt=(1, 2)))
    with self.assertRaisesRegex(ValueError, "load: 1 unfinished requests: exp"):
      engine.load(variables)
    engine.cancel(number)
    engine.load(variables)

  def test_of_another_model(self):
    config = tiny.config()
    variables = tiny.variables(config)
    engine = _engine(variables)
    before = _answers(engine)

    def changed(**params):
      return {**variables, "params": {**variables["params"], **params}}

    without = dict(variables["params"])
    del without["norm"]
    for wrong, message in (
      (
        changed(norm={"scale": jnp.ones(13)}),
        r"variables\['params'\]\['norm'\]\['scale'\]: float32\[13\], expected "
        r"float32\[12\] as the engine was made with; give",
      ),
      (changed(further={"scale": jnp.ones(1)}), "further'.*: unknown, exp"),
      ({**variables, "params": without}, "norm'.*: missing, expected the nam"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        engine.load(wrong)
    self.assertEqual(_answers(engine), before)


if __name__ == "__main__":
  absltest.main()
