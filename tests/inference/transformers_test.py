"""Greedy texts of transformers' checkpoints, token for token.

64 tokens after 8 prompts of unequal length: dsx decodes them in one batch over
its cache, transformers one after the other. Checkpoints are those of the
golden and the conversion tests, made by transformers and by torch.
"""

import functools
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import torch

from dsx.convert import deepseek as convert
from dsx.inference import decoding as decoding_lib
from dsx.inference import engine as engine_lib
from dsx.inference import request as request_lib
from dsx.inference import sampling
from tests.convert import transformers_test as conversion
from tests.models import golden_test as golden

_TOKENS = 64
_LENGTHS = (1, 2, 3, 7, 16, 21, 33, 50)
_V3, _V2 = 6, 1


def _prompts(seed: int):
  rng = np.random.default_rng(seed)
  return [tuple(rng.integers(0, golden.VOCAB, n).tolist()) for n in _LENGTHS]


def _theirs(model, prompts):
  model.generation_config.eos_token_id = None
  texts = []
  for prompt in prompts:
    whole = model.generate(
      torch.tensor([prompt]),
      # Left to itself, it takes some of the prompt for padding.
      attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
      max_new_tokens=_TOKENS,
      do_sample=False,
    )
    texts.append(whole[0, len(prompt) :].tolist())
  return texts


def _ours(folder, prompts, drafts: int = 0, **options):
  """Texts, and the engine's counts."""
  config, variables = convert.load(folder, layout="layers", **options)
  engine = engine_lib.Engine(
    config,
    variables,
    decoding=decoding_lib.Decoding(slots=len(prompts), drafts=drafts),
  )
  how = sampling.Sampling(max_new_tokens=_TOKENS, temperature=0.0)
  numbers = [
    engine.submit(request_lib.Request(prompt=p, sampling=how)) for p in prompts
  ]
  texts = {number: [] for number in numbers}
  while engine.busy:
    for update in engine.step():
      texts[update.request] += [drawn.token for drawn in update.drawn]
  return [texts[number] for number in numbers], engine.stats


class GreedyTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    torch.set_num_threads(2)

  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.root = pathlib.Path(temporary.name)

  def _varied(self, texts):
    # Or else a model that repeats one token would pass.
    self.assertGreater(np.mean([len(set(text)) for text in texts]), 8)

  @parameterized.parameters(0, 1, 2, 3)
  def test_float32(self, case):
    model = golden._make(case)
    model.save_pretrained(self.root)
    prompts = _prompts(case)
    expected = _theirs(model, prompts)
    self._varied(expected)
    found, _ = _ours(self.root, prompts)
    self.assertEqual(found, expected)

  @functools.cached_property
  def _checkpoints(self):
    made = conversion.TransformersTest()
    made.root = self.root
    return made

  def test_v3_with_drafts_of_its_mtp_module(self):
    model, _ = self._checkpoints._model(_V3)
    prompts = _prompts(0)
    expected = _theirs(model, prompts)
    self._varied(expected)
    found, stats = _ours(self.root / "bf16", prompts, drafts=1)
    self.assertEqual(found, expected)
    self.assertGreater(stats.drafted, 8 * _TOKENS // 2)

  @parameterized.product(case=(_V3, _V2), exponents=(False, True))
  def test_fp8_weights(self, case, exponents):
    """FP8 at rest: scales are multiplied in when a matrix is used."""
    model, tensors = self._checkpoints._model(case)
    self._checkpoints._quantised(model, tensors, exponents)
    prompts = _prompts(1)
    expected = _theirs(model, prompts)
    self._varied(expected)
    found, _ = _ours(self.root / "fp8", prompts, dtype="fp8", mtp=False)
    self.assertEqual(found, expected)


if __name__ == "__main__":
  absltest.main()
