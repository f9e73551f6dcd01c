"""Answers are printed or written in order, whatever comes first."""

import contextlib
import io
import json
import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx.data import vocab
from dsx.inference import answers
from dsx.inference import answers_file
from dsx.inference import engine as engine_lib
from dsx.inference import generation
from dsx.inference import plan as plan_lib
from dsx.inference import prompts_file
from dsx.inference import template
from dsx.inference import uncached
from dsx.models import deepseek
from dsx.parallel import sharding as sharding_lib
from tests.inference import fake_engine
from tests.training import tiny

_BYTE = vocab.ByteVocabulary()
_EOS = _BYTE.special["eos"]
_CLOSE = _BYTE.special["/think"]


def _plan(*texts, asked=None, window=64, **how):
  return plan_lib.make(
    generation.Generation().replace(**how),
    asked or template.Template(),
    [prompts_file.Prompt(text, "p") for text in texts],
    config=tiny.model_config(vocab_size=320, max_position_embeddings=64),
    vocabulary=_BYTE,
    window=window,
  )


def _engine(**more):
  """Answers "a" with "1", "b" with "22", "c" with "333" and so on."""

  def answer(prompt):
    n = next(token for token in prompt if 97 <= token < 123) - 96
    reasons = [*b"hm", _CLOSE] if prompt[-1] == 10 else []
    return [*reasons, *str(n).encode() * n, _EOS]

  return fake_engine.FakeEngine(answer, eos=_EOS, **more)


class _Pipe(io.TextIOWrapper):
  def __init__(self, raw=b""):
    super().__init__(io.BytesIO(raw), encoding="utf-8", write_through=True)

  @property
  def text(self):
    return self.buffer.getvalue().decode()


def _generate(plan, engine, *, stdin=b"", **more):
  """What is printed on standard output, and on standard error."""
  out, err = _Pipe(), _Pipe()
  with contextlib.ExitStack() as stack:
    stack.enter_context(mock.patch.object(sys, "stdin", _Pipe(stdin)))
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(err))
    answers.generate(plan, engine, _BYTE, **more)
    return out.text, err.text


class PrintedTest(parameterized.TestCase):
  def test_one_follows_its_prompt(self):
    out, err = _generate(_plan("c"), _engine())
    self.assertEqual(out, "c333\n")
    self.assertStartsWith(err, "4 tokens, the model ended the text, ")
    self.assertEndsWith(err, " tokens/s, 6 of 8 drafts accepted (75%)\n")

  def test_it_streams(self):
    """Each piece is out before the next is drawn."""
    engine, out, seen = _engine(chunk=1), _Pipe(), []
    step = engine.step

    def watched():
      seen.append(out.text)
      return step()

    engine.step = watched
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(_Pipe()):
      answers.generate(_plan("c"), engine, _BYTE)
    self.assertEqual(seen, ["c", "c3", "c33", "c333"])

  def test_many_come_in_order(self):
    out, err = _generate(_plan("d", "a", "c"), _engine(slots=3))
    self.assertEqual(
      out,
      "=== prompt 1 of 3 ===\nd4444\n=== prompt 2 of 3 ===\na1\n"
      "=== prompt 3 of 3 ===\nc333\n",
    )
    self.assertIn("11 tokens in 3 texts (3: the model ended the text)", err)

  def test_several_samples(self):
    out, _ = _generate(_plan("b", samples=2), _engine())
    self.assertEqual(
      out,
      "=== prompt 1 of 1, sample 1 of 2 ===\nb22\n"
      "=== prompt 1 of 1, sample 2 of 2 ===\nb22\n",
    )

  @parameterized.parameters(
    (True, "<think>\nhm\n</think>\n\n22\n"), (False, "22\n")
  )
  def test_a_chat_prompt(self, shows, expected):
    chat = template.Template(chat=True)
    out, _ = _generate(_plan("b", asked=chat), _engine(), shows=shows)
    self.assertEqual(out, expected)
    out, _ = _generate(_plan("b", "a", asked=chat), _engine(), shows=shows)
    self.assertStartsWith(out, f"=== prompt 1 of 2 ===\nb\n\n{expected}")

  def test_a_chat_over_a_pipe(self):
    plan = _plan(asked=template.Template(chat=True))
    out, err = _generate(
      plan, _engine(), stdin=b"c\n\xff\n/reset\nb\n/quit\na\n", shows=False
    )
    self.assertEqual(out, "333\n22\n")
    self.assertIn("character 0 is a lone surrogate", err)
    self.assertIn("forgotten\n", err)
    self.assertIn("13 tokens in 2 texts", err)

  def test_a_screen_without_the_characters(self):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(_Pipe()):
      answers.generate(_plan("é b"), _engine(), _BYTE)
    self.assertEqual(out.buffer.getvalue(), b"? b22\n")


class WrittenTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "out.jsonl"

  def written(self, plan, engine):
    with answers_file.Writer(self.path) as writer:
      out, _ = _generate(plan, engine, writer=writer)
    self.assertEqual(out, "")
    return [json.loads(line) for line in self.path.read_text().splitlines()]

  def test_lines_in_order_with_all_fields(self):
    found = self.written(_plan("d", "a", stop=("44",)), _engine(slots=2))
    self.assertEqual(
      found,
      [
        {
          "prompt": "d",
          "sample": 0,
          "text": "",
          "token_ids": [52, 52],
          "logprobs": [-5.2, -5.2],
          "finish_reason": "stop",
        },
        {
          "prompt": "a",
          "sample": 0,
          "text": "1",
          "token_ids": [49, _EOS],
          "logprobs": [-4.9, -_EOS / 10],
          "finish_reason": "stop",
        },
      ],
    )

  def test_samples_and_reasoning(self):
    chat = template.Template(chat=True)
    plan = _plan("c", "a", asked=chat, samples=2, max_new_tokens=5)
    found = self.written(plan, _engine())
    self.assertEqual(
      [(f["prompt"], f["sample"], f["reasoning"], f["text"]) for f in found],
      [
        ("c", 0, "hm", "33"),
        ("c", 1, "hm", "33"),
        ("a", 0, "hm", "1"),
        ("a", 1, "hm", "1"),
      ],
    )
    reasons = [f["finish_reason"] for f in found]
    self.assertEqual(reasons, ["length", "length", "stop", "stop"])


class ModelTest(parameterized.TestCase):
  """With a model and the engine, not with what stands for them."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = tiny.model_config(
      vocab_size=320,
      max_position_embeddings=64,
      num_hidden_layers=1,
      first_k_dense_replace=0,
    )
    cls.model = deepseek.DeepSeek(cls.config)
    init = jax.jit(cls.model.init)(jax.random.key(1), tiny.tokens(1, 8))
    cls.variables = sharding_lib.unbox(init)
    # Larger weights make it less indifferent.
    cls.variables["params"] = jax.tree.map(
      lambda p: p * np.float32(4), cls.variables["params"]
    )

  def records(self, *texts, **how):
    path = pathlib.Path(self.create_tempdir().full_path) / "out.jsonl"
    plan = _plan(*texts, **how)
    engine = engine_lib.Engine(
      self.config,
      self.variables,
      decoding=plan.how.decoding,
      eos=_EOS,
      vocab_size=_BYTE.size,
    )
    with answers_file.Writer(path) as writer:
      _generate(plan, engine, writer=writer)
    return [json.loads(line) for line in path.read_text().splitlines()]

  def test_greedy_is_what_the_slow_way_says(self):
    texts = ("def f(", "a", "import numpy as np")
    found = self.records(*texts, temperature=0.0, max_new_tokens=20, slots=2)
    for text, record in zip(texts, found, strict=True):
      expected = uncached.generate(
        self.model,
        self.variables,
        [_BYTE.special["bos"], *text.encode()],
        n_tokens=20,
        window=64,
        temperature=0.0,
        stop=_EOS,
        vocab_size=_BYTE.size,
      )
      self.assertEqual(record["token_ids"], expected)
      self.assertEqual(record["text"], _BYTE.decode(expected))

  def test_logprobs_are_the_models(self):
    (found,) = self.records("abc", temperature=1.5, max_new_tokens=5)
    tokens = [_BYTE.special["bos"], *b"abc", *found["token_ids"]]
    logits, _ = self.model.apply(self.variables, np.array([tokens], np.int32))
    logprobs = np.asarray(jax.nn.log_softmax(logits[0]))
    expected = [logprobs[3 + i, t] for i, t in enumerate(found["token_ids"])]
    np.testing.assert_allclose(found["logprobs"], expected, atol=1e-4)

  def test_the_same_text_whatever_is_decoded_beside_it(self):
    how = {"temperature": 1.0, "max_new_tokens": 12, "seed": 9}
    many = self.records("one", "two", "three", "four", samples=2, **how)
    few = self.records("one", "two", slots=1, **how)
    for i, record in enumerate(few):
      logprobs = many[2 * i].pop("logprobs")
      np.testing.assert_allclose(record.pop("logprobs"), logprobs, atol=1e-4)
      self.assertEqual(record, many[2 * i])
    self.assertLen({tuple(record["token_ids"]) for record in many}, 8)
    again = self.records("one", "two", **how | {"seed": 10})
    self.assertNotEqual(again[0]["token_ids"], few[0]["token_ids"])


if __name__ == "__main__":
  absltest.main()
