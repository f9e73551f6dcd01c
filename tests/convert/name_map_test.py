"""The name map covers every parameter once, and says what V3's files say."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from dsx.convert import name_map
from dsx.models import config as config_lib

_V3 = config_lib.DeepSeekConfig()


def _by_name(config):
  leaves = name_map.leaves(config)
  return {name: leaf for leaf in leaves for _, name in leaf.pieces()}


class NameMapTest(parameterized.TestCase):
  @parameterized.parameters(
    ("model.embed_tokens.weight", (129280, 7168)),
    ("lm_head.weight", (129280, 7168)),
    ("model.norm.weight", (7168,)),
    ("model.layers.0.self_attn.q_a_proj.weight", (1536, 7168)),
    ("model.layers.0.self_attn.q_b_proj.weight", (24576, 1536)),
    ("model.layers.60.self_attn.kv_a_proj_with_mqa.weight", (576, 7168)),
    ("model.layers.60.self_attn.kv_b_proj.weight", (32768, 512)),
    ("model.layers.2.mlp.down_proj.weight", (7168, 18432)),
    ("model.layers.3.mlp.gate.weight", (256, 7168)),
    ("model.layers.3.mlp.gate.e_score_correction_bias", (256,)),
    ("model.layers.3.mlp.experts.255.up_proj.weight", (2048, 7168)),
    ("model.layers.60.mlp.shared_experts.down_proj.weight", (7168, 2048)),
    ("model.layers.61.eh_proj.weight", (7168, 14336)),
    ("model.layers.61.shared_head.norm.weight", (7168,)),
    ("model.layers.61.mlp.experts.0.gate_proj.weight", (2048, 7168)),
  )
  def test_v3_shapes(self, name, shape):
    self.assertEqual(_by_name(_V3)[name].piece_shape, shape)

  def test_v3_whole(self):
    leaves = name_map.leaves(_V3)
    names = [name for leaf in leaves for _, name in leaf.pieces()]
    self.assertLen(set(names), len(names))
    # 61 + 1 blocks of attention, norms and feed-forward, three dense.
    experts = 59 * (256 * 3 + 3 + 2)
    self.assertLen(names, 62 * (2 + 7) + 3 * 3 + experts + 3 + 4)
    main = [leaf for leaf in leaves if not leaf.path[1].startswith("mtp_")]
    count = sum(math.prod(leaf.shape) for leaf in main)
    self.assertEqual(count, 671_026_419_200)
    for leaf in leaves:
      pieces = leaf.n_pieces * math.prod(leaf.piece_shape)
      self.assertEqual(pieces, math.prod(leaf.shape))

  def test_stacks_layers_and_experts_in_order(self):
    config = config_lib.DeepSeekConfig(
      num_hidden_layers=4, first_k_dense_replace=2, n_routed_experts=16
    )
    leaf = _by_name(config)["model.layers.3.mlp.experts.5.up_proj.weight"]
    self.assertEqual(
      leaf.path, ("params", "moe_layers", "mlp", "experts", "up_proj")
    )
    self.assertEqual(leaf.transform, "transpose")
    pieces = dict(leaf.pieces())
    self.assertEqual(
      pieces[1, 5], "model.layers.3.mlp.experts.5.up_proj.weight"
    )
    self.assertLen(pieces, 2 * 16)

  def test_copies(self):
    config = config_lib.DeepSeekConfig(num_nextn_predict_layers=2)
    self.assertEqual(
      name_map.copies(config),
      {
        "model.layers.61.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.61.shared_head.head.weight": "lm_head.weight",
        "model.layers.62.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.62.shared_head.head.weight": "lm_head.weight",
      },
    )

  def test_layers_hold_the_same_tensors(self):
    """A block of its own for every layer, experts still stacked."""
    leaves = name_map.leaves(_V3, name_map.LAYERS)
    by_path = {leaf.path: leaf for leaf in leaves}
    self.assertLen(by_path, len(leaves))
    names = [name for leaf in leaves for _, name in leaf.pieces()]
    self.assertLen(set(names), len(names))
    self.assertEqual(set(names), _by_name(_V3).keys())
    up = by_path["params", "layers_60", "mlp", "experts", "up_proj"]
    self.assertEqual((up.shape, up.stacked), ((256, 7168, 2048), 1))
    self.assertEqual(up.axes, ("experts", "expert_embed", "expert_mlp"))
    self.assertEqual(
      dict(up.pieces())[(7,)], "model.layers.60.mlp.experts.7.up_proj.weight"
    )
    bias = ("router_bias", "layers_3", "mlp", "gate")
    bias = by_path[*bias, "e_score_correction_bias"]
    self.assertEqual((bias.shape, bias.axes), ((256,), (None,)))
    parts = {path[1] for path in by_path}
    others = {"embed_tokens", "norm", "lm_head", "mtp_0"}
    self.assertEqual(parts, others | {f"layers_{i}" for i in range(61)})

  def test_linear_layers(self):
    """What V3's own FP8 files have scales for."""
    found = name_map.linear(_V3)
    attention, dense, experts = 5 * 62, 3 * 3, 59 * 257 * 3
    self.assertLen(found, attention + dense + experts)
    for name in (
      "model.layers.61.eh_proj.weight",
      "model.layers.3.mlp.gate.weight",
      "model.embed_tokens.weight",
      "lm_head.weight",
    ):
      self.assertNotIn(name, found)
      self.assertIn(name, _by_name(_V3))

  def test_layout_of(self):
    for layout in name_map.LAYOUTS:
      parts = (leaf.path[1] for leaf in name_map.leaves(_V3, layout))
      self.assertEqual(name_map.layout_of(parts), layout)

  @parameterized.parameters(0, 4)
  def test_models_of_one_kind_of_layer(self, dense):
    config = config_lib.DeepSeekConfig(
      num_hidden_layers=4,
      first_k_dense_replace=dense,
      n_shared_experts=0,
      num_nextn_predict_layers=0,
    )
    names = _by_name(config)
    kinds = {n.split(".mlp.")[1].split(".")[0] for n in names if ".mlp." in n}
    expected = {"gate_proj", "up_proj", "down_proj"}
    self.assertEqual(kinds, expected if dense else {"experts", "gate"})


if __name__ == "__main__":
  absltest.main()
