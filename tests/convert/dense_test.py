"""Qwen2, Qwen3 and Llama as transformers makes and loads them, both ways."""

import dataclasses
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import safetensors.torch
import torch

from dsx.convert import conversion
from dsx.convert import deepseek as convert
from dsx.convert import huggingface_config
from dsx.convert import huggingface_source
from dsx.models import language_model
from dsx.ops import block_scaled
from tests.models import dense_models

_TOLERANCE = 1e-4


def _logits(model, tokens: np.ndarray) -> np.ndarray:
  with torch.no_grad():
    return model(torch.from_numpy(tokens).long()).logits.numpy()


class DenseTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    torch.set_num_threads(2)
    self.root = pathlib.Path(self.create_tempdir().full_path)

  @parameterized.parameters(*dense_models.CASES)
  def test_golden(self, case):
    model = dense_models.made(case)
    model.save_pretrained(self.root / "theirs")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 96, (2, 48)).astype(np.int32)
    config, variables = convert.load(self.root / "theirs")
    built = language_model.build(config)
    ours, _ = jax.jit(built.apply)(variables, tokens)
    theirs = _logits(model, tokens)
    self.assertGreater(np.abs(theirs).max(), 1.0)
    np.testing.assert_allclose(ours, theirs, atol=_TOLERANCE, rtol=_TOLERANCE)
    # And back: transformers reads what is written, and computes the same.
    convert.save(self.root / "ours", config, variables)
    again = type(model).from_pretrained(
      self.root / "ours", attn_implementation="eager"
    )
    np.testing.assert_array_equal(_logits(again.eval(), tokens), theirs)
    config_again, variables_again = convert.load(self.root / "ours")
    self.assertEqual(config_again, config)
    chex.assert_trees_all_equal(variables_again, variables)

  def _folder(self, case="qwen2", **fields) -> pathlib.Path:
    """A folder of transformers' with fields of config.json changed."""
    folder = self.root / "changed"
    dense_models.made(case).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder

  @parameterized.parameters(
    ({"use_sliding_window": True}, "use_sliding_window=True: expected False"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu': expected 'silu'; dsx has no"),
    (
      {"layer_types": ["sliding_attention"] * 3},
      "layer_types=.*: expected 'full_attention' alone; dsx has no other",
    ),
    (
      {"num_key_value_heads": 3},
      "num_key_value_heads=3: expected a divisor of num_attention_heads=4",
    ),
    (
      {"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0}},
      "rope_parameters=.*: expected type 'llama3', 'yarn' or 'default'; dsx",
    ),
    (
      {"num_key_value_heads": 1},
      "k_proj.* has shape .*: config.json says .*; correct config.json",
    ),
    (
      {"architectures": ["Gemma"]},
      "architectures=.*: expected .*'Qwen2ForCausalLM'.*; dsx loads no other",
    ),
    (
      {"tie_word_embeddings": True},
      "'lm_head.weight' is not equal to 'model.e",
    ),
  )
  def test_what_is_no_such_model(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      convert.load(self._folder(**fields))

  def test_a_tied_head_that_is_repeated(self):
    folder = self._folder("qwen2_tied")
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    _, variables = convert.load(folder)
    self.assertNotIn("lm_head", variables["params"])

  def test_converts_tensor_by_tensor(self):
    source = huggingface_source.find(self._folder("llama3"))
    options = conversion.Conversion(dtype="float32", shard_bytes=20_000)
    conversion.write(source, self.root / "out", options)
    self.assertGreater(len(list((self.root / "out").glob("*.safetensors"))), 3)
    chex.assert_trees_all_equal(
      convert.load(self.root / "out")[1], convert.load(source.folder)[1]
    )

  def test_fp8_leaves_biases_and_norms(self):
    config, variables = convert.load(self._folder("qwen2"))
    convert.save(self.root / "fp8", config, variables, dtype="fp8")
    _, found = convert.load(self.root / "fp8", dtype="fp8")
    attention = found["params"]["dense_layers"]["self_attn"]
    self.assertEqual(attention["q_proj"]["bias"].dtype, "bfloat16")
    self.assertIsInstance(
      attention["k_proj"]["kernel"], block_scaled.BlockScaled
    )

  def test_what_no_architecture_has(self):
    config, _ = convert.load(self._folder("qwen3"))
    both = dataclasses.replace(config, attention_bias=True)
    with self.assertRaisesRegex(
      ValueError, "attention_bias=True, qk_norm=True"
    ):
      huggingface_config.to_json(both, "float32")
    biased = dataclasses.replace(both, qk_norm=False)
    with self.assertRaisesRegex(
      ValueError, "head_dim=24: expected hidden_size"
    ):
      huggingface_config.to_json(biased, "float32")


if __name__ == "__main__":
  absltest.main()
