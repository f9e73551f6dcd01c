"""config.json: DeepSeek's own files, transformers' files, and bad ones."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from dsx.convert import huggingface_config
from dsx.models import config as config_lib
from dsx.ops import rope

# The fields of the published files that say what the model is, typed here
# from facts, with some of the others that must not disturb.
_V3 = {
  "architectures": ["DeepseekV3ForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "aux_loss_alpha": 0.001,
  "bos_token_id": 0,
  "ep_size": 1,
  "first_k_dense_replace": 3,
  "hidden_act": "silu",
  "hidden_size": 7168,
  "initializer_range": 0.02,
  "intermediate_size": 18432,
  "kv_lora_rank": 512,
  "max_position_embeddings": 163840,
  "model_type": "deepseek_v3",
  "moe_intermediate_size": 2048,
  "moe_layer_freq": 1,
  "n_group": 8,
  "n_routed_experts": 256,
  "n_shared_experts": 1,
  "norm_topk_prob": True,
  "num_attention_heads": 128,
  "num_experts_per_tok": 8,
  "num_hidden_layers": 61,
  "num_key_value_heads": 128,
  "num_nextn_predict_layers": 1,
  "q_lora_rank": 1536,
  "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64,
  "quantization_config": {"quant_method": "fp8"},
  "rms_norm_eps": 1e-06,
  "rope_scaling": {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
  },
  "rope_theta": 10000,
  "routed_scaling_factor": 2.5,
  "scoring_func": "sigmoid",
  "seq_aux": True,
  "tie_word_embeddings": False,
  "topk_group": 4,
  "topk_method": "noaux_tc",
  "v_head_dim": 128,
  "vocab_size": 129280,
}
_V2_LITE = {
  **_V3,
  "architectures": ["DeepseekV2ForCausalLM"],
  "first_k_dense_replace": 1,
  "hidden_size": 2048,
  "intermediate_size": 10944,
  "model_type": "deepseek_v2",
  "moe_intermediate_size": 1408,
  "n_group": 1,
  "n_routed_experts": 64,
  "n_shared_experts": 2,
  "norm_topk_prob": False,
  "num_attention_heads": 16,
  "num_experts_per_tok": 6,
  "num_hidden_layers": 27,
  "num_key_value_heads": 16,
  "num_nextn_predict_layers": None,
  "q_lora_rank": None,
  "routed_scaling_factor": 1.0,
  "scoring_func": "softmax",
  "topk_group": 1,
  "topk_method": "greedy",
  "vocab_size": 102400,
}
_V2_LITE["rope_scaling"] = {
  **_V3["rope_scaling"],
  "mscale": 0.707,
  "mscale_all_dim": 0.707,
}


def _without(*fields, **changes):
  return {k: v for k, v in {**_V3, **changes}.items() if k not in fields}


class HuggingfaceConfigTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.folder = pathlib.Path(temporary.name)

  def _read(self, fields):
    text = fields if isinstance(fields, str) else json.dumps(fields)
    (self.folder / "config.json").write_text(text)
    return huggingface_config.read(self.folder)

  def test_v3(self):
    expected = config_lib.DeepSeekConfig(
      rope_scaling=config_lib.RopeScaling(), initializer_range=0.02
    )
    self.assertEqual(self._read(_V3), expected)

  def test_v2_lite(self):
    config = self._read(_V2_LITE)
    self.assertEqual(config.scoring_func, "softmax")
    self.assertEqual(config.topk_method, "greedy")
    self.assertIsNone(config.q_lora_rank)
    self.assertEqual(config.num_nextn_predict_layers, 0)
    scale = rope.softmax_scale(config.qk_head_dim, config.rope_scaling)
    self.assertAlmostEqual(scale, 0.1147214, places=7)

  def test_transformers_5_keeps_rope_together_and_leaves_routing_out(self):
    together = {"rope_theta": 10000.0, "rope_type": "yarn"}
    fields = _without(
      "rope_scaling",
      "rope_theta",
      "scoring_func",
      "topk_method",
      rope_parameters={**_V3["rope_scaling"], **together},
    )
    self.assertEqual(self._read(fields), self._read(_V3))
    fields["rope_parameters"] = {"rope_theta": 7.0, "rope_type": "default"}
    config = self._read(fields)
    self.assertEqual((config.rope_theta, config.rope_scaling), (7.0, None))

  def test_yarn_defaults_are_deepseeks(self):
    scaling = {
      "type": "yarn",
      "factor": 40,
      "original_max_position_embeddings": 4096,
    }
    config = self._read(_without(rope_scaling=scaling))
    expected = config_lib.RopeScaling(mscale=1.0, mscale_all_dim=0.0)
    self.assertEqual(config.rope_scaling, expected)
    scale = rope.softmax_scale(config.qk_head_dim, config.rope_scaling)
    self.assertEqual(scale, 192**-0.5)

  def test_v2_normalises_instead_of_scaling(self):
    fields = {**_V2_LITE, "norm_topk_prob": True, "routed_scaling_factor": 16.0}
    with self.assertLogs(level="WARNING") as logs:
      config = self._read(fields)
    self.assertTrue(config.norm_topk_prob)
    self.assertEqual(config.routed_scaling_factor, 1.0)
    self.assertIn("ignores routed_scaling_factor=16", logs.output[0])
    self.assertEqual(
      self._read(_without(routed_scaling_factor=16.0)).routed_scaling_factor,
      16.0,
    )

  @parameterized.named_parameters(
    ("v3", {}),
    ("yarn", {"rope_scaling": config_lib.RopeScaling(mscale=0.5)}),
    ("pre_norm", {"mtp_hidden": "pre_norm", "num_nextn_predict_layers": 2}),
    ("no_query_rank", {"q_lora_rank": None, "n_shared_experts": 2}),
    (
      "v2",
      {
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "num_nextn_predict_layers": 0,
      },
    ),
  )
  def test_round_trip(self, changes):
    config = config_lib.DeepSeekConfig(**changes)
    fields = huggingface_config.to_json(config, "bfloat16")
    self.assertEqual(self._read(fields), config)
    self.assertEqual(fields["torch_dtype"], "bfloat16")

  @parameterized.named_parameters(
    (
      "mixed",
      {"scoring_func": "softmax"},
      "scoring_func='softmax', topk_method='noaux_tc': DeepseekV3ForCausalLM "
      "is sigmoid with noaux_tc",
    ),
    (
      "v2_with_mtp",
      {"scoring_func": "softmax", "topk_method": "greedy"},
      "num_nextn_predict_layers=1: DeepseekV2ForCausalLM has no MTP",
    ),
    (
      "v2_normalised",
      {
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "num_nextn_predict_layers": 0,
      },
      "routed_scaling_factor=2.5: DeepseekV2ForCausalLM ignores it",
    ),
  )
  def test_what_no_architecture_can_express(self, changes, message):
    config = config_lib.DeepSeekConfig(**changes)
    with self.assertRaisesRegex(ValueError, message):
      huggingface_config.to_json(config, "float32")

  @parameterized.named_parameters(
    ("missing", _without("kv_lora_rank"), "kv_lora_rank is missing: expected"),
    (
      "query_rank",
      _without("q_lora_rank"),
      "q_lora_rank is missing: expected an integer",
    ),
    (
      "architecture",
      _without(architectures=["GemmaForCausalLM"]),
      r"architectures=\['GemmaForCausalLM'\]: expected \['DeepseekV2ForCausal",
    ),
    (
      "no_architecture",
      _without("architectures"),
      "architectures is missing",
    ),
    ("type", _without(hidden_size="7168"), "hidden_size='7168': expected an i"),
    ("boolean", _without(vocab_size=True), "vocab_size=True: expected an int"),
    ("float", _without(num_hidden_layers=3.0), "num_hidden_layers=3.0: expec"),
    ("number", _without(rms_norm_eps=None), "rms_norm_eps=None: expected a n"),
    (
      "infinite",
      _without(routed_scaling_factor=float("inf")),
      "routed_scaling_factor=inf: expected a finite",
    ),
    ("bias", _without(attention_bias=True), "attention_bias=True: expected F"),
    ("tied", _without(tie_word_embeddings=True), "tie_word_embeddings=True"),
    ("act", _without(hidden_act="gelu"), "hidden_act='gelu': expected 'silu'"),
    (
      "rope_layout",
      _without(rope_interleave=False),
      "rope_interleave=False: expected True",
    ),
    (
      "heads",
      _without(num_key_value_heads=8),
      "num_key_value_heads=8: expected 128",
    ),
    (
      "scores",
      _without(scoring_func="softmax"),
      "scoring_func='softmax': expected 'sigmoid'",
    ),
    (
      "rope_type",
      _without(rope_scaling={"type": "linear", "factor": 2}),
      "rope_scaling=.*'linear'.*: expected type 'yarn'",
    ),
    (
      "rope_list",
      _without(rope_scaling=[1]),
      r"rope_scaling=\[1\]: expected an object or null",
    ),
    (
      "rope_new_list",
      _without(rope_parameters=[1]),
      r"rope_parameters=\[1\]: expected an object or null",
    ),
    (
      "rope_factor",
      _without(rope_scaling={"type": "yarn"}),
      "rope_scaling: factor is missing",
    ),
    (
      "rope_unknown",
      _without(rope_scaling={**_V3["rope_scaling"], "attention_factor": 2.0}),
      "rope_scaling: attention_factor=2.0: expected only DeepSeek's",
    ),
    (
      "rope_twice",
      _without(rope_parameters={"rope_type": "default", "rope_theta": 1.0}),
      "rope_scaling=.*: expected the same as rope_parameters",
    ),
    ("rope_theta", _without("rope_theta"), "rope_theta is missing"),
    ("groups", _without(n_group=7), "n_group=7: expected a divisor of n_rout"),
    ("json", "{", "config.json: not valid JSON"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      self._read(fields)
    self.assertNotIn("\n", str(caught.exception))
    self.assertStartsWith(
      str(caught.exception), str(self.folder / "config.json")
    )

  def test_no_file(self):
    with self.assertRaisesRegex(ValueError, "config.json: no such file"):
      huggingface_config.read(self.folder)


if __name__ == "__main__":
  absltest.main()
