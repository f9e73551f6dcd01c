"""Curves and axes of the plots: smoothing, gaps, limits."""

from absl.testing import absltest
from absl.testing import parameterized
from matplotlib import figure
import numpy as np

from dsx.training import canvas


def _axes():
  return figure.Figure().subplots()


class CurveTest(parameterized.TestCase):
  def _draw(self, values):
    axes = _axes()
    values = np.asarray(values, np.float64)
    canvas.curve(axes, np.arange(len(values)), values, canvas.BLUE, "loss")
    return axes.get_lines()

  def test_few_points_are_drawn_as_points(self):
    (line,) = self._draw([3.0, 2.0])
    self.assertEqual(line.get_marker(), "o")
    np.testing.assert_array_equal(line.get_ydata(), [3.0, 2.0])

  def test_nothing_finite_draws_nothing(self):
    self.assertEmpty(self._draw([np.nan, np.nan]))

  def test_a_noisy_curve_is_smoothed_by_its_median(self):
    values = np.full(400, 2.0)
    values[7] = 1e6  # a spike leaves no trace in the median
    values[100] = np.nan
    pale, smooth = self._draw(values)
    np.testing.assert_array_equal(pale.get_ydata(), values)
    expected = np.where(np.isnan(values), np.nan, 2.0)
    np.testing.assert_array_equal(smooth.get_ydata(), expected)

  def test_smoothing_keeps_the_beginning_and_a_straight_descent(self):
    values = np.linspace(9.0, 1.0, 300)
    _, smooth = self._draw(values)
    np.testing.assert_allclose(smooth.get_ydata()[:200], values[:200])


class LimitsTest(parameterized.TestCase):
  def test_from_zero_cuts_spikes(self):
    axes, values = _axes(), np.full(100, 10.0)
    values[3] = 1e9
    canvas.from_zero(axes, values)
    low, high = axes.get_ylim()
    self.assertEqual(low, 0.0)
    self.assertBetween(high, 10.0, 20.0)

  def test_from_zero_of_zeros_has_a_height(self):
    axes = _axes()
    canvas.from_zero(axes, np.zeros(4))
    self.assertEqual(axes.get_ylim(), (0.0, 1.0))

  @parameterized.parameters(True, False)
  def test_logarithmic_shows_spikes_only_when_asked(self, spikes):
    axes, values = _axes(), np.linspace(6.0, 2.0, 100)
    values[50] = 1e6
    canvas.logarithmic(axes, values, spikes=spikes)
    low, high = axes.get_ylim()
    self.assertBetween(low, 0.5, 2.0)
    self.assertEqual(high > 1e6, spikes)
    self.assertGreater(high, 6.0)

  def test_logarithmic_of_a_constant_stays_wide(self):
    axes = _axes()
    canvas.logarithmic(axes, np.asarray([0.3, 0.3001]))
    low, high = axes.get_ylim()
    self.assertGreater(high / low, 1.5)
    self.assertBetween(0.3, low, high)

  @parameterized.parameters(canvas.from_zero, canvas.logarithmic)
  def test_empty_axes_say_so(self, limit):
    axes = _axes()
    limit(axes, np.asarray([np.nan]), np.asarray([]))
    self.assertEqual(axes.texts[0].get_text(), "nothing was recorded")


if __name__ == "__main__":
  absltest.main()
