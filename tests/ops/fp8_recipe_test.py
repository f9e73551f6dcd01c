from absl.testing import absltest
from absl.testing import parameterized

from dsx.ops import fp8_recipe

_NAMES = (
  "embed_tokens",
  "moe_layers/input_layernorm",
  "moe_layers/self_attn/o_proj",
  "moe_layers/mlp/gate",
  "moe_layers/mlp/shared_experts/gate_proj",
  "moe_layers/mlp/experts",
  "mtp_0/enorm",
  "mtp_0/eh_proj",
  "norm",
  "lm_head",
)


class RulesTest(parameterized.TestCase):
  def test_by_default_all_but_what_is_sensitive(self):
    recipe = fp8_recipe.Recipe()
    found = [n for n in _NAMES if recipe.precision(n) == "float8"]
    self.assertEqual(
      found,
      [
        "moe_layers/self_attn/o_proj",
        "moe_layers/mlp/shared_experts/gate_proj",
        "moe_layers/mlp/experts",
        "mtp_0/eh_proj",
      ],
    )

  def test_the_first_rule_that_matches_decides(self):
    rules = (("*/o_proj", "compute"), ("moe_layers/*", "float8"))
    recipe = fp8_recipe.Recipe(rules=rules)
    self.assertIsNone(recipe.linear("moe_layers/self_attn/o_proj"))
    self.assertIsNotNone(recipe.linear("moe_layers/mlp/experts"))
    self.assertIsNone(recipe.linear("mtp_0/eh_proj"))

  @parameterized.parameters(
    ("lm_head", "lm_head"),
    ("*lm_head", "lm_head"),
    ("*/gate", "gate"),
    ("moe*gate", "gate"),
    ("mlp?gate", "gate"),
    ("*/input_layernorm", "norm"),
    ("*norm", "norm"),
    ("*/attention_core", "attention_core"),
  )
  def test_refuses_what_is_sensitive(self, pattern, part):
    rules = ((pattern, "float8"), ("*", "float8"))
    with self.assertRaisesRegex(
      ValueError, f"expected 'compute' for {part}, because.*allow_sensitive"
    ):
      fp8_recipe.Recipe(rules=rules)
    recipe = fp8_recipe.Recipe(rules=rules, allow_sensitive=True)
    self.assertIn("float8", {recipe.precision(n) for n in _NAMES})
    fp8_recipe.Recipe(rules=((pattern, "compute"), ("*", "float8")))

  def test_no_star_reaches_what_is_sensitive(self):
    recipe = fp8_recipe.Recipe(allow_sensitive=True)
    self.assertEqual(recipe.precision("lm_head"), "compute")

  @parameterized.parameters("*/o_porj", "*/shared_experts/*", "*/experts")
  def test_refuses_a_rule_that_decides_nothing(self, pattern):
    rules = (("*experts*", "compute"), (pattern, "compute"), ("*", "float8"))
    recipe = fp8_recipe.Recipe(rules=rules)
    with self.assertRaisesRegex(ValueError, "decides for no layer"):
      recipe.check_names(_NAMES)

  def test_takes_rules_that_all_decide(self):
    rules = (("*/o_proj", "compute"), ("lm_head", "compute"), ("*", "float8"))
    fp8_recipe.Recipe(rules=rules).check_names(_NAMES)

  def test_a_layer_alone_has_the_name_of_its_stack(self):
    recipe = fp8_recipe.Recipe(rules=(("moe_layers/*", "float8"),))
    inside = fp8_recipe.in_stack(recipe, "moe_layers")
    self.assertIsNone(recipe.linear("layers_3/mlp/experts"))
    self.assertIsNotNone(inside.linear("layers_3/mlp/experts"))
    inside = fp8_recipe.in_stack(recipe, "dense_layers")
    self.assertIsNone(inside.linear("layers_0/mlp/gate_proj"))


class FieldsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"accumulation": "fast"}, "accumulation='fast': expected 'float32' or"),
    ({"promote": 2}, "promote=2: expected True or False"),
    ({"gradient_format": "e3m4"}, "gradient_format='e3m4': expected 'e4m3'"),
    ({"weight_granularity": "tile"}, "expected 'block' or 'tensor'"),
    ({"rules": (("*", "fp8"),)}, r"expected \(pattern, precision\)"),
    ({"rules": [("*", "float8")]}, "put them in parentheses"),
    ({"rules": ("*", "float8")}, r"expected \(pattern, precision\)"),
    ({"promote": False}, "activation_granularity='tile': expected 'tensor'"),
    (
      {"implementation": "kernel", "accumulation": "exact"},
      "because hardware adds as it does",
    ),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      fp8_recipe.Recipe(**fields)

  def test_takes_what_a_tensor_core_could_do(self):
    fp8_recipe.Recipe(accumulation="tensor_core", promote=False)

  def test_attention_s_output_has_a_cache_and_scales_of_its_own(self):
    linear = fp8_recipe.Recipe().linear("a/self_attn/o_proj")
    self.assertEqual(
      (linear.cache, linear.scale_format, linear.saved_as),
      ("e5m6", "ue8m0", "attention_output"),
    )
    linear = fp8_recipe.Recipe().linear("a/self_attn/q_proj")
    self.assertEqual(
      (linear.cache, linear.scale_format, linear.saved_as),
      ("float8", "float32", None),
    )


if __name__ == "__main__":
  absltest.main()
