"""The panel of FP8 shows the numbers of the records, in the right place."""

import math

from absl.testing import absltest
from matplotlib import figure
import numpy as np

from dsx.training import fp8_panels
from dsx.training import history

_LAYERS = [
  "0/self_attn/kv_a_proj_with_mqa",
  "0/mlp/gate_proj",
  "1/mlp/experts/gate_proj",
  "mtp_0/mlp/shared_experts/gate_proj",
]
_FIELDS = {
  "underflow": [0.0, 1e-3, 0.5, 1e-5],
  "saturated": [0.01, 0.02, 0.03, math.nan],
  "not_finite": [0.0, 0.25, 0.0, math.nan],
  "scale_min": [-9.0, -8.0, -7.0, math.nan],
  "scale_median": [-6.0, -5.0, -5.0, math.nan],
  "scale_max": [-3.0, 0.0, 2.0, math.nan],
}


def _record(step, **changes):
  record = {"kind": "fp8", "step": step, "layers": _LAYERS}
  for tensor in ("activation", "weight", "gradient"):
    record |= {f"{tensor}_{field}": v for field, v in _FIELDS.items()}
  return record | changes


def _drawn(*records):
  train = [{"kind": "train", "step": n, "loss": 3.0} for n in (1, 100)]
  drawing = figure.Figure(layout="constrained")
  fp8_panels.fp8(drawing, history.History(train, [], fp8=records))
  drawing.draw_without_rendering()
  return {axes.get_title(): axes for axes in drawing.axes}


def _lines(axes):
  return {
    line.get_label(): np.asarray(line.get_ydata()).tolist()
    for line in axes.get_lines()
    if not line.get_label().startswith("_")
  }


class Fp8PanelTest(absltest.TestCase):
  def test_heat_maps_are_layer_by_matrix(self):
    axes = _drawn(_record(100))["Underflow of activations"]
    nan = np.nan
    expected = [
      [1e-7, 1e-3, nan, nan],  # zero is drawn on the floor
      [nan, nan, 0.5, nan],
      [nan, nan, nan, 1e-5],
    ]
    shown = np.ma.asarray(axes.images[0].get_array()).filled(np.nan)
    np.testing.assert_array_equal(shown, expected)
    names = [label.get_text() for label in axes.get_xticklabels()]
    self.assertEqual(names, ["kv_a", "gate", "experts gate", "shared gate"])
    layers = [label.get_text() for label in axes.get_yticklabels()]
    self.assertEqual(layers, ["0", "1", "MTP 1"])
    self.assertEqual(axes.get_ylabel(), "layer, at step 100")

  def test_what_is_not_finite_is_crossed(self):
    drawn = _drawn(_record(100, weight_not_finite=[0, 0, 0, 0]))
    crosses = drawn["Underflow of gradients"].collections[0]
    np.testing.assert_array_equal(crosses.get_offsets(), [[1, 0]])
    self.assertEmpty(drawn["Underflow of weights"].collections)

  def test_curves_are_of_the_worst_layer(self):
    changed = {"gradient_underflow": [0.0, 0.0, 0.0, 0.0]}
    drawn = _drawn(_record(50), _record(100, **changed))
    underflow = _lines(drawn["Underflow, worst layer"])
    self.assertEqual(underflow["activations"], [0.5, 0.5])
    self.assertEqual(underflow["gradients"], [0.5, 1e-7])
    saturated = _lines(drawn["Saturation, worst layer"])
    self.assertEqual(saturated["weights"], [0.03, 0.03])

  def test_scales_are_range_and_median(self):
    axes = _drawn(_record(50), _record(100))["Scales of tiles"]
    self.assertEqual(_lines(axes)["weights"], [-5, -5])
    edges = [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()]
    self.assertIn([-9, -9], edges)
    self.assertIn([2, 2], edges)

  def test_nothing_but_nan_says_so(self):
    nothing = [math.nan] * len(_LAYERS)
    record = _record(100)
    record |= {name: nothing for name in record if "_" in name}
    drawn = _drawn(record)
    for title in ("Underflow, worst layer", "Scales of tiles"):
      self.assertEqual(drawn[title].texts[0].get_text(), "nothing was recorded")

  def test_a_recipe_that_matched_nothing_says_so(self):
    record = {name: [] for name in _record(1)} | {"kind": "fp8", "step": 1}
    for axes in _drawn(record).values():
      self.assertEqual(axes.texts[0].get_text(), "nothing was recorded")


if __name__ == "__main__":
  absltest.main()
