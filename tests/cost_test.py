"""The published numbers of DeepSeek-V2, V2-Lite and V3 from configs alone."""

import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import gin

from dsx import cost
from dsx.models import config as config_lib

_ROOT = pathlib.Path(__file__).parents[1]

# config.json of the released models, as far as no count depends on it.
_PUBLISHED = {
  "v3": dict(
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    max_position_embeddings=163840,
    rope_theta=10000,
    rms_norm_eps=1e-6,
    num_nextn_predict_layers=1,
    rope_scaling=config_lib.RopeScaling(mscale=1.0, mscale_all_dim=1.0),
  ),
  "v2": dict(
    num_experts_per_tok=6,
    n_group=8,
    topk_group=3,
    scoring_func="softmax",
    topk_method="group_limited_greedy",
    norm_topk_prob=False,
    routed_scaling_factor=16.0,
    max_position_embeddings=163840,
    rope_theta=10000,
    rms_norm_eps=1e-6,
    num_nextn_predict_layers=0,
    rope_scaling=config_lib.RopeScaling(mscale=0.707, mscale_all_dim=0.707),
  ),
  "v2_lite": dict(
    num_experts_per_tok=6,
    n_group=1,
    topk_group=1,
    scoring_func="softmax",
    topk_method="greedy",
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
    max_position_embeddings=163840,
    rope_theta=10000,
    rms_norm_eps=1e-6,
    num_nextn_predict_layers=0,
    rope_scaling=config_lib.RopeScaling(mscale=0.707, mscale_all_dim=0.707),
  ),
}
_PUBLISHED["v3_1"] = _PUBLISHED["v3"]


def _load(name: str) -> config_lib.DeepSeekConfig:
  """The config that gin_configs/models/`name`.gin binds."""
  gin.clear_config()
  gin.add_config_file_search_path(str(_ROOT))
  gin.parse_config_file(f"gin_configs/models/{name}.gin")
  try:
    return gin.get_configurable("config.DeepSeekConfig")()
  finally:
    gin.clear_config()


def _tiny(**changes) -> config_lib.DeepSeekConfig:
  """A model that can be counted by hand."""
  fields = dict(
    vocab_size=10,
    hidden_size=4,
    intermediate_size=5,
    moe_intermediate_size=3,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_nextn_predict_layers=1,
    num_attention_heads=2,
    q_lora_rank=None,
    kv_lora_rank=6,
    qk_nope_head_dim=3,
    qk_rope_head_dim=2,
    v_head_dim=7,
    n_routed_experts=8,
    n_shared_experts=2,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
  )
  return config_lib.DeepSeekConfig(**(fields | changes))


class PublishedTest(parameterized.TestCase):
  """The model files against what DeepSeek publishes."""

  @parameterized.parameters(
    ("v3", 671_026_419_200, 37.55e9, 36.63e9),
    ("v3_1", 671_026_419_200, 37.55e9, 36.63e9),
    ("v2", 235_741_434_880, 21.38e9, 20.85e9),
    ("v2_lite", 15_706_484_224, 2.66e9, 2.45e9),
  )
  def test_parameters(self, name, total, active, without_embedding):
    config = _load(name)
    self.assertEqual(cost.parameters(config), total)
    self.assertAlmostEqual(
      cost.active_parameters(config), active, delta=0.005e9
    )
    self.assertAlmostEqual(
      cost.active_parameters(config, embedding=False),
      without_embedding,
      delta=0.005e9,
    )

  @parameterized.parameters(*_PUBLISHED)
  def test_fields_that_no_count_shows(self, name):
    config = _load(name)
    for field, value in _PUBLISHED[name].items():
      self.assertEqual(getattr(config, field), value, field)
    # The report's, although the published files say 0.02.
    self.assertEqual(config.initializer_range, 0.006)

  @parameterized.parameters(*_PUBLISHED)
  def test_model_file_states_its_count(self, name):
    text = (_ROOT / f"gin_configs/models/{name}.gin").read_text()
    header = text.split("from __gin__")[0]
    self.assertIn(f"{cost.parameters(_load(name)):,}", header)

  def test_v3_is_the_default(self):
    config = _load("v3")
    self.assertEqual(config.rope_scaling, config_lib.RopeScaling())
    default = config_lib.DeepSeekConfig(rope_scaling=config_lib.RopeScaling())
    self.assertEqual(config, default)

  def test_mtp_adds_11_61_billion_and_none_to_v2(self):
    self.assertEqual(cost.mtp_parameters(_load("v3")), 11_610_068_224)
    self.assertEqual(cost.mtp_parameters(_load("v2")), 0)

  @parameterized.parameters(
    (dict(sequence_length=4096), 250.45),
    (dict(sequence_length=8192), 281.15),
    (dict(sequence_length=4096, causal=False), 281.15),
    (dict(sequence_length=0), 219.75),
    (dict(sequence_length=4096, mtp=True), 260.64),
  )
  def test_flops_of_v3(self, arguments, gigaflops):
    flops = cost.flops_per_token(_load("v3"), **arguments)
    self.assertAlmostEqual(flops / 1e9, gigaflops, delta=0.005)

  def test_attention_of_v3_costs_30_70_gigaflops(self):
    config = _load("v3")
    scores = cost.flops_per_token(config, 4096) - cost.flops_per_token(
      config, 0
    )
    self.assertEqual(scores, 3 * 61 * 128 * (192 + 128) * 4096)
    self.assertAlmostEqual(scores / 1e9, 30.70, delta=0.005)

  @parameterized.parameters(("v3", 70_272), ("v2", 69_120), ("v2_lite", 31_104))
  def test_cache(self, name, count):
    self.assertEqual(cost.cache_bytes_per_token(_load(name)), count)

  def test_hours_of_the_report(self):
    """Section 1: 2664K H800 hours of pretraining, at 39% of the bf16 peak."""
    flops = cost.flops_per_token(_load("v3"), 4096) * 14.8e12
    peak = cost.device_peak_flops("NVIDIA H800", "bfloat16")
    hours = cost.device_hours(flops, peak, 0.39)
    self.assertAlmostEqual(hours, 2.664e6, delta=0.01e6)


class CountTest(parameterized.TestCase):
  """A model small enough to be counted by hand."""

  def test_parts(self):
    attention = 4 * 2 * 5 + 4 * (6 + 2) + 6 + 6 * 2 * (3 + 7) + 2 * 7 * 4
    parts = cost.parameters_by_part(_tiny())
    self.assertEqual(
      parts,
      cost.Parameters(
        embedding=40,
        attention=3 * attention,
        dense_mlp=3 * 4 * 5,
        experts=2 * 8 * 3 * 4 * 3,
        shared_experts=2 * 2 * 3 * 4 * 3,
        router=2 * (8 * 4 + 8),
        norms=(3 * 2 + 1) * 4,
        lm_head=40,
      ),
    )
    self.assertEqual(parts.total, 1730)
    self.assertEqual(cost.parameters(_tiny()), 1730)
    self.assertEqual(cost.active_parameters(_tiny()), 1730 - 2 * 6 * 36)

  def test_compressed_queries(self):
    full = cost.parameters(_tiny())
    compressed = cost.parameters(_tiny(q_lora_rank=2))
    change = 4 * 2 + 2 + 2 * 2 * 5 - 4 * 2 * 5
    self.assertEqual(compressed - full, 3 * change)

  def test_only_v3_has_router_biases(self):
    v2 = _tiny(topk_method="greedy", scoring_func="softmax")
    self.assertEqual(cost.parameters(_tiny()) - cost.parameters(v2), 2 * 8)

  def test_mtp_modules(self):
    # Two inputs projected to one, three norms, and one MoE layer.
    layer = 254 + 8 * 4 + 8 + 10 * 36 + 2 * 4
    module = 2 * 4 * 4 + 3 * 4 + layer
    self.assertEqual(cost.mtp_parameters(_tiny()), module)
    three = _tiny(num_nextn_predict_layers=3)
    self.assertEqual(cost.mtp_parameters(three), 3 * module)
    self.assertEqual(cost.parameters(three), cost.parameters(_tiny()))

  def test_flops(self):
    matrices = 254 - 6
    scores = 2 * (5 + 7) * 16 / 2
    moe = (2 + 2) * 36 + 8 * 4
    main = 3 * (matrices + scores) + 60 + 2 * moe + 40
    self.assertEqual(cost.flops_per_token(_tiny(), 16), 6 * main)
    mtp = 32 + matrices + scores + moe + 40
    self.assertEqual(
      cost.flops_per_token(_tiny(), 16, mtp=True), 6 * (main + mtp)
    )

  def test_cache(self):
    self.assertEqual(cost.cache_bytes_per_token(_tiny()), 3 * (6 + 2) * 2)
    self.assertEqual(
      cost.cache_bytes_per_token(_tiny(), bytes_per_value=4), 3 * 8 * 4
    )


class MemoryTest(parameterized.TestCase):
  """Section 3.3.3: 4 bytes of weight, 4 of gradient, twice 2 of moment."""

  def test_one_device_holds_everything(self):
    count = cost.parameters(_tiny()) + cost.mtp_parameters(_tiny())
    state = cost.memory(_tiny())
    self.assertEqual(
      state,
      cost.Memory(parameters=4 * count, gradients=4 * count, moments=4 * count),
    )
    self.assertEqual(state.total, 12 * count)

  def test_zero_1_splits_only_the_moments(self):
    count = cost.parameters(_tiny())
    state = cost.memory(_tiny(), optimizer_shards=8, mtp=False)
    self.assertEqual(state.parameters, 4 * count)
    self.assertEqual(state.moments, 4 * count // 8)

  def test_shards_round_up(self):
    state = cost.memory(_tiny(), shards=7, mtp=False)
    self.assertEqual(state.parameters, 989)
    self.assertEqual(state.moments, state.parameters)

  def test_v3_with_float32_moments(self):
    state = cost.memory(_load("v3"), shards=2048, moment_bytes=4, mtp=False)
    self.assertAlmostEqual(state.total / 1e9, 671.026 * 16 / 2048, delta=1e-3)

  @parameterized.parameters("shards", "optimizer_shards")
  def test_no_shards_are_refused(self, field):
    with self.assertRaisesRegex(ValueError, f"{field}=0: expected 1 or more"):
      cost.memory(_tiny(), **{field: 0})


class ChipTest(parameterized.TestCase):
  """Published rates, and a measured one where none is published."""

  @parameterized.parameters(
    ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
    ("NVIDIA H100 80GB HBM3", "float8_e4m3fn", 1978.9),
    ("NVIDIA H100 80GB HBM3", "float32", 494.7),
    ("NVIDIA H800", "bfloat16", 989.4),
    ("NVIDIA H200", "float16", 989.4),
    ("NVIDIA B200", "bfloat16", 2250),
    ("TPU v4", "bfloat16", 275),
    ("TPU v5 lite", "bfloat16", 197),
    ("TPU v5", "bfloat16", 459),
    ("TPU v5p", "float8_e5m2", 459),
    ("TPU v6 lite", "float32", 918),
    ("TPU7x", "bfloat16", 2307 / 2),
    ("TPU7x", "float8_e4m3fn", 4614 / 2),
  )
  def test_peak(self, kind, dtype, teraflops):
    self.assertAlmostEqual(
      cost.device_peak_flops(kind, dtype) / 1e12, teraflops
    )

  @parameterized.parameters("cpu", "NVIDIA H100 PCIe", "TPU v9", "")
  def test_unknown_devices_have_none(self, kind):
    self.assertIsNone(cost.chip(kind))
    self.assertIsNone(cost.device_peak_flops(kind, "bfloat16"))

  def test_no_kind_means_two_chips(self):
    kinds = [kind for chip in cost.CHIPS.values() for kind in chip.kinds]
    self.assertLen(set(kinds), len(kinds))
    self.assertLen(cost.CHIPS, 9)

  def test_dtype_is_checked(self):
    with self.assertRaisesRegex(ValueError, "dtype='int4': expected float32"):
      cost.device_peak_flops("TPU v4", "int4")

  @parameterized.parameters(0.0, 38.9, -0.1)
  def test_utilization_is_a_share(self, utilization):
    with self.assertRaisesRegex(ValueError, "utilization=.*: expected a share"):
      cost.device_hours(1e15, 1e12, utilization)

  def test_measured_peak_is_a_rate_and_measured_once(self):
    peak = cost.measure_peak_flops()
    # A product of two 2048 x 2048 matrices in 17 s to 0.02 ms.
    self.assertBetween(peak, 1e9, 1e15)
    self.assertEqual(cost.measure_peak_flops(), peak)

  def test_counting_needs_no_jax(self):
    program = (
      "import sys; from dsx import cost; from dsx.models import config;"
      "print(cost.parameters(config.DeepSeekConfig()), 'jax' in sys.modules)"
    )
    output = subprocess.run(
      [sys.executable, "-c", program],
      cwd=_ROOT,
      check=True,
      capture_output=True,
      text=True,
    ).stdout
    self.assertEqual(output, "671026419200 False\n")


if __name__ == "__main__":
  absltest.main()
