"""Recorded metrics become columns, each step once."""

import math
import pathlib
import tempfile

from absl.testing import absltest
import numpy as np

from dsx.training import history
from dsx.training import metrics


class HistoryTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )

  def _read(self, *records, bigram=None):
    with metrics.Writer(self.workdir) as writer:
      for record in records:
        writer.write(record)
    return history.read(self.workdir, bigram)

  def test_the_last_record_of_a_step_counts(self):
    run = self._read(
      {"kind": "train", "step": 2, "loss": 9.0},
      {"kind": "train", "step": 1, "loss": 3.0},
      {"kind": "validation", "step": 2, "loss": 4.0},
      {"kind": "train", "step": 2, "loss": 2.0},
    )
    np.testing.assert_array_equal(history.steps(run.train), [1, 2])
    np.testing.assert_array_equal(history.column(run.train, "loss"), [3.0, 2.0])
    np.testing.assert_array_equal(history.steps(run.validation), [2])
    self.assertIsNone(run.load)

  def test_the_newest_load_is_kept(self):
    run = self._read(
      {"kind": "load", "step": 10, "layers": ["1"], "load": [[1.0, 1.0]]},
      {"kind": "load", "step": 5, "layers": ["1"], "load": [[2.0, 0.0]]},
    )
    self.assertEqual(run.load["step"], 10)

  def test_every_record_of_fp8_is_kept_in_order(self):
    run = self._read({"kind": "fp8", "step": 10}, {"kind": "fp8", "step": 5})
    np.testing.assert_array_equal(history.steps(run.fp8), [5, 10])
    self.assertEqual(self._read({"kind": "load", "step": 1}).fp8, [])

  def test_what_is_absent_or_infinite_is_nan(self):
    records = [{"mfu": 0.5}, {}, {"mfu": math.inf}, {"mfu": "?"}]
    np.testing.assert_array_equal(
      history.column(records, "mfu"), [0.5, np.nan, np.nan, np.nan]
    )
    self.assertEqual(history.column([], "mfu").shape, (0,))

  def test_lists_of_different_length_are_padded(self):
    records = [{"mtp_loss": [1.0]}, {}, {"mtp_loss": [2.0, 3.0]}]
    np.testing.assert_array_equal(
      history.rows(records, "mtp_loss"),
      [[1.0, np.nan], [np.nan, np.nan], [2.0, 3.0]],
    )
    self.assertEqual(history.rows([{}, {}], "mtp_loss").shape, (2, 0))

  def test_bits_per_nat_is_that_of_the_validation_text(self):
    run = self._read(
      {"kind": "train", "step": 1, "loss": 2.0, "bits_per_byte": 8.0},
      {"kind": "validation", "step": 1, "loss": math.nan, "bits_per_byte": 1.0},
      {"kind": "validation", "step": 2, "loss": 2.0, "bits_per_byte": 3.0},
    )
    self.assertEqual(run.bits_per_nat, 1.5)

  def test_bits_per_nat_is_nan_when_nothing_says_so(self):
    run = self._read({"kind": "train", "step": 1, "loss": 2.0})
    self.assertTrue(math.isnan(run.bits_per_nat))


if __name__ == "__main__":
  absltest.main()
