"""The engine against the slow oracle, under everything that disturbs it."""

import collections
import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.inference import decoding as decoding_lib
from dsx.inference import engine as engine_lib
from dsx.inference import request as request_lib
from dsx.inference import sampling
from dsx.inference import uncached
from dsx.models import decoder
from dsx.models import deepseek
from dsx.models import layout
from dsx.ops import block_scaled
from tests.models import tiny

_LENGTHS = (1, 2, 5, 9, 4, 20, 3, 8)


def _prompts(lengths=_LENGTHS):
  rng = np.random.default_rng(0)
  return [tuple(rng.integers(0, tiny.VOCAB, n).tolist()) for n in lengths]


def _engine(config=None, variables=None, **options):
  config = config or tiny.config()
  fields = {"slots": 3, "page_size": 4, "steps": 4}
  made = {k: options.pop(k) for k in list(options) if k in _MADE}
  return engine_lib.Engine(
    config,
    tiny.variables(config) if variables is None else variables,
    decoding=decoding_lib.Decoding(**(fields | options)),
    **made,
  )


_MADE = ("eos", "vocab_size")


def _ask(engine, prompts, **how):
  """Updates merged per prompt: (Drawn tokens, finish, scored prompt)."""
  score = how.pop("score_prompt", False)
  fields = {"max_new_tokens": 17, "temperature": 0.0} | how
  numbers = [
    engine.submit(
      request_lib.Request(
        prompt=prompt,
        sampling=sampling.Sampling(**fields),
        score_prompt=score,
      )
    )
    for prompt in prompts
  ]
  drawn, finish, scored = collections.defaultdict(list), {}, {}
  while engine.busy:
    for update in engine.step():
      assert update.request not in finish, "news of what has ended"
      drawn[update.request] += update.drawn
      if update.prompt is not None:
        scored[update.request] = update.prompt
      if update.finish:
        finish[update.request] = update.finish
  return [(drawn[n], finish[n], scored.get(n)) for n in numbers]


def _tokens(answers):
  return [[d.token for d in drawn] for drawn, _, _ in answers]


@functools.cache
def _oracle(config, n=17, stop=None, vocab_size=None, lengths=_LENGTHS):
  return [
    uncached.generate(
      deepseek.DeepSeek(config),
      tiny.variables(config),
      list(prompt),
      n_tokens=n,
      window=64,
      temperature=0.0,
      stop=stop,
      vocab_size=vocab_size,
    )
    for prompt in _prompts(lengths)
  ]


class GreedyTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("plain", {}, {}),
    ("v2", tiny.V2, {}),
    ("yarn", tiny.VARIANTS["v3_yarn"], {}),
    ("no_query_rank", tiny.VARIANTS["v3_no_query_rank"], {}),
    ("drafts", {}, {"drafts": 1}),
    ("drafts_before_the_norm", {"mtp_hidden": "pre_norm"}, {"drafts": 1}),
    ("two_drafts", {"num_nextn_predict_layers": 2}, {"drafts": 2}),
    ("one_slot", {}, {"slots": 1}),
    ("one_step", {}, {"steps": 1, "drafts": 1}),
    ("large_pages", {}, {"page_size": 64}),
    ("little_room", {}, {"cache_tokens": 40, "drafts": 1}),
  )
  def test_says_what_the_oracle_says(self, changes, options):
    config = tiny.config(**changes)
    engine = _engine(config, **options)
    answers = _ask(engine, _prompts())
    self.assertEqual(_tokens(answers), _oracle(config))
    self.assertEqual({finish for _, finish, _ in answers}, {"length"})
    stats = engine.stats
    self.assertEqual(stats.drawn_tokens, 17 * len(_LENGTHS))
    self.assertEqual(
      (stats.running, stats.waiting, stats.cached_tokens), (0,) * 3
    )

  def test_contexts_grow_through_several_programs(self):
    config = tiny.config(max_position_embeddings=600)
    prompts = _prompts((3, 70, 120, 250))
    expected = [
      uncached.generate(
        deepseek.DeepSeek(config),
        tiny.variables(config),
        list(prompt),
        n_tokens=20,
        window=512,
        temperature=0.0,
      )
      for prompt in prompts
    ]
    engine = _engine(config, page_size=16, steps=8)
    answers = _ask(engine, prompts, max_new_tokens=20)
    self.assertEqual(_tokens(answers), expected)

  def test_little_room_makes_the_youngest_wait(self):
    engine = _engine(cache_tokens=40)
    _ask(engine, _prompts())
    self.assertGreater(engine.stats.prompt_tokens, sum(_LENGTHS))

  def test_requests_may_come_at_any_time(self):
    engine, found = _engine(), collections.defaultdict(list)
    waiting, numbers = _prompts(), []
    how = sampling.Sampling(max_new_tokens=17, temperature=0.0)
    while waiting or engine.busy:
      if waiting:
        request = request_lib.Request(prompt=waiting.pop(0), sampling=how)
        numbers.append(engine.submit(request))
      for update in engine.step():
        found[update.request] += [d.token for d in update.drawn]
    self.assertEqual([found[n] for n in numbers], _oracle(tiny.config()))

  def test_stop_tokens_end_a_text(self):
    config = tiny.config()
    whole = _oracle(config)
    stop = whole[1][5]
    for options in ({"drafts": 0}, {"drafts": 1}):
      for stops in ({"stop_tokens": (stop,)}, {}):
        eos = None if stops else stop
        engine = _engine(config, eos=eos, **options)
        answers = _ask(engine, _prompts(), **stops)
        self.assertEqual(_tokens(answers), _oracle(config, stop=stop))
        for (drawn, finish, _), text in zip(answers, whole, strict=True):
          ended = "stop" if stop in text else "length"
          self.assertEqual(finish, ended)
          self.assertEqual(stop in [d.token for d in drawn], ended == "stop")

  def test_eos_may_be_ignored(self):
    whole = _oracle(tiny.config())
    engine = _engine(eos=whole[1][5])
    answers = _ask(engine, _prompts(), ignore_eos=True)
    self.assertEqual(_tokens(answers), whole)

  def test_padding_of_the_vocabulary_is_never_drawn(self):
    prompts = [tuple(t % 7 for t in p) for p in _prompts()]
    engine = _engine(vocab_size=7, drafts=1)
    answers = _ask(engine, prompts, temperature=5.0, top_logprobs=5)
    for drawn, _, _ in answers:
      self.assertLess(max(d.token for d in drawn), 7)
      self.assertLess(max(t for d in drawn for t, _ in d.top), 7)

  def test_the_context_ends_a_text(self):
    engine = _engine(context=12)
    prompts = _prompts((11, 3))
    answers = _ask(engine, prompts, max_new_tokens=50)
    self.assertEqual([len(d) for d, _, _ in answers], [1, 9])
    self.assertEqual([f for _, f, _ in answers], ["length"] * 2)
    self.assertEqual(engine.context, 12)

  def test_equal_prompts_are_read_once(self):
    engine = _engine(slots=4)
    prompt = _prompts((10,))[0]
    answers = _ask(engine, [prompt] * 4)
    expected = _oracle(tiny.config(), lengths=(10,))[0]
    self.assertEqual(_tokens(answers), [expected] * 4)
    self.assertEqual(engine.stats.prompt_tokens, 10)

  def test_equal_prompts_share_pages_while_samples_differ(self):
    engine = _engine(slots=4, drafts=1)
    prompt = _prompts((10,))[0]
    how = [
      sampling.Sampling(max_new_tokens=9, temperature=1.5, seed=i)
      for i in range(4)
    ]
    numbers = [
      engine.submit(request_lib.Request(prompt=prompt, sampling=h)) for h in how
    ]
    together = collections.defaultdict(list)
    while engine.busy:
      for update in engine.step():
        together[update.request] += [d.token for d in update.drawn]
    for number, h in zip(numbers, how, strict=True):
      fields = {"max_new_tokens": 9, "temperature": 1.5, "seed": h.seed}
      alone = _tokens(_ask(_engine(drafts=1), [prompt], **fields))[0]
      self.assertEqual(together[number], alone)
    self.assertLen({tuple(t) for t in together.values()}, 4)

  def test_cancelled_requests_are_not_heard_of(self):
    engine, prompts = _engine(slots=2), _prompts((3, 4, 5))
    how = sampling.Sampling(max_new_tokens=30, temperature=0.0)
    numbers = [
      engine.submit(request_lib.Request(prompt=p, sampling=how))
      for p in prompts
    ]
    engine.step()
    for number in (numbers[0], numbers[2], 99):
      engine.cancel(number)
    heard = set()
    while engine.busy:
      heard |= {update.request for update in engine.step()}
    self.assertEqual(heard, {numbers[1]})
    engine.cancel(numbers[1])
    self.assertEqual(engine.stats.cached_tokens, 0)

  def test_fp8_weights_are_what_they_stand_for(self):
    config = tiny.config()

    def quantised(path, x):
      name = jax.tree_util.keystr(path)
      kept = "gate'" in name and "proj" not in name or "lm_head" in name
      if x.ndim < 2 or kept or not name.endswith(("kernel']", "_proj']")):
        return x
      return block_scaled.quantise(x)

    def is_fp8(x):
      return isinstance(x, block_scaled.BlockScaled)

    plain = tiny.variables(config)
    fp8 = jax.tree_util.tree_map_with_path(quantised, plain)
    wide = jax.tree.map(
      lambda x: x.dequantise(jnp.float32) if is_fp8(x) else x,
      fp8,
      is_leaf=is_fp8,
    )
    self.assertGreater(
      sum(map(is_fp8, jax.tree.leaves(fp8, is_leaf=is_fp8))), 20
    )
    found = _tokens(_ask(_engine(variables=fp8, drafts=1), _prompts()))
    expected = _tokens(_ask(_engine(variables=wide, drafts=1), _prompts()))
    self.assertEqual(found, expected)
    self.assertNotEqual(found, _oracle(config))


class ScoresTest(parameterized.TestCase):
  """Log-probabilities against the forward pass over the whole text."""

  @parameterized.parameters({"drafts": 0}, {"drafts": 1})
  def test_of_prompts_and_of_what_is_drawn(self, drafts):
    config = tiny.config()
    prompts = _prompts((1, 6, 13))
    engine = _engine(config, drafts=drafts)
    answers = _ask(
      engine, prompts, temperature=0.8, top_logprobs=3, score_prompt=True
    )
    for prompt, (drawn, _, scored) in zip(prompts, answers, strict=True):
      self.assertIsNone(scored[0])
      self.assertLen(scored, len(prompt))
      text = [*prompt, *(d.token for d in drawn)]
      logits, _ = tiny.apply(config)(
        tiny.variables(config), jnp.asarray(text)[None, :]
      )
      logprobs = np.asarray(jax.nn.log_softmax(logits[0], -1))
      warm = np.asarray(jax.nn.log_softmax(logits[0] / 0.8, -1))
      for place, found in enumerate([*scored[1:], *drawn]):
        token = text[place + 1]
        self.assertEqual(found.token, token)
        self.assertAlmostEqual(
          found.logprob, logprobs[place, token], delta=1e-4
        )
        best = np.argsort(-logprobs[place])[:3]
        self.assertEqual([t for t, _ in found.top], best.tolist())
        chex.assert_trees_all_close(
          np.array([x for _, x in found.top]), logprobs[place, best], atol=1e-4
        )
        if place >= len(prompt) - 1:
          self.assertAlmostEqual(
            found.sampled_logprob, warm[place, token], delta=2e-4
          )

  def test_a_prompt_may_be_scored_and_no_more(self):
    engine = _engine()
    answers = _ask(
      engine, _prompts((1, 7, 7)), max_new_tokens=0, score_prompt=True
    )
    for drawn, finish, scored in answers:
      self.assertEqual((drawn, finish), ([], "length"))
      self.assertIsNone(scored[0])
    self.assertEqual(engine.stats.cached_tokens, 0)


class ExpertsTest(parameterized.TestCase):
  """Chosen experts against a forward pass over the whole text."""

  def test_of_prompts_and_of_what_is_drawn(self):
    config, prompts = tiny.config(), _prompts((1, 6, 6, 13))
    # Little room: one text is put out and read again.
    engine = _engine(config, drafts=1, record_experts=True, cache_tokens=56)
    texts = {
      engine.submit(
        request_lib.Request(
          prompt=prompt,
          sampling=sampling.Sampling(max_new_tokens=new, temperature=0.9),
          score_prompt=prompt is prompts[1],
        )
      ): (list(prompt), [])
      for prompt, new in zip(prompts, (12, 0, 9, 17), strict=True)
    }
    while engine.busy:
      for update in engine.step():
        tokens, experts = texts[update.request]
        tokens += [drawn.token for drawn in update.drawn]
        experts.append(update.experts)
    model = decoder.Decoder(config)
    variables = layout.to_layers(config, tiny.variables(config))
    tokens = np.zeros((len(prompts), 32), np.int32)
    for row, (text, _) in enumerate(texts.values()):
      tokens[row, : len(text)] = text
    _, expected = decoder.apply(
      model,
      variables,
      *(tokens, tokens, np.ones(tokens.shape, bool)),
      method="prefill",
      records=True,
    )
    self.assertEqual(expected.dtype, jnp.uint8)
    for row, (text, parts) in enumerate(texts.values()):
      read = len(text) - 1
      found = np.concatenate(parts)
      self.assertEqual(found.shape, (read, 2, 3))
      np.testing.assert_array_equal(
        np.sort(found), np.sort(expected[row, :read])
      )

  def test_cost_nothing_where_they_are_not_asked_for(self):
    engine = _engine()
    engine.submit(request_lib.Request(prompt=(1, 2)))
    self.assertIsNone(engine.step()[0].experts)


class DrawsTest(parameterized.TestCase):
  def test_do_not_depend_on_company_or_interruption(self):
    prompts = _prompts()
    how = {"temperature": 1.3, "top_p": 0.9, "seed": 5}
    alone = [_tokens(_ask(_engine(), [p], **how))[0] for p in prompts]
    self.assertEqual(_tokens(_ask(_engine(), prompts, **how)), alone)
    little = _engine(cache_tokens=40, slots=4, steps=3)
    self.assertEqual(_tokens(_ask(little, prompts, **how)), alone)

  def test_seeds_make_a_difference(self):
    prompt = _prompts((4,))[0]
    found = {
      tuple(_tokens(_ask(_engine(), [prompt], temperature=1.0, seed=s))[0])
      for s in (0, 1, 2**33)
    }
    self.assertLen(found, 3)

  @parameterized.parameters(
    {"temperature": 1.0}, {"temperature": 0.7, "top_k": 6}, {"top_p": 0.8}
  )
  def test_speculation_keeps_the_distribution(self, **how):
    """The second token's, whose draft is the module's own, in 3000 texts."""
    n, prompt = 3000, _prompts((3,))[0]
    how = {"temperature": 1.0} | how
    shares = {}
    for drafts in (0, 1):
      engine = _engine(slots=256, steps=3, context=16, drafts=drafts)
      numbers = [
        engine.submit(
          request_lib.Request(
            prompt=prompt,
            sampling=sampling.Sampling(
              max_new_tokens=3, seed=seed + 10_000 * drafts, **how
            ),
          )
        )
        for seed in range(n)
      ]
      drawn = collections.defaultdict(list)
      while engine.busy:
        for update in engine.step():
          drawn[update.request] += [d.token for d in update.drawn]
      counts = np.zeros((3, tiny.VOCAB))
      for number in numbers:
        for place, token in enumerate(drawn[number]):
          counts[place, token] += 1
      shares[drafts] = counts / n
      if drafts:
        self.assertGreater(engine.stats.accepted, n // 50)
    # Five standard deviations of the difference of two shares.
    p = shares[0].clip(1 / n, 1)
    error = 5 * np.sqrt(2 * p * (1 - p) / n)
    np.testing.assert_array_less(np.abs(shares[1] - shares[0]), error)


class RefusalTest(parameterized.TestCase):
  @parameterized.parameters(
    ((), {}, "expected at least one token"),
    ((1, 99), {}, "id 99: expected ids from 0 to 28"),
    (tuple(range(16)), {}, "16 tokens: expected fewer than the context of 16"),
    ((1,), {"max_new_tokens": 0}, "max_new_tokens=0: expected at least 1"),
  )
  def test_requests_that_cannot_be_answered(self, prompt, how, message):
    engine = _engine(context=16)
    with self.assertRaisesRegex(ValueError, message):
      engine.submit(
        request_lib.Request(prompt=prompt, sampling=sampling.Sampling(**how))
      )
    self.assertFalse(engine.busy)

  def test_a_request_that_the_cache_cannot_hold(self):
    engine = _engine(cache_tokens=8)
    with self.assertRaisesRegex(ValueError, "at most cache_tokens=8 together"):
      _ask(engine, [(1, 2, 3)], max_new_tokens=20)

  @parameterized.parameters(
    ({"drafts": 2}, "drafts=2: expected at most 1, one for each MTP"),
    ({"context": 65}, "at most max_position_embeddings=64"),
    ({"slots": 0}, "slots=0: expected at least 1"),
    ({"context": 1}, "context=1: expected at least 2"),
  )
  def test_options_that_do_not_fit(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      _engine(**options)


if __name__ == "__main__":
  absltest.main()
