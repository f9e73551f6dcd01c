"""Checkpoints without torch: literal, round trip, MTP layers, bad ones.

That the names and shapes are those of real checkpoints is shown by
`models/golden_test.py` with checkpoints that transformers wrote.
"""

import dataclasses
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax.core import meta
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import numpy as reference

from dsx.convert import deepseek as convert
from dsx.models import config as config_lib
from dsx.models import deepseek

_CONFIG = config_lib.DeepSeekConfig(
  vocab_size=11,
  hidden_size=8,
  intermediate_size=10,
  moe_intermediate_size=6,
  num_hidden_layers=3,
  first_k_dense_replace=1,
  num_nextn_predict_layers=2,
  num_attention_heads=2,
  q_lora_rank=5,
  kv_lora_rank=4,
  qk_nope_head_dim=3,
  qk_rope_head_dim=2,
  v_head_dim=3,
  n_routed_experts=4,
  num_experts_per_tok=2,
  n_group=2,
  topk_group=1,
  max_position_embeddings=64,
  rope_scaling=config_lib.RopeScaling(factor=2.0),
)


def _boxed(config):
  """Random variables as numpy arrays, boxed as `model.init` returns them."""
  model = deepseek.DeepSeek(config)
  tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )


def _variables(config=_CONFIG):
  return meta.unbox(_boxed(config))


class DeepseekTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.folder = pathlib.Path(temporary.name) / "checkpoint"

  def _edit(self, edit=None, **fields):
    """Changes tensors and config.json of the checkpoint in place."""
    path = self.folder / "model.safetensors"
    tensors = reference.load_file(path)
    if edit is not None:
      edit(tensors)
    reference.save_file(tensors, path)
    config = json.loads((self.folder / "config.json").read_text())
    (self.folder / "config.json").write_text(json.dumps({**config, **fields}))

  def _save(self, config=_CONFIG):
    variables = _variables(config)
    convert.save(self.folder, config, variables)
    return variables

  def test_literal_layout(self):
    """Stacks, transposes and the two collections, element by element."""
    self._save()

    def number(tensors):
      for name, tensor in tensors.items():
        tensors[name] = np.arange(tensor.size, dtype=np.float32).reshape(
          tensor.shape
        )
      tensors["model.layers.2.mlp.experts.3.up_proj.weight"][5, 7] = -1
      tensors["model.layers.1.mlp.gate.e_score_correction_bias"][2] = -2
      tensors["model.layers.4.eh_proj.weight"][7, 15] = -3
      tensors["lm_head.weight"][10, 1] = -4
      for k in (3, 4):
        head = f"model.layers.{k}.shared_head.head.weight"
        tensors[head] = tensors["lm_head.weight"].copy()

    self._edit(number)
    config, variables = convert.load(self.folder)
    self.assertEqual(config, _CONFIG)
    params, bias = variables["params"], variables["router_bias"]
    up = params["moe_layers"]["mlp"]["experts"]["up_proj"]
    self.assertEqual(up.shape, (2, 4, 8, 6))
    self.assertEqual(up[1, 3, 7, 5], -1)
    self.assertEqual(up[0, 0, 1, 0], 1)
    gate = bias["moe_layers"]["mlp"]["gate"]["e_score_correction_bias"]
    self.assertEqual(gate[0, 2], -2)
    self.assertEqual(params["mtp_1"]["eh_proj"]["kernel"][15, 7], -3)
    self.assertEqual(params["lm_head"]["kernel"][1, 10], -4)
    dense = params["dense_layers"]["mlp"]["down_proj"]["kernel"]
    self.assertEqual(dense.shape, (1, 10, 8))
    self.assertEqual(dense[0, 1, 0], 1)

  @parameterized.parameters(100, 5_000_000_000)
  def test_round_trip(self, shard_bytes):
    variables = _variables()
    convert.save(self.folder, _CONFIG, variables, shard_bytes=shard_bytes)
    files = list(self.folder.glob("*.safetensors"))
    self.assertEqual(len(files) > 1, shard_bytes == 100)
    config, loaded = convert.load(self.folder)
    self.assertEqual(config, _CONFIG)
    chex.assert_trees_all_equal(loaded, variables)
    chex.assert_type(jax.tree.leaves(loaded), np.float32)

  def test_saves_boxed_variables(self):
    """`model.init` gives boxed leaves; loading gives what `apply` takes."""
    convert.save(self.folder, _CONFIG, _boxed(_CONFIG))
    _, loaded = convert.load(self.folder)
    chex.assert_trees_all_equal(loaded, _variables())
    logits, _ = jax.eval_shape(
      deepseek.DeepSeek(_CONFIG).apply, loaded, np.zeros((2, 7), np.int32)
    )
    chex.assert_shape(logits, (2, 7, 11))

  @parameterized.parameters("bfloat16", "float16")
  def test_dtype_leaves_biases_in_float32(self, dtype):
    self._save()
    _, loaded = convert.load(self.folder, dtype=dtype)
    chex.assert_type(jax.tree.leaves(loaded["params"]), jnp.dtype(dtype))
    chex.assert_type(jax.tree.leaves(loaded["router_bias"]), np.float32)

  def test_bfloat16_file(self):
    variables = _variables()
    convert.save(self.folder, _CONFIG, variables, dtype="bfloat16")
    _, loaded = convert.load(self.folder)
    rounded = jax.tree.map(
      lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32),
      variables["params"],
    )
    chex.assert_trees_all_equal(loaded["params"], rounded)
    chex.assert_trees_all_equal(loaded["router_bias"], variables["router_bias"])

  def test_copies_of_embedding_and_head_are_written_and_optional(self):
    variables = self._save()
    tensors = reference.load_file(self.folder / "model.safetensors")
    for k in (3, 4):
      np.testing.assert_array_equal(
        tensors[f"model.layers.{k}.embed_tokens.weight"],
        variables["params"]["embed_tokens"]["embedding"],
      )

    def drop(tensors):
      for k in (3, 4):
        del tensors[f"model.layers.{k}.embed_tokens.weight"]
        del tensors[f"model.layers.{k}.shared_head.head.weight"]

    self._edit(drop)
    chex.assert_trees_all_equal(convert.load(self.folder)[1], variables)

  def test_announced_mtp_without_tensors(self):
    config = dataclasses.replace(_CONFIG, num_nextn_predict_layers=0)
    variables = self._save(config)
    self._edit(num_nextn_predict_layers=1)
    with self.assertLogs(level="WARNING") as logs:
      loaded, again = convert.load(self.folder)
    self.assertLen(logs.output, 1)
    self.assertIn("named model.layers.3.*; loaded without", logs.output[0])
    self.assertEqual(loaded, config)
    chex.assert_trees_all_equal(again, variables)

  def test_without_mtp(self):
    variables = self._save()
    config, loaded = convert.load(self.folder, mtp=False)
    self.assertEqual(config.num_nextn_predict_layers, 0)
    self.assertNotIn("mtp_0", loaded["params"])
    self.assertEqual(list(loaded["router_bias"]), ["moe_layers"])
    chex.assert_trees_all_equal(
      loaded["params"]["moe_layers"], variables["params"]["moe_layers"]
    )

  def _refuses(self, message, **kwargs):
    with self.assertRaisesRegex(ValueError, message) as caught:
      convert.load(self.folder, **kwargs)
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.named_parameters(
    (
      "missing",
      lambda t: t.pop("model.layers.2.mlp.experts.3.up_proj.weight"),
      "'model.layers.2.mlp.experts.3.up_proj.weight' is missing: config.json "
      "asks for 127 tensors beside copies and scales, the files hold 126;",
    ),
    (
      "half_an_mtp_module",
      lambda t: t.pop("model.layers.4.shared_head.norm.weight"),
      "'model.layers.4.shared_head.norm.weight' is missing: config.json",
    ),
    (
      "extra",
      lambda t: t.update(x=np.ones(1)),
      r"1 tensor\(s\) that config.json does not explain, the first 'x'",
    ),
    (
      "shape",
      lambda t: t.update({"model.norm.weight": np.ones(9, np.float32)}),
      r"'model.norm.weight' has shape \[9\]: config.json says \[8\]",
    ),
    (
      "transposed",
      lambda t: t.update({"lm_head.weight": np.ones((8, 11), np.float32)}),
      r"'lm_head.weight' has shape \[8, 11\]: config.json says \[11, 8\]",
    ),
    (
      "integers",
      lambda t: t.update({"model.norm.weight": np.ones(8, np.int32)}),
      "'model.norm.weight' is I32: expected F32, BF16, F16",
    ),
    (
      "doubles",
      lambda t: t.update({"model.norm.weight": np.ones(8)}),
      "'model.norm.weight' is F64: expected F32, BF16, F16",
    ),
    (
      "fp8",
      lambda t: t.update(
        {"model.norm.weight": np.ones(8, ml_dtypes.float8_e4m3fn)}
      ),
      "is F8_E4M3: expected F32, BF16, F16, because only linear layers are FP8",
    ),
    (
      "nan",
      lambda t: t["model.layers.1.mlp.gate.weight"].put([0, 5], np.nan),
      r"'model.layers.1.mlp.gate.weight' has 2 value\(s\) that are not finite",
    ),
    (
      "infinite_bias",
      lambda t: t["model.layers.1.mlp.gate.e_score_correction_bias"].put(
        0, np.inf
      ),
      "e_score_correction_bias' has 1 value.* not finite as float32",
    ),
    (
      "own_embedding",
      lambda t: t["model.layers.4.embed_tokens.weight"].put(0, 7.0),
      "'model.layers.4.embed_tokens.weight' is not equal to 'model.embed_tok",
    ),
  )
  def test_bad_tensors(self, edit, message):
    self._save()
    self._edit(edit)
    self._refuses(message)

  def test_own_embedding_is_left_out_with_its_module(self):
    self._save()
    self._edit(lambda t: t["model.layers.4.embed_tokens.weight"].put(0, 7.0))
    config, _ = convert.load(self.folder, mtp=False)
    self.assertEqual(config.num_nextn_predict_layers, 0)

  def test_too_large_for_float16(self):
    self._save()
    self._edit(lambda t: t["model.norm.weight"].put(0, 1e6))
    self._refuses("'model.norm.weight' has 1 .* as float16", dtype="float16")

  def test_layers_that_the_config_does_not_have(self):
    self._save()
    self._edit(num_hidden_layers=2, num_nextn_predict_layers=0)
    self._refuses("config.json does not explain, the first 'model.layers.2.")

  @parameterized.parameters(
    "num_hidden_layers", "n_routed_experts", "num_nextn_predict_layers"
  )
  def test_absurd_counts(self, field):
    """A billion of anything is refused at once, not enumerated."""
    self._save()
    self._edit(**{field: 10**9})
    self._refuses(r"config.json (announces|asks for|says)")

  def test_dtype(self):
    self._refuses("dtype='int8': expected float32, bfloat16", dtype="int8")

  def test_saves_only_what_the_config_describes(self):
    variables = _variables()
    config = dataclasses.replace(_CONFIG, hidden_size=9)
    with self.assertRaisesRegex(
      ValueError, r"variables params/dense_layers/.* of shape .*: the config"
    ):
      convert.save(self.folder, config, variables)
    del variables["router_bias"]
    with self.assertRaisesRegex(
      ValueError, r"router_bias/moe_layers/.* of shape None: the config says"
    ):
      convert.save(self.folder, _CONFIG, variables)
    self.assertFalse(self.folder.exists())

  def test_does_not_save_what_is_not_finite(self):
    variables = _variables()
    variables["params"]["norm"]["scale"][3] = np.nan
    with self.assertRaisesRegex(ValueError, "'model.norm.weight' has 1 value"):
      convert.save(self.folder, _CONFIG, variables)
    self.assertEqual(list(self.folder.glob("*.safetensors")), [])


if __name__ == "__main__":
  absltest.main()
