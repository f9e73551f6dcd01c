"""Each panel shows the numbers of the history, in the right place."""

import math

from absl.testing import absltest
from absl.testing import parameterized
from matplotlib import figure
import numpy as np

from dsx.training import history
from dsx.training import panels


def _train(step, **fields):
  return {"kind": "train", "step": step, "loss": 3.0, **fields}


def _run(train, validation=(), load=None, bigram=None):
  return history.History(list(train), list(validation), load, bigram)


def _lines(axes):
  return {
    line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
    for line in axes.get_lines()
    if not line.get_label().startswith("_")
  }


class PanelsTest(parameterized.TestCase):
  def test_loss(self):
    run = _run(
      [_train(1, mtp_loss=[4.0, 5.0]), _train(2, loss=2.0, mtp_loss=[3.0])],
      [{"step": 2, "loss": 2.5, "bits_per_byte": 5.0}],
      bigram=3.0,
    )
    drawing = figure.Figure()
    panels.loss(drawing, run)
    (axes,) = drawing.axes
    lines = _lines(axes)
    self.assertEqual(lines["training"], ([1, 2], [3.0, 2.0]))
    self.assertEqual(lines["validation"], ([2], [2.5]))
    self.assertEqual(lines["training, MTP depth 1"], ([1, 2], [4.0, 3.0]))
    self.assertEqual(lines["training, MTP depth 2"][1][0], 5.0)
    # 3 bits per byte, at 2 bits per byte for a nat per token
    self.assertEqual(lines["bigram model, 3.00 bits per byte"][1], [1.5, 1.5])
    (bits,) = axes.child_axes
    drawing.draw_without_rendering()
    np.testing.assert_allclose(
      bits.get_ylim(), 2.0 * np.asarray(axes.get_ylim())
    )

  def test_loss_without_bits_has_no_second_axis_and_no_bigram(self):
    drawing = figure.Figure()
    panels.loss(drawing, _run([_train(1)], bigram=3.0))
    self.assertEmpty(drawing.axes[0].child_axes)
    self.assertEqual(list(_lines(drawing.axes[0])), ["training"])

  def test_skipped_updates_are_marked_where_their_number_grew(self):
    skipped = [0, 0, 1, 1, 3]
    run = _run(
      _train(10 * i, grad_norm=1.0, skipped=n) for i, n in enumerate(skipped)
    )
    drawing = figure.Figure()
    panels.gradient_norm(drawing, run)
    lines = _lines(drawing.axes[0])
    self.assertEqual(lines["skipped updates (3)"][0], [20, 40])

  def test_schedule_shows_four_series_from_zero(self):
    run = _run(
      _train(
        step,
        learning_rate=1e-3 * step,
        batch_size=8 * step,
        bias_update_speed=0.001,
        mtp_weight=0.3,
      )
      for step in (1, 2)
    )
    drawing = figure.Figure()
    panels.schedule(drawing, run)
    tops = [axes.get_yticklabels()[1].get_text() for axes in drawing.axes]
    self.assertEqual(tops, ["0.002", "16", "0.001", "0.3"])

  def test_expert_load_is_layer_by_expert(self):
    load = [[1.0, 0.5, 1.5], [3.0, 0.0, 0.0]]
    record = {"step": 7, "layers": ["1", "mtp_0"], "load": load}
    drawing = figure.Figure()
    panels.expert_load(drawing, _run([_train(7)], load=record))
    axes = drawing.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), load)
    names = [label.get_text() for label in axes.get_yticklabels()]
    self.assertEqual(names, ["1", "MTP 1"])
    self.assertEqual(axes.get_title(), "Expert load at step 7")
    middle = axes.images[0].norm(1.0)
    self.assertAlmostEqual(float(middle), 0.5)  # balanced is the neutral colour

  def test_max_violation_is_mean_and_worst_of_the_layers(self):
    run = _run(
      [
        _train(1, max_violation_by_layer=[1.0, 3.0]),
        _train(2),  # not measured at this step
        _train(3, max_violation_by_layer=[0.5, 0.1]),
      ]
    )
    drawing = figure.Figure()
    panels.max_violation(drawing, run)
    lines = _lines(drawing.axes[0])
    self.assertEqual(lines["worst layer"], ([1, 3], [3.0, 0.5]))
    self.assertEqual(lines["mean"], ([1, 3], [2.0, 0.3]))

  def test_throughput_is_in_percent(self):
    run = _run([_train(1, tokens_per_second=1e4, mfu=0.25, data_wait=0.5)])
    drawing = figure.Figure()
    panels.throughput(drawing, run)
    rate, share = drawing.axes
    self.assertEqual(list(rate.get_lines()[0].get_ydata()), [1e4])
    lines = _lines(share)
    self.assertEqual(lines["MFU"][1], [25.0])
    self.assertEqual(lines["time waiting for data"][1], [50.0])

  @parameterized.parameters(
    panels.loss,
    panels.gradient_norm,
    panels.schedule,
    panels.expert_load,
    panels.max_violation,
    panels.throughput,
  )
  def test_a_run_of_nothing_but_nan_says_so(self, panel):
    drawing = figure.Figure()
    panel(drawing, _run([_train(1, loss=math.nan, grad_norm=math.nan)]))
    for axes in drawing.axes:
      self.assertEqual(axes.texts[0].get_text(), "nothing was recorded")


if __name__ == "__main__":
  absltest.main()
