"""What training leaves behind is what transformers loads: logits and ids."""

import dataclasses
import os
import pathlib
import tempfile

# Before torch is imported: this test must not reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import torch
import transformers

from dsx.convert import conversion
from dsx.data import byte_tokenizer
from dsx.data import vocab
from dsx.models import deepseek
from dsx.training import exported
from tests.evals import workdirs
from tests.models import tiny

TOLERANCE = 1e-4
_TEXTS = (
  "def spam(eggs):\n\treturn  eggs\r\n",
  " Café, 北京 and \U0001f40d\n\n",
  "don't 1234",
)


class ExportedGoldenTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    config = workdirs.model_config(first_k_dense_replace=1, num_hidden_layers=2)
    cls.run_ = workdirs.run(workdirs.data(cls.folder / "data"), config=config)
    # Initial weights are so small that a model hardly depends on them.
    cls.variables = tiny.variables(config)
    state = dataclasses.replace(
      workdirs.state_of(cls.run_, seed=0), **cls.variables
    )
    workdirs.save(cls.folder / "run", cls.run_, {4: state})
    cls.target = cls.folder / "hf"
    options = conversion.Conversion(dtype="float32")
    exported.write(cls.folder / "run", cls.target, options)

  def test_logits(self):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
      self.target, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = np.random.default_rng(0).integers(0, 256, (2, 16))
    model = deepseek.DeepSeek(self.run_.config)
    ours, _ = jax.jit(model.apply)(self.variables, tokens.astype(np.int32))
    with torch.no_grad():
      expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    self.assertGreater(expected.std(), 0.1)
    self.assertLess(np.abs(np.asarray(ours) - expected).max(), TOLERANCE)

  @parameterized.parameters(*_TEXTS)
  def test_ids(self, text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(self.target)
    own = vocab.ByteVocabulary()
    ids = tokenizer.encode(text, add_special_tokens=False)
    self.assertEqual(ids, own.encode(text))
    self.assertEqual(tokenizer.encode(text), [own.special["bos"], *ids])
    self.assertEqual(tokenizer.decode(ids), text)
    for name in ("bos", "eos", "pad"):
      token = getattr(tokenizer, f"{name}_token_id")
      self.assertEqual(token, own.special[name])

  def test_generation_ends_with_eos(self):
    settings = transformers.GenerationConfig.from_pretrained(self.target)
    own = vocab.ByteVocabulary()
    self.assertEqual(settings.eos_token_id, own.special["eos"])
    self.assertEqual(settings.bos_token_id, own.special["bos"])

  def test_byte_tokenizer_alone(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for name, text in byte_tokenizer.files(16).items():
      (folder / name).write_text(text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    self.assertEqual(tokenizer.model_max_length, 16)
    self.assertEqual(
      tokenizer.encode("<think>", add_special_tokens=False), [265]
    )


if __name__ == "__main__":
  absltest.main()
